"""The command line: the whole way on a tiny backbone, and what people do wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from tiny_runs import RATE, clip

from sounding.cli.app import COMMANDS, main, make_parser
from sounding.runs.predict import Prediction


@pytest.fixture(scope="module")
def run(tones, whisper, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    command = ["train", "--backbone", str(whisper), "--data", str(tones), "--out", str(out)]
    assert main([*command, "--epochs", "1", "--batch-size", "8"]) == 0
    return out


def test_train_sweep_run_and_inspect(run, tones, tmp_path, capsys):
    files = {name: tmp_path / f"s.{name}" for name in ("json", "csv", "md")}
    command = ["sweep", str(run), "--data", str(tones), "--rounds", "1"]
    command += [
        "--json",
        str(files["json"]),
        "--csv",
        str(files["csv"]),
        "--card",
        str(files["md"]),
    ]
    assert main(command) == 0
    assert "input-driven" in capsys.readouterr().out
    rows = json.loads(files["json"].read_text())["rows"]
    kept = [(row["method"], row["kept_layers"]) for row in rows]
    assert kept == [("input", k) for k in (1, 2, 3, 4)] + [("input-mean", k) for k in (2, 3)]
    assert len(list(csv.reader(files["csv"].open()))) == 7
    assert files["md"].read_text().startswith("---\n")

    clips = [str(tones / "test0.wav"), str(tones / "test1.wav")]
    assert main(["run", str(run), *clips, "--budget", "3", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["kept_layers"] for answer in answers] == [3, 3]
    assert [len(answer["executed_layers"]) for answer in answers] == [3, 3]

    assert main(["run", str(run), *clips, "--budget", "mean:2", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(a["kept_layers"] == len(a["executed_layers"]) for a in answers)
    assert main(["run", str(run), *clips, "--budget", "mean:9"]) == 2
    assert "mean budget" in capsys.readouterr().err

    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "layer 3" in out
    assert "selector" in out


@pytest.mark.parametrize(
    "command", [[]] + [[module.__name__.rpartition(".")[2]] for module in COMMANDS]
)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def error(capsys, *command):
    assert main(list(command)) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("sounding: ")
    assert "Traceback" not in captured.err
    return captured.err


def write_audio(tmp_path, name):
    rng = np.random.default_rng(0)
    path = tmp_path / f"{name}.wav"
    if name == "corrupt":
        path.write_bytes(b"RIFF" + bytes(range(200)))
    elif name == "empty":
        path.touch()
    elif name == "nan":
        sf.write(path, np.full(16000, np.nan, "f4"), 16000, subtype="FLOAT")
    elif name == "short":
        sf.write(path, rng.normal(0, 0.1, 160), 16000)
    elif name == "long":
        path = tmp_path / "long.flac"
        sf.write(path, rng.normal(0, 0.01, 600 * 8000), 8000)
    return str(path)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("corrupt", "cannot be decoded"),
        ("empty", "an empty file"),
        ("nan", "NaN"),
        ("short", "0.010 s"),
        ("long", "600.0 s, expected at most 30 s"),
        ("missing", "no such file"),
    ],
)
def test_a_clip_that_cannot_be_used(run, tmp_path, capsys, name, match):
    assert match in error(capsys, "run", str(run), write_audio(tmp_path, name))


@pytest.mark.filterwarnings("ignore:.*silent")
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 8), (16000, 0)])
def test_8_khz_8_channels_and_silence_are_classified(run, tmp_path, capsys, rate, channels):
    samples = np.random.default_rng(0).normal(0, 0.1, (rate // 2, max(1, channels)))
    sf.write(tmp_path / "a.wav", samples * bool(channels), rate)
    assert main(["run", str(run), str(tmp_path / "a.wav"), "--budget", "1"]) == 0
    assert "1 of 4" in capsys.readouterr().out


def test_ten_minutes_can_be_cut(run, tmp_path, capsys):
    clip = write_audio(tmp_path, "long")
    assert main(["run", str(run), clip, "--max-seconds", "0.5", "--budget", "2"]) == 0


@pytest.mark.parametrize("budget", ["0", "5", "-1", "0.5", "1.5", "nan", "many", "150%"])
def test_a_budget_out_of_range_says_what_is_allowed(run, tones, capsys, budget):
    text = error(capsys, "run", str(run), str(tones / "test0.wav"), f"--budget={budget}")
    assert budget in text
    assert ("there are 4 layers" if budget == "5" else "give a number of kept layers") in text


def test_a_class_without_training_clips(whisper, tones, tmp_path, capsys):
    folder = shutil.copytree(tones, tmp_path / "tones")
    lines = (folder / "metadata.csv").read_text().replace("test0.wav,low", "test0.wav,middle")
    (folder / "metadata.csv").write_text(lines)
    command = ("train", "--backbone", str(whisper), "--data", str(folder), "--out", str(tmp_path))
    assert "classes in test without any training clip: middle" in error(capsys, *command)


def test_missing_columns_and_files(whisper, tones, tmp_path, capsys):
    folder = shutil.copytree(tones, tmp_path / "tones")
    command = ["train", "--backbone", str(whisper), "--data", str(folder), "--out", "x"]
    (folder / "test3.wav").unlink()
    assert "1 are missing: test3.wav" in error(capsys, *command)
    (folder / "metadata.csv").write_text("file_name,class\ntest1.wav,low\n")
    assert "neither a column 'label' nor 'text'" in error(capsys, *command)


def test_a_bad_clip_among_the_training_clips_is_named(whisper, tones, tmp_path, capsys):
    folder = shutil.copytree(tones, tmp_path / "tones")
    (folder / "train7.wav").write_bytes(b"RIFF" + bytes(range(200)))
    command = ["train", "--backbone", str(whisper), "--data", str(folder)]
    assert "train7.wav: cannot be decoded" in error(capsys, *command, "--out", str(tmp_path / "r"))


@pytest.mark.parametrize(
    ("setting", "match"),
    [("lr=1", "unknown setting lr"), ("epochs", "NAME=VALUE"), ("seed=x", "seed takes an int")],
)
def test_settings_that_are_wrong(tones, capsys, setting, match):
    command = ("train", "--data", str(tones), "--out", "x", "--set", setting)
    assert match in error(capsys, *command)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_the_costs_of_no_length_are_refused(run, capsys, seconds):
    assert "--seconds is" in error(capsys, "inspect", str(run), "--seconds", seconds)


@pytest.mark.parametrize(
    ("option", "match"), [("--config", "No such file"), ("--recipe", "is no recipe")]
)
def test_an_empty_name_of_a_file_is_not_the_defaults(tones, tmp_path, capsys, option, match):
    command = ("train", option, "", "--data", str(tones), "--out", str(tmp_path / "run"))
    assert match in error(capsys, *command)
    assert not (tmp_path / "run").exists()


def test_what_is_no_run(tones, tmp_path, capsys):
    assert "is not a run" in error(capsys, "sweep", str(tmp_path), "--data", str(tones))
    assert "is not a run" in error(capsys, "run", str(tmp_path / "none"), "a.wav")
    assert "sounding.json" in error(capsys, "inspect", str(tmp_path))


def test_a_tampered_model_is_refused(run, tones, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    assert "its sha256 differs" in error(capsys, "run", str(copy), str(tones / "test0.wav"))


def test_unknown_backbone_lists_the_known_ones(tones, tmp_path, capsys):
    command = ["train", "--backbone", "./nothing", "--data", str(tones)]
    text = error(capsys, *command, "--out", str(tmp_path / "run"))
    assert "whisper-base" in text


def test_interrupt_has_its_own_exit_code(run, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sounding.model.loading.load", interrupt)
    assert main(["inspect", str(run)]) == 130
    assert "interrupted" in capsys.readouterr().err


# What the commands share


LISTS = {  # command -> (its list, what else it needs)
    "run": ("clips", ["RUN"]),
    "sweep": ("runs", []),
    "report": ("runs", []),
    "transcribe": ("inputs", []),
}


@pytest.mark.parametrize("command", LISTS)
def test_options_stand_before_behind_and_between_the_files(command):
    name, more = LISTS[command]
    option = {"run": "--budget", "sweep": "--data", "report": "--out", "transcribe": "--budget"}
    options = [option[command], "3"]
    orders = (
        [*more, "a", "b", *options],
        [*options, *more, "a", "b"],
        [*more, *options, "a", "b"],
        [*more, "a", *options, "b"],
        [*more, *options, "--", "a", "b"],
    )
    parsed = [make_parser().parse_args([command, *order]) for order in orders]
    assert all(vars(one) == vars(parsed[0]) for one in parsed)
    assert getattr(parsed[0], name) == ["a", "b"]
    dashed = make_parser().parse_args([command, *more, *options, "--", "-a", "-"])
    assert getattr(dashed, name) == ["./-a", "-"]


@pytest.mark.parametrize(
    "command",
    [["run", "RUN", "a", "--nonsense", "b"], ["transcribe", "--budget", "3"], ["run", "--json"]],
)
def test_what_cannot_be_parsed_still_is_an_error(command, capsys):
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args(command)
    assert stop.value.code == 2
    assert "usage: sounding" in capsys.readouterr().err


def alone(*command, stdin=None, **variables):
    """A command in a process of its own, which pytest does not listen to."""
    code = "import sys; from sounding.cli import main; sys.exit(main())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Good ones, and bad ones among them."""
    root = tmp_path_factory.mktemp("clips")
    wave = clip(0.4)
    sf.write(root / "a.wav", wave, RATE)
    (root / "bad.wav").write_bytes(b"no audio")
    sf.write(root / "silent.wav", 0 * wave, RATE)
    sf.write(root / "cafe.flac", wave, RATE)
    (root / "cafe.flac").rename(root / os.fsdecode(b"caf\xe9.flac"))
    sf.write(root / "z.wav", wave, RATE)
    return root


