"""What several test files share: a small folder of tones, and a tiny backbone on disk."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
import torch
import transformers
from corpora import clips

from sounding.data.text import normalize_text

torch.set_num_threads(1)  # tiny models: more threads only wait for each other on a busy machine

TONES = {"high": 2000, "low": 300}
TEXTS = ["Low high.", "high", "LOW", "low low high", "high low", "High, high!"]


@pytest.fixture
def quiet_generate():
    """`generate` of Whisper warns of its own defaults in each call."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """A folder of tones in noise, two classes, lengths from 0.3 to 0.58 s."""
    rng = np.random.default_rng(0)

    def make(index):
        label = ("low", "high")[index % 2]
        time = np.arange(int(rng.uniform(0.3, 0.58) * 16000)) / 16000
        tone = 0.1 * np.sin(2 * np.pi * TONES[label] * time) + rng.normal(0, 0.02, len(time))
        return tone, {"label": label}

    counts = {"train": 40, "validation": 8, "test": 16}
    return clips(tmp_path_factory.mktemp("tones"), counts, make)


@pytest.fixture(scope="session")
def whisper(tmp_path_factory):
    """A tiny Whisper for classification with its feature extractor, as a local backbone."""
    root = tmp_path_factory.mktemp("whisper")
    tiny.make("whisper-classification").save_pretrained(root)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(root)
    return root


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of sequences of tones, each tone a word."""
    rng = np.random.default_rng(0)

    def make(index):
        said = TEXTS[index % len(TEXTS)]
        tones = [TONES[word] for word in normalize_text(said).split()]
        time = np.arange(int(rng.uniform(0.18, 0.28) * 16000)) / 16000
        wave = np.concatenate([0.1 * np.sin(2 * np.pi * tone * time) for tone in tones])
        return wave + rng.normal(0, 0.01, len(wave)), {"text": said, "speaker": f"s{index}"}

    counts = {"train": 24, "validation": 6, "test": 12}
    return clips(tmp_path_factory.mktemp("texts"), counts, make)


@pytest.fixture(scope="session")
def chords(tmp_path_factory):
    """A folder of one or two tones at once."""
    rng = np.random.default_rng(0)

    def make(index):
        tags = (["low"], ["high"], ["high", "low"])[index % 3]
        time = np.arange(8000) / 16000
        wave = rng.normal(0, 0.02, len(time))
        for tag in tags:
            wave += 0.1 * np.sin(2 * np.pi * TONES[tag] * time)
        return wave, {"labels": ";".join(tags)}

    counts = {"train": 48, "validation": 9, "test": 18}
    return clips(tmp_path_factory.mktemp("chords"), counts, make)


@pytest.fixture(scope="session")
def speaker(tmp_path_factory):
    """A tiny Whisper with its decoder, as a local backbone."""
    path = tmp_path_factory.mktemp("speaker")
    tiny.save_speaker(path)
    return path


class Exports(NamedTuple):
    """A tiny run, its traced parts, and its exports: one file, and split."""

    run: Any
    parts: Any
    one: Path
    split: Path


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """The exports of a case of `tiny_runs`, made once."""
    import tiny_runs  # here, since most tests do not need the exporter

    from sounding.export import export
    from sounding.export.parts import export_parts

    @cache
    def make(case):
        root = tmp_path_factory.mktemp(case)
        run = tiny_runs.make_run(case)
        parts = export_parts(run.dynamic)
        made = [export(run, root / n, split=n == "s", parts=parts) for n in ("m.onnx", "s")]
        for one in made:
            assert one.difference.error < 1e-4
            assert one.difference.agreeing == one.difference.answers
        return Exports(run, parts, root / "m.onnx", root / "s")

    return make


@pytest.fixture(scope="session")
def spoken():
    """Two sentences of 2 to 3 s."""
    pytest.importorskip("espeakng_loader", reason="needs the extra 'demo'")
    from sounding.data.commands import speak

    texts = ("the boat came in before the rain and nobody was there", "she was in the mountains")
    how = {"rate": 170, "pitch": 50, "pitch_range": 50, "seed": 0}
    return [speak(text, "gmw/en-US+Michael", **how).astype(np.float32) for text in texts]


@pytest.fixture(scope="session")
def talk(spoken):
    """Three sentences with pauses of 0.5 and 2 s, 12 s in all."""
    first, second = spoken

    def pause(seconds):
        return np.zeros(round(16000 * seconds), np.float32)

    parts = [pause(1), first, pause(0.5), second, pause(2), first, pause(1)]
    return np.concatenate(parts)


@pytest.fixture(scope="session")
def masking(tmp_path_factory):
    """A wav2vec 2.0 that drops and masks in training, as its default configuration does."""
    root = tmp_path_factory.mktemp("masking")
    tiny.make("wav2vec2-pre", **tiny.MASKING).wav2vec2.save_pretrained(root)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(root)
    return root
