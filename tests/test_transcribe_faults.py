"""What goes wrong while long audio is transcribed: names, journals, signals, files that change."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from filelock import FileLock
from tiny_transcribe import RATE, Fake, run, silence, write

from sounding import cli
from sounding.model.wrapping import wrap
from sounding.progress import Interrupted
from sounding.transcribe import job as module
from sounding.transcribe import vad
from sounding.transcribe.formats import FORMATS, Piece, Transcript, format_names
from sounding.transcribe.job import Job, transcribe, transcribe_stream
from sounding.transcribe.journal import Journal, OutputError
from sounding.transcribe.sources import Source, find_sources
from sounding.transcribe.threads import token_by_token
from sounding.transcribe.whisper import WhisperRecognizer

pytest.importorskip("silero_vad", reason="needs the extra 'transcribe'")


@pytest.fixture
def fake(monkeypatch):
    """The command line with a recognizer that has no model."""
    recognizer = Fake()
    monkeypatch.setattr(WhisperRecognizer, "load", classmethod(lambda cls, *a, **k: recognizer))
    return recognizer


@contextmanager
def interrupt_in(seconds, number=signal.SIGINT):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# --- threads --------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_detector_runs_in_one_thread_and_puts_the_number_back(two_threads, monkeypatch):
    threads = []

    class Detector:
        def load_silero_vad(self):
            return self

        def __call__(self, frame, rate):
            threads.append(torch.get_num_threads())
            return torch.tensor(0.0)

    monkeypatch.setattr(vad, "silero", Detector)
    vad.listen([silence(0.1)])
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2

    def broken():
        yield silence(0.1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        vad.listen(broken())
    assert torch.get_num_threads() == 2


def test_a_decoder_says_its_tokens_in_one_thread_and_the_encoder_has_them_all(
    two_threads, whisper_speaker
):
    recognizer = WhisperRecognizer(*whisper_speaker)
    model = recognizer.dynamic.model.model
    seen: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for name, threads in seen.items():
        layer = getattr(model, name).layers[0]
        layer.register_forward_hook(
            lambda *_, threads=threads: threads.add(torch.get_num_threads())
        )
    recognizer([silence(0.5)])
    assert seen == {"encoder": {2}, "decoder": {1}}
    assert torch.get_num_threads() == 2

    def fail(*_):
        raise RuntimeError("no")

    handle = model.encoder.layers[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        recognizer([silence(0.5)])
    handle.remove()
    assert torch.get_num_threads() == 2
    recognizer([silence(0.5)])  # no hook of the failed call is left


def test_a_prompt_has_all_threads_and_each_further_token_one(two_threads):
    class Part(torch.nn.Module):
        def forward(self, **inputs):
            return torch.get_num_threads()

    encoder, decoder = Part(), Part()
    with token_by_token(encoder, decoder):
        assert encoder(input_features=torch.zeros(1, 2, 3)) == 2
        assert decoder(input_ids=torch.zeros(1, 4)) == 2
        assert [decoder(input_ids=torch.zeros(1, 1)) for _ in range(2)] == [1, 1]
        assert torch.get_num_threads() == 1
    assert decoder(input_ids=torch.zeros(1, 1)) == 2


def test_tokens_that_are_not_to_be_said_are_not_and_the_rest_is_as_it_was(whisper_speaker):
    """Ruled out by a mask of ours, since that of transformers is looked up at each token."""
    dynamic, extractor, tokenizer = whisper_speaker
    sound = np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype("f4")

    def heard():
        ids = []
        decode = tokenizer.decode
        tokenizer.decode = lambda tokens, **_: ids.append(tokens.tolist()) or decode(tokens)
        recognizer = WhisperRecognizer(dynamic, extractor, tokenizer, pad=True)
        recognizer([sound])
        tokenizer.decode = decode
        return recognizer, ids[0]

    _, free = heard()
    dynamic.generation_config.suppress_tokens = [free[1], 39]
    recognizer, without = heard()
    assert free[1] not in without[1:]
    assert without != free
    features = recognizer._features(sound, True)
    plain = dynamic.generate(features, do_sample=False, max_new_tokens=12)[0]  # by transformers
    assert len(plain) > 3
    assert without[1:] == plain.tolist()[: len(without) - 1]  # behind the token of the start


@pytest.fixture
def whisper_speaker(tmp_path):
    """A tiny Whisper with its extractor and tokenizer, as `WhisperRecognizer` takes them."""
    tiny.save_speaker(tmp_path / "model")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "model")
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    return wrap(model, "first"), extractor, tokenizer


# --- signals --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_detector_listens_ends_it_at_once(
    tmp_path, talk, monkeypatch, number
):
    """Ten hours of audio, of which two blocks are heard."""
    heard, notes = [], []

    def hours(path, rate):
        for block in range(1200):
            heard.append(block)
            yield silence(30) if block > 1 else silence(1)
            if block == 1:
                os.kill(os.getpid(), number)

    path = write(tmp_path / "a.wav", talk)
    monkeypatch.setattr(module, "audio_blocks", hours)
    monkeypatch.setattr(
        "sounding.progress._lines", lambda *_: lambda done, note: notes.append(note)
    )
    with pytest.raises(Interrupted, match=r"stopped in a\.wav while looking for speech"):
        run([path], Fake())
    assert heard == [0, 1]
    assert "a.wav, looking for speech, 1 s done" in notes
    monkeypatch.undo()
    assert run([path], Fake()) == []


def test_an_interrupt_on_the_way_to_the_next_piece_ends_it_at_once(tmp_path, talk, monkeypatch):
    """A run that goes on decodes what is done already, which may take minutes."""
    path = write(tmp_path / "a.wav", talk)
    blocks = module.audio_blocks
    read = []

    def slow(path, rate):
        read.append(path)
        if len(read) == 2:  # after the detector
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return blocks(path, rate=rate)

    def long(path, rate):
        yield from slow(path, rate)

    monkeypatch.setattr(module, "audio_blocks", long)
    fake = Fake()
    with pytest.raises(Interrupted, match="while reading it"):
        run([path], fake)
    assert fake.calls == []


def test_an_interrupt_while_a_file_is_read_ends_it_at_once(tmp_path, talk, monkeypatch):
    def slow(path):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(module, "sha256", slow)
    with pytest.raises(Interrupted, match="while reading it"):
        run([write(tmp_path / "a.wav", talk)], Fake())


def test_an_interrupt_while_another_process_has_the_file_ends_it_at_once(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    (tmp_path / ".transcripts").mkdir()
    held, done = threading.Event(), threading.Event()

    def hold():
        with FileLock(tmp_path / ".transcripts" / "a.wav.lock"):
            held.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    try:
        with (
            interrupt_in(0.5),
            pytest.raises(Interrupted, match="while waiting for another process"),
        ):
            run([path], Fake())
        assert not done.is_set()
    finally:
        done.set()
        other.join()
    assert run([path], Fake()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_standard_input_is_read_leaves_nothing(tmp_path, monkeypatch, number):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    reading, writing = os.pipe()
    os.write(writing, b"RIFF")
    with (
        os.fdopen(reading, "rb") as stream,
        interrupt_in(0.5, number),
        pytest.raises(Interrupted, match="nothing is kept"),
    ):
        transcribe_stream(stream, Job(Fake()))
    os.close(writing)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_in_standard_input_does_not_wait_for_the_piece(tmp_path, talk):
    class Slow(Fake):
        def __call__(self, pieces, budget=None):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    audio = io.BytesIO(write(tmp_path / "a.wav", talk).read_bytes())
    start = time.monotonic()
    with pytest.raises(Interrupted, match="standard input, of which nothing is kept"):
        transcribe_stream(audio, Job(Slow()))
    assert time.monotonic() - start < 30


def test_what_failed_before_an_interrupt_is_told(tmp_path, talk, fake, capsys):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    write(tmp_path / "b.wav", talk)
    original = Fake.__call__

    class Stopping(Fake):
        def __call__(self, pieces, budget=None):
            os.kill(os.getpid(), signal.SIGINT)
            return original(self, pieces, budget)

    fake.__class__ = Stopping
    assert cli.main(["transcribe", str(tmp_path), "--max-seconds", "4"]) == 130
    err = capsys.readouterr().err
    assert "sounding: " + str(tmp_path / "a.wav") in err
    assert "stopped in b.wav after 1 of 3 pieces; the same command goes on" in err


def test_a_second_interrupt_does_not_wait(tmp_path, talk):
    class Stuck(Fake):
        def __call__(self, pieces, budget=None):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        run([write(tmp_path / "a.wav", talk)], Stuck())


def test_many_files_are_counted_with_progress_and_an_interrupt_ends_it(tmp_path, monkeypatch):
    seen, notes = [], []

    def length(source):
        seen.append(source.name)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    monkeypatch.setattr(module, "_length", length)
    monkeypatch.setattr("sounding.progress._lines", lambda *_: lambda _, note: notes.append(note))
    sources = [Source(tmp_path / f"{i}.wav", f"{i}.wav", tmp_path, str(i)) for i in range(200)]
    with pytest.raises(Interrupted, match="stopped before the first file"):
        transcribe(sources, Job(Fake()))
    assert notes == seen[:6]


# --- names ----------------------------------------------------------------------------------


LONG = ["a" * 236 + ".wav", "b" * 250 + ".wav", "é" * 120 + ".wav"]


@pytest.mark.parametrize("name", LONG)
def test_a_long_name_is_transcribed_or_fails_alone(tmp_path, talk, name):
    root, out = tmp_path / "in", tmp_path / "out"
    path = write(root / name, talk)
    write(root / "z.wav", talk)
    failures = run([root], Fake(), out)
    assert (out / "z.txt").exists()
    assert [path.stem in failure for failure in failures] == [True] * (
        not (out / f"{path.stem}.txt").exists()
    )


@pytest.mark.parametrize("name", [*LONG, "c" * 251 + ".wav"])
def test_a_journal_has_a_name_that_fits_and_is_of_this_file_alone(tmp_path, name):
    (source,) = find_sources([write(tmp_path / name, silence(1))])
    other = Source(Path(f"{name[:-5]}x.wav"), name, tmp_path, name)
    for path in (source.journal, source.journal.with_suffix(".lock")):
        assert len(os.fsencode(path.name)) <= 255
    assert source.journal != other.journal
    if len(os.fsencode(name)) < 250:  # as it always was
        assert source.journal.name == f"{name}.jsonl"


def test_a_text_whose_name_would_be_too_long_is_refused_before_the_work(tmp_path, talk):
    write(tmp_path / ("a" * 251 + ".wav"), talk)
    write(tmp_path / "b.wav", talk)
    fake = Fake()
    (failure,) = run([tmp_path], fake, tmp_path / "out", formats=("txt", "json"))
    assert "256 bytes, and 255 are allowed: rename the file" in failure
    assert sum(fake.calls) == 2
    assert (tmp_path / "out" / "b.json").exists()


@pytest.mark.parametrize("name", ["...wav", "..wav", ".hidden.wav", ".wav"])
def test_a_name_of_dots_stays_inside_the_output(tmp_path, talk, name):
    path = write(tmp_path / "in" / name, talk, format="WAV")
    out = tmp_path / "deep" / "out"
    assert run([path], Fake(), out, formats=("txt", "json")) == []
    below = [item for item in tmp_path.rglob("*") if item.is_file() and item != path]
    assert len(below) == 4
    assert all(out in item.parents for item in below)
    assert json.loads((out / f"{Path(name).stem}.json").read_text())["file"] == name
    again = Fake()
    assert run([path], again, out) == []
    assert again.calls == []


def test_a_name_that_is_no_utf_8_is_transcribed(tmp_path, talk, fake, capsys):
    root, out = tmp_path / "in", tmp_path / "out"
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        write(root / "cafe.wav", talk).rename(root / name)
    except OSError:
        pytest.skip("no such names on this file system")
    write(root / "z.wav", talk)
    (root / os.fsdecode(b"bad\xff.wav")).touch()
    command = ["transcribe", str(root), "--out", str(out), "--format", "txt,srt,vtt,json"]
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "2 of 3 files are transcribed" in said.out
    assert "an empty file" in said.err
    assert json.loads((out / os.fsdecode(b"caf\xe9.json")).read_text())["file"] == "caf\\udce9.wav"
    assert (out / os.fsdecode(b"caf\xe9.txt")).read_text() == (out / "z.txt").read_text()


def test_a_name_with_markup_does_not_end_the_run_on_a_terminal(tmp_path, talk, monkeypatch):
    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(
        "sounding.progress.Console", lambda **_: Console(file=screen, force_terminal=True, width=99)
    )
    write(tmp_path / "x [" / "b][red].wav", talk)
    assert run([tmp_path], Fake()) == []
    assert "x [/b][red].wav" in screen.getvalue()


def test_a_text_never_replaces_the_audio(tmp_path, talk):
    path = write(tmp_path / "a.txt", talk, format="WAV")
    before = path.read_bytes()
    (failure,) = run([path], Fake(), overwrite=True)
    assert "is the audio itself" in failure
    assert path.read_bytes() == before
    assert run([path], Fake(), tmp_path / "out") == []


# --- inputs and outputs that are not there --------------------------------------------------


def test_an_input_that_is_not_there_does_not_stop_the_others(tmp_path, talk, fake, capsys):
    path = write(tmp_path / "a.wav", talk)
    (tmp_path / "none").mkdir()
    inputs = [str(tmp_path / "missing.wav"), str(tmp_path / "none"), str(path)]
    assert cli.main(["transcribe", *inputs]) == 1
    said = capsys.readouterr()
    assert "missing.wav: no such file or directory" in said.err
    assert "none: no audio in it" in said.err
    assert "1 of 3 files are transcribed" in said.out
    assert path.with_suffix(".txt").exists()
    for empty in ([""], ["a.wav", "--out", ""]):  # as of a variable that is not set
        assert cli.main(["transcribe", *empty]) == 2
        assert "is empty" in capsys.readouterr().err


def test_a_directory_that_cannot_be_read_is_told(tmp_path, talk, monkeypatch):
    write(tmp_path / "a.wav", talk)
    write(tmp_path / "closed" / "b.wav", talk)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (failure,) = run([tmp_path], Fake())
    assert "closed: cannot be read (Permission denied)" in failure
    assert (tmp_path / "a.txt").exists()


def test_a_place_where_nothing_can_be_written_is_an_error_of_its_own_files(tmp_path, talk):
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "closed" / "a.wav", talk)
    write(root / "z.wav", talk)
    out.mkdir()
    (out / "closed").touch()  # where the directory would be
    fake = Fake()
    (failure,) = run([root], fake, out)
    assert "a.wav cannot be written to" in failure
    assert "give another --out" in failure
    assert sum(fake.calls) == 2  # of the other file
    assert (out / "z.txt").exists()


def test_a_full_disk_says_where_and_what_failed_before(tmp_path, talk, fake, capsys, monkeypatch):
    (tmp_path / "a.wav").touch()
    write(tmp_path / "b.wav", talk)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["transcribe", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "a.wav: an empty file" in err
    assert "make room there or give another --out; the same command goes on" in err


def test_no_room_for_standard_input_names_the_way_out(talk, monkeypatch):
    class Full(io.BytesIO):
        def read(self, size=-1):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"standard input cannot be copied .* set TMPDIR"):
        transcribe_stream(Full(), Job(Fake()))


# --- files that change ----------------------------------------------------------------------


class Doing(Fake):
    """Does something to the world in its first call."""

    def __init__(self, deed):
        super().__init__()
        self.deed = deed

    def __call__(self, pieces, budget=None):
        if not self.calls:
            self.deed()
        return super().__call__(pieces, budget)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_file_that_changes_meanwhile_gets_no_text_and_is_done_anew(tmp_path, talk, pieces):
    path = write(tmp_path / "a.wav", talk)
    write(tmp_path / "b.wav", talk)
    seconds = {1: 28, 3: 4}[pieces]
    doing = Doing(lambda: write(path, talk[RATE:]))
    (failure,) = run([tmp_path], doing, max_seconds=seconds)
    assert "a.wav: changed while it was transcribed" in failure
    assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "b.txt").exists()
    assert run([tmp_path], Fake(), max_seconds=seconds) == []
    run([path], Fake(), tmp_path / "whole", max_seconds=seconds)
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "whole" / "a.txt").read_bytes()


def test_a_file_that_changes_while_the_detector_listens_gets_no_text(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", silence(2))
    listen = module.listen

    def slow(blocks):
        made = listen(blocks)
        write(path, silence(3))
        return made

    monkeypatch.setattr(module, "listen", slow)
    (failure,) = run([path], Fake())
    assert "changed while" in failure
    assert not (tmp_path / "a.txt").exists()


def test_a_file_that_vanishes_meanwhile_loses_no_piece(tmp_path, talk):
    path = write(tmp_path / "a.wav", talk)
    data = path.read_bytes()
    write(tmp_path / "b.wav", talk)
    (failure,) = run([tmp_path], Doing(path.unlink), max_seconds=4)
    assert "a.wav: cannot be read (No such file or directory)" in failure
    assert (tmp_path / "b.txt").exists()
    path.write_bytes(data)
    again = Fake()
    assert run([path], again, max_seconds=4) == []
    assert again.calls == []
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()


# --- journals -------------------------------------------------------------------------------

HEAD = {
    "format": 1, "audio": "0", "settings": {"budget": 1}, "duration": 2.0, "seconds": 0.1,
    "cuts": [[0.0, 1.0], [1.0, 2.0]],
}  # fmt: skip
PIECE = {
    "start": 0.0, "end": 1.0, "text": "a", "executed_layers": [0, 1], "repetitive": False,
    "seconds": 0.5,
}  # fmt: skip


def lines(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


DAMAGED = {
    "no object": lines([HEAD]),
    "another format": lines({**HEAD, "format": 2}),
    "no format": lines({k: v for k, v in HEAD.items() if k != "audio"}),
    "a number for a text": lines({**HEAD, "audio": 5}),
    "cuts that are none": lines({**HEAD, "cuts": 5}),
    "cuts of three": lines({**HEAD, "cuts": [[0.0, 1.0, 2.0]]}),
    "cuts of texts": lines({**HEAD, "cuts": [["a", "b"]]}),
    "cuts out of order": lines({**HEAD, "cuts": [[1.0, 2.0], [0.0, 1.0]]}),
    "a cut behind the end": lines({**HEAD, "cuts": [[0.0, 1e300]]}),
    "a cut before the start": lines({**HEAD, "cuts": [[-1.0, 1.0]]}),
    "no duration": lines({**HEAD, "duration": 0}),
    "nan": lines({**HEAD, "duration": float("nan")}),
    "infinity": lines({**HEAD, "seconds": float("inf")}),
    "nan in a setting": lines({**HEAD, "settings": {"budget": float("nan")}}),
    "a huge number": lines(HEAD).replace(b"2.0", b"1e999"),
    "a huge whole number": lines(HEAD).replace(b"2.0", b"9" * 5000),
    "deep nesting": b"[" * 100_000 + b"\n",
    "deep settings": lines(HEAD).replace(b'{"budget": 1}', b'{"a":' * 999 + b"1" + b"}" * 999),
    "no utf-8": b"\xff\xfe\n",
    "layers of texts": lines(HEAD, {**PIECE, "executed_layers": ["0"]}),
    "a flag for a layer": lines(HEAD, {**PIECE, "executed_layers": [True]}),
    "layers of none": lines(HEAD, {**PIECE, "executed_layers": None}),
    "a text of a number": lines(HEAD, {**PIECE, "text": 5}),
    "seconds of nan": lines(HEAD, {**PIECE, "seconds": float("nan")}),
    "an unknown name": lines(HEAD, {**PIECE, "more": 1}),
    "no piece": lines(HEAD, [1, 2]),
    "a piece elsewhere": lines(HEAD, {**PIECE, "end": 1.5}),
    "too many pieces": lines(HEAD, PIECE, {**PIECE, "start": 1.0, "end": 2.0}, PIECE),
    "an empty line": lines(HEAD) + b"\n",
}


def test_a_journal_of_before_is_read(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(lines(HEAD, PIECE))
    journal = Journal.read(path)
    assert journal is not None
    assert journal.pieces == [Piece(0.0, 1.0, "a", (0, 1), False, 0.5)]
    assert (journal.finished, journal.position) == (False, 1.0)
    path.write_bytes(lines({**HEAD, "duration": 2, "cuts": [[0, 1], [1, 2]]}, {**PIECE, "end": 1}))
    assert Journal.read(path) is not None


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_journal_is_one_line_that_names_it(tmp_path, damage):
    path = tmp_path / "j.jsonl"
    path.write_bytes(damage)
    with pytest.raises(OutputError, match=r"j\.jsonl is damaged .*: delete it") as caught:
        Journal.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_journal_that_is_no_file_does_not_hang(tmp_path, talk):
    write(tmp_path / "a.wav", talk)
    write(tmp_path / "b.wav", talk)
    write(tmp_path / "c.wav", talk)
    (tmp_path / ".transcripts" / "b.wav.jsonl").mkdir(parents=True)
    os.mkfifo(tmp_path / ".transcripts" / "a.wav.jsonl")
    failures = run([tmp_path], Fake())
    assert ["is damaged" in failure for failure in failures] == [True, True]
    assert (tmp_path / "c.txt").exists()


# --- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize("given", ["SRT, .txt,srt", "srt,txt", ".SRT,.TXT", "srt,,txt,"])
def test_formats_are_named_in_any_way(given, tmp_path, talk, fake):
    assert format_names(given) == ["srt", "txt"]
    path = write(tmp_path / "a.wav", talk)
    assert cli.main(["transcribe", str(path), "--format", given]) == 0
    assert path.with_suffix(".srt").exists()
    assert path.with_suffix(".txt").exists()


@pytest.mark.parametrize("given", ["", ",", "doc", "txt doc", "txt;srt"])
def test_formats_that_are_none(given, capsys):
    assert cli.main(["transcribe", "a.wav", "--format", given]) == 2
    assert "use some of txt, srt, vtt, json" in capsys.readouterr().err


def test_standard_input_that_is_none_is_said(monkeypatch, capsys):
    pty = pytest.importorskip("pty", reason="no terminals here")
    outer, inner = pty.openpty()
    with os.fdopen(outer, "rb"), os.fdopen(inner) as terminal:
        for stdin, problem in ((None, "is closed"), (terminal, "nothing is piped into it")):
            monkeypatch.setattr(sys, "stdin", stdin)  # None is how Python has it after <&-
            assert cli.main(["transcribe", "-"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("sounding: - is standard input, ")
            assert problem in line


def test_json_of_any_transcript_is_json():
    made = Transcript(os.fsdecode(b"\xff.wav"), 1.0, {}, 0.1, (Piece(0, 1, "a", (), False, 1.0),))
    assert json.loads(FORMATS["json"](made).encode())["file"] == "\\udcff.wav"


def test_failures_are_told_as_they_come(tmp_path, talk):
    (tmp_path / "a.wav").touch()
    write(tmp_path / "b.wav", talk)
    told: list[str] = []

    class Looking(Fake):
        def __call__(self, pieces, budget=None):
            assert len(told) == 1
            return super().__call__(pieces, budget)

    failures = transcribe(find_sources([tmp_path]), Job(Looking()), told.append)
    assert failures == told
    assert np.size(told) == 1
