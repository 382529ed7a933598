"""The directory of a run: for one training at a time, whole after a kill, and nothing but data."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from sounding.cli.app import main
from sounding.data.folder import load_folder
from sounding.files import LOCK, UNSET, WriteError, locked, seal_file, write_json
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run, new_run
from sounding.study.compare import StudyConfig, compare
from sounding.tasks.decoder import Decoder
from sounding.training import checkpoint, steps
from sounding.training import loop as module
from sounding.training.loop import train

PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in directories here")


@pytest.fixture(scope="module")
def config(whisper):
    return TrainConfig(backbone=str(whisper), epochs=1, batch_size=8, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def trained(config, tones, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(config, load_folder(tones), out)
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def command(config, tones, out, tmp_path):
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    made = [sys.executable, "-c", "import sys, sounding.cli; sys.exit(sounding.cli.main())"]
    return [
        *made, "train", "--config", tmp_path / "c.yaml", "--data", tones, "--out", out
    ]  # fmt: skip


def one_line(error, name):
    assert str(name) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


# --- one training at a time -----------------------------------------------------------------


def test_a_second_training_of_a_run_is_told_at_once_that_it_is_in_use(
    config, tones, tmp_path, capsys, monkeypatch
):
    slow = replace(config, epochs=200)
    out = tmp_path / "run"
    first = subprocess.Popen(command(slow, tones, out, tmp_path), stderr=subprocess.DEVNULL)
    try:
        while not (out / "checkpoint.safetensors").exists():
            assert first.poll() is None
            time.sleep(0.01)
        again = ["train", "--config", str(tmp_path / "c.yaml"), "--data", str(tones)]
        assert main([*again, "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert f"{out} is in use by another process" in told
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    taken = []

    def stopping(run, state, *_):
        taken.append(state.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "one_step", stopping)
    with pytest.raises(KeyboardInterrupt):  # the kill let go of it, and it goes on
        train(slow, load_folder(tones), out)
    assert taken[0] > 0


def test_a_finished_run_is_loaded_also_while_another_process_uses_it(config, tones, run):
    with locked(run):
        assert train(config, load_folder(tones), run).labels == ["high", "low"]


def test_a_study_and_a_demo_are_for_one_process_at_a_time(tones, tmp_path):
    from sounding.demo import demo

    with locked(tmp_path / "out"):
        with pytest.raises(ValueError, match="out is in use by another process"):
            compare(StudyConfig(variants=("full",), seeds=(0,)), [tones], tmp_path / "out")
        with pytest.raises(ValueError, match="out is in use by another process"):
            demo(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_a_directory_of_other_files_is_left_as_it_is(config, tones, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files"):
        train(config, load_folder(tones), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- kills and full disks -------------------------------------------------------------------


def test_what_a_kill_in_a_checkpoint_left_is_removed_by_the_same_command(config, tones, tmp_path):
    out = tmp_path / "run"
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys, sounding.files\n"
        "def killed(path):\n    os.kill(os.getpid(), 9)\n"
        "import sounding.training.checkpoint as module\n"
        "module.seal_file = killed\n"  # after the checkpoint is written, before it has its name
        "import sounding.cli\nsys.exit(sounding.cli.main())\n"
    )
    made = command(config, tones, out, tmp_path)
    code = subprocess.run([sys.executable, script, *made[3:]], stderr=subprocess.DEVNULL).returncode
    assert code == -signal.SIGKILL
    (leftover,) = out.glob(".checkpoint*.tmp")
    assert leftover.stat().st_size > 10_000
    (out / ".checkpoint.safetensors.abcd_123.tmp").touch()  # of an earlier version
    subprocess.run(made, stderr=subprocess.DEVNULL, check=True)
    assert not list(out.glob(".*.tmp"))
    load_run(out)


def test_a_checkpoint_on_a_full_disk_says_where_and_keeps_the_old_one(
    config, tones, tmp_path, capsys
):
    """By a limit of the size of a file, which is met in the middle of the weights."""
    out = tmp_path / "run"
    limited = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), -1))\n"
        "import sounding.cli\nsys.exit(sounding.cli.main())\n"
    )
    made = command(config, tones, out, tmp_path)[3:]
    done = subprocess.run(
        [sys.executable, "-c", limited, "20000", *made], capture_output=True, text=True
    )
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("sounding: ")]
    assert told[0].startswith(f"sounding: {out / 'checkpoint.safetensors'} cannot be written")
    assert "make room" in told[0]
    assert "the same command goes on" in told[0]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in out.iterdir()) == [LOCK, "config.yaml", "features"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    train(config, load_folder(tones), out)


def test_a_full_disk_at_the_second_checkpoint_leaves_the_first(
    config, tones, tmp_path, monkeypatch
):
    saves, seal = [], checkpoint.seal_file

    def full(path):
        saves.append(path)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(path)

    monkeypatch.setattr(checkpoint, "seal_file", full)
    folder = load_folder(tones)
    with pytest.raises(WriteError, match=r"checkpoint\.safetensors cannot be written .No space"):
        train(config, folder, tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    train(config, folder, tmp_path / "run")
    train(config, folder, tmp_path / "whole")
    for name in ("model/model.safetensors", "log.csv"):
        a, b = (tmp_path / one / name for one in ("run", "whole"))
        assert a.read_bytes() == b.read_bytes()


# --- checkpoints ----------------------------------------------------------------------------


@pytest.fixture
def stopped(config, tones, tmp_path, monkeypatch):
    """A training that was stopped after its first checkpoint."""
    save = module.TrainState.save

    def stop(state, path):
        save(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.TrainState, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, load_folder(tones), tmp_path / "run")
    monkeypatch.undo()
    return tmp_path / "run"


def rewritten(path, change, metadata=None):
    """A checkpoint whose tensors were changed, with a checksum that fits."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"step": "1", "seal": UNSET, **(metadata or {})})
    seal_file(path)


