"""The beam search: the likeliest text over all its paths, and with words only those."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from sounding.data.text import collapse
from sounding.evaluation.beam import BeamDecoder

pytest.importorskip("flashlight.lib.text")
TOKENS = ["<pad>", "<unk>", "▁", *"abc"]
ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t-0.3
-1.0\t</s>\t0
-0.5\tab\t-0.3
-0.5\tca\t-0.3
-0.5\tödl\t-0.3

\\2-grams:
-0.1\t<s> ca
-0.1\tca ab
-1.5\tca ca
-0.1\tab </s>

\\end\\
"""


def as_text(ids):
    return " ".join("".join(TOKENS[i] for i in ids).replace("▁", " ").split())


def test_the_text_is_the_likeliest_over_all_its_paths():
    decoder = BeamDecoder(TOKENS, 50)
    torch.manual_seed(0)
    better = 0
    for _ in range(20):
        logits = 2 * torch.randn(5, len(TOKENS))
        logits[:, 1] = -30
        p, sums = logits.softmax(-1), {}
        for path in itertools.product(range(len(TOKENS)), repeat=5):
            text = tuple(collapse(path))
            chance = torch.stack([frame[token] for frame, token in zip(p, path, strict=True)])
            sums[text] = sums.get(text, 0.0) + float(chance.prod())
        assert decoder(logits) == as_text(max(sums, key=sums.get))
        better += decoder(logits) != as_text(collapse(logits.argmax(-1).tolist()))
    assert better > 0
    assert decoder(torch.zeros(0, len(TOKENS))) == ""


def test_a_language_model_of_words_decides_what_sounds_alike(tmp_path):
    path = tmp_path / "words.arpa"
    path.write_text(ARPA)
    decoder = BeamDecoder(TOKENS, 50, lm=path)
    logits = torch.full((7, len(TOKENS)), -6.0)
    for frame, token in enumerate("ca▁ab"):
        logits[frame, TOKENS.index(token)] = 4
    logits[5:, 0] = 4
    assert decoder(logits) == "ca ab"
    logits[3, TOKENS.index("c")] = 4.2  # "cb" is no word, and "ca" seldom follows "ca"
    logits[4, TOKENS.index("a")] = 4.2
    assert as_text(collapse(logits.argmax(-1).tolist())) == "ca ca"
    assert decoder(logits) == "ca ab"


@pytest.mark.parametrize(
    ("content", "tokens", "message"),
    [
        (b"hello", TOKENS, "no ARPA language model"),
        (b"\xff\xfe", TOKENS, "cannot be read"),
        (ARPA[: ARPA.index("2-grams:") + 13].encode(), TOKENS, "is damaged as an ARPA"),
        (ARPA.replace("ab", "xy").replace("ca", "öd").encode(), TOKENS, "no word that can be"),
        (ARPA.encode(), [*TOKENS, "ab"], "needs a vocabulary of characters"),
    ],
)
def test_a_language_model_that_does_not_fit(tmp_path, content, tokens, message):
    path = tmp_path / "words.arpa"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        BeamDecoder(tokens, lm=path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.arpa")
        with pytest.raises(ValueError, match=r"cannot be read .* a pipe or a device"):
            BeamDecoder(TOKENS, lm=tmp_path / "pipe.arpa")
    with pytest.raises(ValueError, match="cannot be read"):
        BeamDecoder(TOKENS, lm=tmp_path / "none.arpa")
    with pytest.raises(ValueError, match="a beam of 0"):
        BeamDecoder(TOKENS, 0)