@pytest.fixture(scope="module")
def models(run, exports):
    """The same commands answer from a run, and from an exported model."""
    return {"trained": run, "exported": exports("whisper").one}


GOOD = ["a.wav", "caf\\udce9.flac", "z.wav"]


@pytest.mark.parametrize("more", [[], ["--stream", "0.2"], ["--governor", "1e6ms"]])
@pytest.mark.parametrize("kind", ["trained", "exported"])
def test_a_bad_clip_does_not_stop_the_others(models, clips, kind, more, tmp_path, capsys):
    if more and kind == "trained":
        pytest.skip("for exported models")
    if "--governor" in more:
        path = tmp_path / "model.onnx"
        path.write_bytes(models[kind].read_bytes())
        calibrate = ["calibrate", str(path), "--threads", "1", "--seconds", "0.4", "--rounds", "2"]
        assert main(calibrate) == 0
        models, more = {kind: path}, [*more, "--threads", "1"]
    files = [str(clips / "a.wav"), str(clips / "bad.wav"), str(clips / "missing.wav")]
    files += [str(clips / os.fsdecode(b"caf\xe9.flac")), str(clips / "z.wav")]
    capsys.readouterr()
    assert main(["run", str(models[kind]), *files, *more]) == 1
    predicted = capsys.readouterr()
    for name in GOOD:
        assert f"{name}" in predicted.out
    assert "bad" not in predicted.out
    lines = predicted.err.splitlines()
    assert [line.startswith("sounding: ") for line in lines] == [True, True]
    assert "bad.wav: cannot be decoded" in lines[0]
    assert "missing.wav: no such file" in lines[1]

    assert main(["run", str(models[kind]), "--json", *files, *more]) == 1
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [one for one in predicted if "error" in one]
    assert [set(one) for one in failed] == [{"file", "error"}] * 2
    assert failed[0]["file"] == str(clips / "bad.wav")
    assert main(["run", str(models[kind]), files[1], files[2], *more]) == 2  # no answer at all
    assert capsys.readouterr().out == ""