def other_shape(tensors):
    name = next(name for name, value in tensors.items() if name[:6] == "model." and value.ndim)
    tensors[name] = tensors[name].new_zeros(1)


def a_missing_tensor(tensors):
    del tensors[next(name for name in tensors if name.startswith("model."))]


def other_optimizer(tensors):
    name = next(name for name in tensors if name.endswith("exp_avg"))
    tensors[name] = torch.zeros(3, 3)


CHANGES = {
    "shape": (other_shape, {}),
    "missing": (a_missing_tensor, {}),
    "optimizer": (other_optimizer, {}),
    "more": (lambda tensors: tensors.update({"model.more": torch.zeros(1)}), {}),
    "nameless": (lambda tensors: tensors.update({"more": torch.zeros(1)}), {}),
    "parameter": (lambda tensors: tensors.update({"optimizer.999.step": torch.zeros(1)}), {}),
    "losses": (lambda tensors: tensors.update(losses=torch.zeros(7)), {}),
    "one loss": (lambda tensors: tensors.update(losses=torch.tensor(1.0)), {}),
    "no losses": (lambda tensors: tensors.pop("losses"), {}),
    "step": (lambda tensors: None, {"step": "many"}),
    "negative": (lambda tensors: None, {"step": "-1"}),
    "late": (lambda tensors: tensors.update(losses=torch.zeros(99)), {"step": "99"}),
    "metadata": (lambda tensors: None, {"more": "x"}),
}


@pytest.mark.parametrize("name", [n for n in CHANGES if n != "metadata"])
def test_a_checkpoint_of_something_else_is_refused(config, tones, stopped, name):
    path = stopped / "checkpoint.safetensors"
    rewritten(path, *CHANGES[name])
    with pytest.raises(ValueError, match="is not a checkpoint of this training") as error:
        train(config, load_folder(tones), stopped)
    assert "remove it to start anew" in one_line(error, path)


@pytest.mark.parametrize("place", [0, 3, 9, 60, 100, -1, -5000])
def test_a_changed_bit_of_a_checkpoint_is_refused(config, tones, stopped, place):
    path = stopped / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of this training") as error:
        train(config, load_folder(tones), stopped)
    one_line(error, path)


