"""What programs give to the runtime: PCM, tensors, lists, nonsense, and many threads at once."""

from __future__ import annotations

import threading
from array import array

import numpy as np
import pytest
import torch
from tiny_runs import RATE, clip, close

from sounding import runtime
from sounding.data.audio import AudioError
from sounding.runtime import Stream

WAVE = clip(0.3)
PCM = np.round(32767 * WAVE / np.abs(WAVE).max()).astype(np.int16)


@pytest.fixture(scope="module")
def model(exports):
    return runtime.load(exports("whisper").one, threads=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda pcm: pcm,
        lambda pcm: pcm.astype(np.int32) * 65536,
        lambda pcm: torch.from_numpy(pcm),
        lambda pcm: array("h", pcm.tolist()),
        lambda pcm: pcm[:, None],
        lambda pcm: pcm[None],
        lambda pcm: pcm.astype(">i2"),
    ],
)
def test_integer_pcm_has_the_answer_of_the_floats_it_stands_for(model, change):
    expected = model.run(PCM / np.float32(32768), 2).logits
    close(model.run(change(PCM), 2).logits, expected)
    close(model.run_many([change(PCM)], 2)[0].logits, expected)


@pytest.mark.parametrize(
    "change",
    [
        list,
        tuple,
        np.float64,
        lambda wave: wave[:, None],
        lambda wave: torch.from_numpy(wave).double().requires_grad_(),
        lambda wave: torch.from_numpy(wave)[None],
    ],
)
def test_floats_of_any_kind_are_samples(model, change):
    close(model.run(change(WAVE), 2).logits, model.run(WAVE, 2).logits)


def test_a_tensor_of_half_the_bits_is_samples():
    from sounding.runtime.inputs import one_channel

    wave = torch.from_numpy(WAVE).bfloat16()
    np.testing.assert_array_equal(one_channel(wave), wave.float().numpy())


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        (np.stack([WAVE, WAVE], 1), AudioError, "average the channels"),
        (PCM.tolist(), AudioError, "int64"),
        (np.float32(0.1), AudioError, "one channel"),
        ([], AudioError, "0 samples"),
        ({"array": WAVE, "sampling_rate": RATE}, TypeError, "the audio is a dict: give the path"),
        (None, TypeError, "NoneType"),
        (7, TypeError, "int"),
        (b"a.wav", TypeError, "bytes"),
    ],
)
def test_what_is_no_clip_gets_a_clear_error(model, audio, error, message):
    with pytest.raises(error, match=message):
        model.run(audio)


def test_one_clip_is_not_taken_for_many(model):
    with pytest.raises(TypeError, match="a list of clips"):
        model.run_many("a.wav")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_cut_that_is_none(model, seconds):
    with pytest.raises(ValueError, match="max_seconds is"):
        model.run(WAVE, max_seconds=seconds)


def test_no_answer_is_ever_nan(model, monkeypatch):
    """A model that says nothing finite, whatever the reason."""
    monkeypatch.setattr(
        model, "predict", lambda *_: (np.array([[np.nan] * 5], np.float32), np.ones((1, 4), bool))
    )
    with pytest.raises(AudioError, match="the audio: the answer is NaN or infinite"):
        model.run(WAVE)


def test_a_stream_takes_pcm_and_refuses_what_would_poison_it(model):
    def heard(stream, *blocks):
        return [one.answer.logits for block in blocks for one in stream.feed(block)]

    def answer(samples):
        return model.run(samples, 2)

    expected = heard(Stream(answer, RATE, window=0.1, hop=0.05), PCM / np.float32(32768))
    assert len(expected) == 5
    got = heard(Stream(answer, RATE, window=0.1, hop=0.05), PCM[:1000, None], PCM[1000:])
    close(np.stack(got), np.stack(expected))
    stream = Stream(answer, RATE, window=0.1, hop=0.05)
    for bad in (np.full(10, np.nan), np.zeros((10, 2)), PCM.astype(np.int64)):
        with pytest.raises(AudioError):
            list(stream.feed(bad))
    close(np.stack(heard(stream, PCM)), np.stack(expected))  # nothing of these was kept
    with pytest.raises(ValueError, match="hop"):
        Stream(answer, RATE, window=float("inf"), hop=1)


def test_a_window_without_an_answer_does_not_come_again():
    def answer(samples):
        if samples[0] == 1:
            raise AudioError("none")
        return runtime.Answer("", str(samples[0]), 1.0, 1, [0], 4, 0.0, np.zeros(2))

    stream = Stream(answer, 1, window=2, hop=2)
    with pytest.raises(AudioError):
        list(stream.feed([1.0, 1.0, 0.5, 0.5]))
    assert [one.answer.label for one in stream.feed([0.25, 0.25])] == ["0.5", "0.25"]


@pytest.mark.parametrize("unload", [True, False])
def test_a_split_export_answers_to_many_threads_at_once(exports, unload):
    split = runtime.load(exports("whisper").split, threads=1, unload=unload)
    budgets = [1, 2, 3, 4, "mean:2"]
    expected = {budget: split.run(WAVE, budget).logits for budget in budgets}
    wrong: list[object] = []
    start = threading.Barrier(8)

    def ask(number):
        start.wait()
        for turn in range(60):
            budget = budgets[(number + turn) % len(budgets)]
            try:
                close(split.run(WAVE, budget).logits, expected[budget])
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    split.run(WAVE, 1)
    parts = {f"layer_{i}" for i in range(4)} & set(split.loaded)
    assert len(parts) == (1 if unload else 4)


def test_a_part_is_loaded_once_whoever_asks_for_it(exports, monkeypatch):
    split = runtime.load(exports("whisper").split, threads=1)
    loads, load = [], split._load

    def count(name):
        loads.append(name)
        return load(name)

    monkeypatch.setattr(split, "_load", count)
    threads = [threading.Thread(target=split.run, args=(WAVE,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loads) == sorted(set(loads))
