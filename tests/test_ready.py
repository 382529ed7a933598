"""The parts that come with the package."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import sounding
from sounding.errors import UsageError
from sounding.model.io import read_description
from sounding.weights import cache_dir, ready, resolve

NAME = "whisper-base"
DIRECTORY = ready.READY / NAME


def test_they_are_whole_and_small_and_say_how_they_were_made():
    assert ready.names() == [NAME]
    said = read_description(DIRECTORY)  # which checks every file
    assert said.weights
    assert said.decoder_trained
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 10e6
    history = json.loads((DIRECTORY / "made.json").read_text())
    for made in [*history["trainings"], *history["decoder_trainings"]]:
        assert made["config"]["backbone"] == NAME
        assert made["steps"] > 0
        assert made["commit"]
        assert "dirty" not in made["commit"]
        assert made["data"]["digest"]


def test_a_model_of_another_name_is_wrapped_without():
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=60,
        num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    with pytest.raises(UsageError, match="trained beside other weights"):
        ready.wrap_ready(model, NAME)
    assert ready.wrap_ready(model, "mine").updates is None


@pytest.mark.skipif(
    not (cache_dir() / "weights" / NAME).is_dir(), reason="Whisper-base is not in the cache"
)
def test_the_original_answers_at_full_depth_of_the_window_and_all_layers_stay_its_own():
    kind = transformers.WhisperForConditionalGeneration
    plain = kind.from_pretrained(resolve(NAME), dtype=torch.float32).eval()
    dynamic = ready.wrap_ready(kind.from_pretrained(resolve(NAME), dtype=torch.float32), NAME)
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[50258, 50259, 50359, 50363]])
    with torch.inference_mode():
        wanted = plain(features, decoder_input_ids=tokens).logits
        assert torch.equal(dynamic(features, decoder_input_ids=tokens).logits, wanted)
        reduced = dynamic(features, decoder_input_ids=tokens, budget=4)
        easy, hard = features[..., :400], 3 * features[..., :400]
        both = dynamic(
            torch.cat([easy, hard]), decoder_input_ids=tokens.repeat(2, 1), budget="mean:4"
        )
        one = dynamic(hard, decoder_input_ids=tokens, budget="mean:4")
    assert reduced.executed_layers.sum() == 4
    kept = both.executed_layers.sum(1)
    assert bool(((kept >= 3) & (kept <= 6)).all())
    assert torch.equal(both.executed_layers[1], one.executed_layers[0])
    assert not torch.equal(reduced.logits, wanted)
    weights = plain.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in sounding.unwrap(dynamic).state_dict().items())