def test_a_checkpoint_of_before_there_were_seals_goes_on(config, tones, stopped, tmp_path):
    path = stopped / "checkpoint.safetensors"
    save_file(load_file(path), path, metadata={"step": "1"})
    train(config, load_folder(tones), stopped)
    train(config, load_folder(tones), tmp_path / "whole")
    a, b = (one / "model" / "model.safetensors" for one in (stopped, tmp_path / "whole"))
    assert a.read_bytes() == b.read_bytes()


# --- reading a run --------------------------------------------------------------------------


def test_any_changed_bit_of_run_json_is_refused(run):
    path = run / "run.json"
    content = path.read_bytes()
    load_run(run)
    for place in [content.index(b'"high"') + 2, *range(0, len(content), 41)]:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"run\.json (is not the file|is damaged)") as error:
            load_run(run)
        assert "restore it, or train again" in one_line(error, path)


def test_the_settings_of_a_finished_run_are_sealed_too(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("max_seconds: null", "max_seconds: 0.1"))
    with pytest.raises(ValueError, match=r"config\.yaml is not the file that was trained with"):
        load_run(run)


def unsealed(run, **changes):
    """A run as earlier versions wrote it."""
    info = json.loads((run / "run.json").read_text())
    del info["seal"], info["sha256"]
    write_json(run / "run.json", {**info, **changes})
    return run


def test_a_run_of_before_there_were_seals_is_read(run):
    assert load_run(unsealed(run)).labels == ["high", "low"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": "high"}, "labels: expected a list, got 'high'"),
        ({"labels": [1, 2]}, "labels[0]: expected a text, got 1"),
        ({"labels": []}, "labels"),
        ({"labels": ["high"]}, "names 1 classes, and its model knows 2"),
        ({"task": "singing"}, "task: expected 'classification'"),
        ({"task": "text"}, "cannot be loaded"),
        ({"data": []}, "data: expected names with values"),
        ({"steps": "10"}, "steps: expected a whole number"),
        ({"commit": 5}, "commit: expected a text"),
        ({"sha256": {"config.yaml": 1}}, "sha256.config.yaml: expected a text"),
        ({"sha256": {"config.yaml": "0" * 64}}, "config.yaml is not the file"),
    ],
)
def test_run_json_of_wrong_types_gets_one_line(run, changes, told):
    unsealed(run, **changes)
    with pytest.raises(ValueError, match="run") as error:
        load_run(run)
    assert told in one_line(error, run)


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "a: b: c", 9999 * "[", "\0"])
def test_broken_files_of_a_run_get_one_line(run, name, content):
    unsealed(run)
    (run / name).write_text(content)
    if (name, content) in (("config.yaml", ""), ("config.yaml", "null")):
        return  # no settings: all as by default
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        load_run(run)
    one_line(error, run / name)