def test_a_budget_that_is_not_allowed_is_said_once_and_not_of_each_clip(models, clips, capsys):
    for kind in models:
        files = [str(clips / "bad.wav"), str(clips / "a.wav"), str(clips / "z.wav")]
        told = error(capsys, "run", str(models[kind]), *files, "--budget", "9")
        assert "budget '9' is not allowed: there are" in told


def test_an_answer_that_is_nan_is_an_error_and_never_json(run, clips, capsys, monkeypatch):
    monkeypatch.setattr(
        "sounding.evaluation.classify.predict",
        lambda *_: Prediction(
            ["low"], torch.ones(1, 4, dtype=torch.bool), torch.full((1, 2), np.nan)
        ),
    )
    assert main(["run", str(run), str(clips / "a.wav"), "--json"]) == 2
    out = capsys.readouterr().out
    assert "NaN or infinite" in json.loads(out)["error"]
    assert "NaN," not in out


def test_a_clip_that_is_shorter_than_a_window_is_not_passed_over(models, clips, capsys):
    command = ["run", str(models["exported"]), str(clips / "a.wav"), "--stream", "0.5"]
    assert main(command) == 2
    assert "a.wav: shorter than a window of 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize("window", ["0", "-1", "nan", "inf"])
def test_a_window_that_is_none_is_refused(models, clips, capsys, window):
    command = ["run", str(models["exported"]), str(clips / "a.wav"), f"--stream={window}"]
    assert "the hop is above 0" in error(capsys, *command)


