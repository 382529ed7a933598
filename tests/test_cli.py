"""The command line: the whole way on a tiny backbone, and what people do wrong."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf

from sounding.cli import main


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
    "command",
    [
        [],
        ["train"],
        ["recipes"],
        ["sweep"],
        ["run"],
        ["inspect"],
        ["compare"],
        ["report"],
        ["demo"],
    ],
)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = "import sys, sounding.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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


@pytest.mark.parametrize("budget", ["0", "5", "-1", "1.5", "nan", "many", "150%"])
def test_a_budget_out_of_range_says_what_is_allowed(run, tones, capsys, budget):
    text = error(capsys, "run", str(run), str(tones / "test0.wav"), f"--budget={budget}")
    assert "kept layers (1 to 4)" in text


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

    monkeypatch.setattr("sounding.core.model.load", interrupt)
    assert main(["inspect", str(run)]) == 130
    assert "interrupted" in capsys.readouterr().err