@PIPES
@pytest.mark.parametrize(
    "name", ["run.json", "config.yaml", "model/preprocessor_config.json", "model/pipe"]
)
def test_a_pipe_in_a_run_is_an_error_and_no_wait(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(ValueError, match=r"pipe|no file|cannot be"):
        load_run(unsealed(run) if name != "run.json" else run)


@PIPES
def test_a_pipe_as_settings_or_recipe_or_checkpoint_is_an_error(config, tones, stopped, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    base = ["train", "--data", str(tones), "--out", str(tmp_path / "o")]
    for option in ("--config", "--recipe"):
        assert main([*base, option, str(tmp_path / "pipe.yaml")]) == 2
    study = ["compare", "--data", str(tones), "--out", str(tmp_path / "s")]
    assert main([*study, "--config", str(tmp_path / "pipe.yaml")]) == 2
    (stopped / "checkpoint.safetensors").unlink()
    os.mkfifo(stopped / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        train(config, load_folder(tones), stopped)


# --- backbones: data, and no code -----------------------------------------------------------


CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import WhisperConfig as Config
from transformers import WhisperFeatureExtractor as Extractor
from transformers import WhisperForAudioClassification as Model
"""


@pytest.mark.parametrize("name", ["preprocessor_config.json", "config.json"])
def test_no_code_of_a_directory_runs_and_nobody_is_asked(
    config, whisper, trained, tmp_path, monkeypatch, name
):
    def asked(*_):
        raise AssertionError("somebody was asked")

    ran = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", asked)
    for source in (whisper, trained):
        root = Path(shutil.copytree(source, tmp_path / source.name))
        model = root / "model" if (root / "model").is_dir() else root
        (model / "custom.py").write_text(CODE.format(ran=str(ran)))
        values = json.loads((model / name).read_text())
        values["auto_map"] = {
            "AutoConfig": "custom.Config",
            "AutoFeatureExtractor": "custom.Extractor",
            "AutoModelForAudioClassification": "custom.Model",
            "AutoModel": "custom.Model",
        }
        for key in ("model_type", "feature_extractor_type", "image_processor_type"):
            values.pop(key, None)
        (model / name).write_text(json.dumps(values))
        if model == root:
            with pytest.raises(ValueError, match=r"needs code of its own|cannot be") as error:
                made_of(config, root)
            one_line(error, root)
        else:  # a run says itself of what kind its model is
            with suppress(ValueError):
                load_run(root)
    assert not ran.exists()


def copy_of(whisper, tmp_path):
    return Path(shutil.copytree(whisper, tmp_path / "backbone"))


def made_of(config, root):
    return new_run(replace(config, backbone=str(root)), ["a", "b"], {})


def test_pickled_weights_are_refused(config, whisper, tmp_path):
    root = copy_of(whisper, tmp_path)
    torch.save(load_file(root / "model.safetensors"), root / "pytorch_model.bin")
    (root / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors") as error:
        made_of(config, root)
    one_line(error, root)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_layers": "2"}, {"encoder_layers": 10**9}, {"encoder_layers": 10**400},
        {"d_model": []}, {"d_model": -5}, {"d_model": 10**12}, {"encoder_attention_heads": 0},
        {"model_type": 5}, {"model_type": "magic"}, {"model_type": None},
        {"architectures": 5}, {"architectures": [[]]}, {"dropout": "much"}, {"id2label": []},
        {"activation_function": "magic"}, {"num_mel_bins": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_of_wrong_types_gets_one_line(config, whisper, tmp_path, change):
    root = copy_of(whisper, tmp_path)
    values = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**values, **change}))
    if "architectures" in change:  # which nothing depends on
        assert made_of(config, root).labels == ["a", "b"]
        return
    with pytest.raises(ValueError, match="backbone") as error:
        made_of(config, root)
    one_line(error, root)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", 9999 * b"["])
def test_broken_json_of_a_backbone_gets_one_line(config, whisper, tmp_path, name, content):
    root = copy_of(whisper, tmp_path)
    (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=str(root)) as error:
        made_of(config, root)
    one_line(error, root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data + b"more",
    ],
)
def test_damaged_weights_of_a_backbone_get_one_line(config, whisper, tmp_path, damage):
    root = copy_of(whisper, tmp_path)
    path = root / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=str(root)) as error:
        made_of(config, root)
    one_line(error, root)


@PIPES
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_pipe_in_a_backbone_is_an_error_and_no_wait(config, whisper, tmp_path, name):
    root = copy_of(whisper, tmp_path)
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(ValueError, match=f"{name} is no file"):
        made_of(config, root)


@pytest.mark.parametrize(
    "change",
    [
        {"hop_length": 10**7}, {"hop_length": 0}, {"hop_length": "160"}, {"n_fft": -1},
        {"n_fft": []}, {"feature_size": 0}, {"sampling_rate": 1}, {"sampling_rate": "16000"},
        {"sampling_rate": None}, {"sampling_rate": 10**9}, {"padding_value": {}},
        {"feature_extractor_type": "magic"}, {"feature_extractor_type": 5},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_features_that_make_none_get_one_line(config, whisper, tmp_path, change):
    root = copy_of(whisper, tmp_path)
    path = root / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if "padding_value" in change:  # which nothing here looks at
        made_of(config, root)
        return
    with pytest.raises(ValueError, match="backbone") as error:
        made_of(config, root)
    one_line(error, root)


def test_a_recognizer_with_a_damaged_tokenizer_gets_one_line(tmp_path):
    tiny.save_speaker(tmp_path / "speaker")
    t.AutoTokenizer.from_pretrained(tmp_path / "speaker")
    (tmp_path / "speaker" / "tokenizer.json").write_text("{")
    config = TrainConfig(backbone=str(tmp_path / "speaker"), task="decoder")
    with pytest.raises(ValueError, match="speaker cannot be loaded as AutoTokenizer") as error:
        Decoder.make_tokenizer(config, None, None)
    one_line(error, tmp_path)


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("language: no", "language takes a text, in quotes; got false (or no, or off)"),
        ("vocabulary: 0500", "0500 would be a number that is not decimal"),
        ("vocabulary: yes", "vocabulary takes a text"),
        ("seed: 1e3", None),
        ("seed: 1.5", "seed takes an int; got 1.5"),
        ("epochs: yes", "epochs takes a float; got true (or yes, or on)"),
        ("batch_size: no", "batch_size takes an int; got false"),
        ("epochs: .inf", ".inf is no number"),
        ("epochs: '.inf'", "epochs takes a float; got '.inf'"),
        ("epochs: 'inf'", "epochs must be finite; got inf"),
        ("epochs: 1e308", "epochs is at most 10,000; got 1e+308"),
        ("epochs: [1]", "epochs takes a float; got [1]"),
        ("lr_encoder: 'nan'", "lr_encoder must be above 0; got nan"),
        ("lr_head: 'inf'", "lr_head must be finite; got inf"),
        ("weight_decay: -1", "weight_decay must be 0 or more"),
        ("max_seconds: 'inf'", "max_seconds must be finite"),
        ("batch_size: 1" + 30 * "0", "is too large"),
        ("batch_size: '1" + 30 * "0" + "'", "batch_size is at most 1,000,000; got 1e+30"),
        ("seed: 4294967296", "seed is at most 4,294,967,295"),
        ("candidates: 1000000000", "candidates is at most 1,000"),
        ("backbone: 5", "backbone takes a text, in quotes; got 5"),
        ("backbone: null", "backbone takes a text, in quotes; got None"),
        ("backbone: {a: b}", "backbone takes a text"),
        ("batch_size: null", "batch_size takes an int; got None"),
        ("lr: 1", "unknown setting lr; known: backbone"),
        ("1: 1", "the name 1 is no text"),
        ("epochs: 1\nepochs: 2", "epochs stands there twice"),
    ],
)
def test_settings_in_yaml_mean_what_they_say_or_are_refused(tmp_path, text, told):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    if told is None:
        assert TrainConfig.from_yaml(path).seed == 1000
        return
    with pytest.raises(ValueError, match=r"c\.yaml") as error:
        TrainConfig.from_yaml(path)
    assert told in one_line(error, path)


def test_settings_of_the_command_line_are_read_for_their_fields():
    values = {"seed": "7", "lr_encoder": "1e-4", "vocabulary": "500", "epochs": "2"}
    config = TrainConfig.from_values(values)
    assert (config.seed, config.lr_encoder, config.vocabulary, config.epochs) == (7, 1e-4, "500", 2)
    assert TrainConfig.from_values({"vocabulary": 500}).vocabulary == "500"
    for name, value in (("epochs", "nan"), ("batch_size", 10**30), ("lr_encoder", "1e999")):
        with pytest.raises(ValueError, match=name):
            TrainConfig.from_values({name: value})
    for settings in ({"batch_size": 10**30}, {"epochs": float("inf")}, {"backbone": "\udcff"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            TrainConfig(**settings)


def test_an_error_of_the_command_line_does_not_blame_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 3")
    with pytest.raises(ValueError, match=r"^epochs takes a float; got 'never'"):
        TrainConfig.from_yaml(tmp_path / "c.yaml", epochs="never")


@pytest.mark.parametrize("backbone", ["no", "1e5", "0500", "2024-01-01", "null", "größe", "1:30"])
def test_settings_survive_yaml_whatever_their_texts_look_like(tmp_path, backbone):
    config = TrainConfig(backbone=backbone, lr_encoder=1e-5, max_seconds=1e9)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert asdict(TrainConfig.from_yaml(tmp_path / "c.yaml")) == asdict(config)