def test_a_warning_is_one_line_with_the_name_of_the_file(models, clips):
    silent = clips / "silent.wav"
    process = alone("run", models["exported"], silent, silent, clips / "z.wav")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.decode().splitlines() == [f"sounding: {silent}: the audio is silent"]
    assert len(out.splitlines()) == 3


def test_a_name_is_printed_whatever_the_encoding(models, clips):
    name = os.fsencode(clips) + b"/caf\xe9.flac"
    process = alone("run", models["exported"], os.fsdecode(name), PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert b"caf\\udce9.flac: " in out


def test_bad_files_in_a_watched_directory_do_not_end_it(models, tmp_path, capsys):
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    def bring():
        time.sleep(0.3)
        sf.write(inbox / "1.wav", clip(0.4), RATE)
        (inbox / "2.wav").write_bytes(b"no audio")
        sf.write(inbox / "3.wav", clip(31), RATE)
        sf.write(inbox / "4.wav", clip(0.02), RATE)
        (inbox / "5.wav").mkdir()
        os.mkfifo(inbox / "6.wav")
        time.sleep(2)
        sf.write(inbox / "7.wav", clip(0.4), RATE)
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=bring)
    thread.start()
    assert main(["run", str(models["exported"]), "--watch", str(inbox), "--json"]) == 130
    thread.join()
    predicted = capsys.readouterr()
    answers = {Path(one["file"]).name: one for one in map(json.loads, predicted.out.splitlines())}
    assert sorted(answers) == [f"{number}.wav" for number in range(1, 8)]
    assert [name for name in answers if "label" in answers[name]] == ["1.wav", "7.wav"]
    assert predicted.err.count("sounding: ") == 6  # five files, and the interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_the_governor_saw_is_written_at_any_end(models, tmp_path, number, capsys):
    path, log = tmp_path / "model.onnx", tmp_path / "log.csv"
    path.write_bytes(models["exported"].read_bytes())
    main(["calibrate", str(path), "--threads", "1", "--seconds", "0.4", "--rounds", "2"])
    sf.write(tmp_path / "a.wav", clip(0.4), RATE)
    threading.Timer(1.5, os.kill, (os.getpid(), number)).start()
    command = ["run", str(path), str(tmp_path / "a.wav"), "--watch", str(tmp_path)]
    command += ["--threads", "1", "--governor", "1e6ms", "--log", str(log)]
    assert main([*command, "--plot", str(tmp_path / "plot.png")]) == 130
    assert len(log.read_text().splitlines()) == 2


def test_threads_wait_quietly_unless_the_user_says_otherwise():
    code = "import os, sys; from sounding.cli import main; main(['run', 'none.onnx', 'a.wav'])\n"
    code += "print('WAIT', os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.splitlines()[-1] == f"WAIT {expected}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_output_that_cannot_be_written_is_an_error(models, clips):
    code = "import sys; from sounding.cli import main; sys.exit(main())"
    command = ["run", str(models["exported"]), str(clips / "a.wav")]
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-c", code, *command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert process.returncode == 2
    assert "sounding: [Errno 28] No space left on device" in process.stderr
    assert "Traceback" not in process.stderr
