"""MACs: equal to a count by hand, and a selector that stays below its share."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from tiny import AST, MODELS, inputs, make
from torch.utils.flop_counter import FlopCounterMode

import sounding
from sounding.model.macs import _SDPA, Macs, count_macs, example_inputs, summary

BASE = {  # of every family, its model in the default configuration
    "wav2vec2": (t.Wav2Vec2Model, t.Wav2Vec2Config()),
    "hubert": (t.HubertModel, t.HubertConfig()),
    "wavlm": (t.WavLMModel, t.WavLMConfig()),
    "data2vec": (t.Data2VecAudioModel, t.Data2VecAudioConfig()),
    "unispeech-sat": (t.UniSpeechSatModel, t.UniSpeechSatConfig()),
    "wav2vec2-bert": (t.Wav2Vec2BertModel, t.Wav2Vec2BertConfig()),
    "whisper-tiny": (t.WhisperForAudioClassification, t.WhisperConfig()),
    "whisper-base": (
        t.WhisperForAudioClassification,
        t.WhisperConfig(
            d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048
        ),
    ),
    "moonshine": (t.MoonshineModel, t.MoonshineConfig()),
    "ast": (t.ASTModel, t.ASTConfig()),
    "parakeet": (t.ParakeetEncoder, t.ParakeetEncoderConfig()),
}


def test_a_layer_of_the_audio_spectrogram_transformer_equals_a_count_by_hand():
    macs = count_macs(sounding.wrap(make("ast")))
    width, inner = AST["hidden_size"], AST["intermediate_size"]
    patches = ((64 - 16) // 10 + 1) * ((32 - 16) // 10 + 1)
    tokens = patches + 2
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    feed_forward = 2 * tokens * width * inner
    assert macs.layers == (attention + feed_forward,) * 4
    assert macs.front_end == patches * width * 16 * 16
    assert macs.head == width * AST["num_labels"]


def test_a_layer_of_whisper_equals_a_count_by_hand():
    macs = count_macs(sounding.wrap(make("whisper-classification")), {
        "input_features": torch.randn(1, 16, 120)
    })  # fmt: skip
    width, inner, frames = 32, 48, 60
    attention = 4 * frames * width**2 + 2 * frames**2 * width
    assert macs.layers == (attention + 2 * frames * width * inner,) * 4
    assert macs.front_end == 120 * 16 * width * 3 + frames * width * width * 3
    assert macs.head == frames * width * 16 + 16 * 5  # projector on each frame, classifier


def test_the_selector_equals_a_count_by_hand():
    dynamic = sounding.wrap(make("ast"))
    assert count_macs(dynamic).selector == 2 * 32 * dynamic.policy.hidden + (
        dynamic.policy.hidden * 4
    )


def test_the_parts_add_up_and_what_ran_is_counted():
    macs = Macs(front_end=100, selector=1, layers=(10, 20, 30), head=5)
    assert macs.full == 165
    assert macs.selector_share == 1 / 165
    assert macs.of(torch.tensor([True, False, True])) == 146
    assert macs.of(torch.tensor([True, False, True]), selector=False) == 145
    two = torch.tensor([[True, True, True], [False, True, False]])
    assert macs.of(two) == 106 + (60 + 20) / 2


def test_what_stands_in_for_a_skipped_layer_is_counted():
    macs = Macs(front_end=100, selector=1, layers=(10, 20, 30), head=5, skip=2)
    assert macs.of(torch.tensor([[True, False, False]])) == 100 + 10 + 2 * 2 + 5 + 1
    assert macs.of(torch.ones(1, 3, dtype=torch.bool), selector=False) == macs.full == 165
    dynamic = sounding.wrap(make("whisper-classification"), skip="adapter")
    counted = count_macs(dynamic)
    assert counted.skip == dynamic.skip.macs(50) > 0
    assert "a skip" in summary(dynamic)


@pytest.mark.parametrize("name", MODELS)
def test_the_count_of_what_ran_equals_the_count_of_a_run_at_that_mask(name):
    dynamic = sounding.wrap(make(name))
    batch = inputs(dynamic.model, batch=1)
    macs = count_macs(dynamic, batch)
    mask = torch.tensor([True, False, False, True])
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_SDPA) as counter:
        dynamic(**batch, mask=mask)
    assert counter.get_total_flops() / 2 == macs.of(mask, selector=False)


def test_counting_leaves_the_model_in_its_mode_and_without_hooks():
    dynamic = sounding.wrap(make("ast").train())
    hooks = [len(layer._forward_hooks) for layer in dynamic.stack.layers]
    count_macs(dynamic)
    assert dynamic.training
    assert dynamic.model.training
    assert [len(layer._forward_hooks) for layer in dynamic.stack.layers] == hooks


@pytest.mark.parametrize("name", BASE)
def test_the_selector_takes_at_most_half_a_per_cent_of_one_second(name):
    """On the meta device, which counts without computing; pooling is added by hand."""
    model_class, config = BASE[name]
    with torch.device("meta"):
        model = model_class(config).eval().to("meta")
    dynamic = sounding.wrap(model)
    macs = count_macs(dynamic)
    features = []
    dynamic.stack.layers[0].register_forward_pre_hook(lambda m, args: features.append(args[0]))
    with torch.no_grad():
        dynamic(**example_inputs(dynamic))
    pooling = 4 * features[0].numel()  # mean, difference, square, mean
    assert macs.selector > 0
    assert len(set(macs.layers)) <= 2
    assert macs.layers[0] > 0
    assert (macs.selector + pooling) / macs.full <= 0.005
    assert macs.selector_share <= 0.001


def test_the_meta_device_counts_what_the_cpu_counts():
    with torch.device("meta"):
        model_class, config_class, values = MODELS["whisper-classification"]
        meta = model_class(config_class(**values)).eval()
    on_meta, on_cpu = (
        count_macs(sounding.wrap(model)) for model in (meta, make("whisper-classification"))
    )
    assert on_meta == on_cpu
