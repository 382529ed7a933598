"""A task that is defined here alone goes all the way: training, sweep, command line, study."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import clips

import sounding
from sounding.cli.app import main
from sounding.data.folder import load_folder
from sounding.evaluation.card import model_card
from sounding.evaluation.sweep import sweep
from sounding.evaluation.table import markdown
from sounding.export import export
from sounding.export.parts import ExportError
from sounding.model.macs import count_macs
from sounding.registry import TASKS
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.runtime import load as load_export
from sounding.study.compare import StudyConfig, compare
from sounding.tasks import find_task
from sounding.tasks.heads import classifier
from sounding.training.loop import train

PAGE = Path(__file__).parent.parent / "docs" / "add-a-task.md"
PITCHES = {"0.0": 300, "0.5": 800, "1.0": 2400}
GUESS = 1 / 3  # the error of who always says 0.5


class Pitch(sounding.Task):
    """A number, which the labels write down: one logit, squared error."""

    metric = "distance"
    titles = {"distance": "distance"}  # noqa: RUF012
    runtime = None
    no_export = "the runtime knows no numbers"

    def build(self, path):
        return classifier(path, ["pitch"])

    def mismatch(self, model):
        return "" if model.config.num_labels == 1 else "is not of one number"

    def losses(self, logits, frame_mask, targets):
        wanted = torch.tensor([float(target.text) for target in targets])
        return (logits[..., 0].float() - wanted).square()

    def distances(self, logits, teacher, frame_mask, targets):
        return (logits - teacher)[..., 0].float().square()

    def decode(self, logits, frame_mask):
        return [f"{number:.3f}" for number in logits[:, 0].tolist()]

    def count(self, texts, targets):
        pairs = zip(texts, targets, strict=True)
        return [min(1.0, abs(float(text) - float(target.text))) for text, target in pairs]


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """The registry as it was, after these tests."""
    before = dict(TASKS._values)
    sounding.register_task("pitch", Pitch)
    yield
    TASKS._values = before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of tones at three pitches."""
    rng = np.random.default_rng(0)

    def make(index):
        label = list(PITCHES)[index % len(PITCHES)]
        time = np.arange(8000) / 16000
        tone = 0.1 * np.sin(2 * np.pi * PITCHES[label] * time)
        return tone + rng.normal(0, 0.02, len(time)), {"label": label}

    counts = {"train": 48, "validation": 9, "test": 18}
    return clips(tmp_path_factory.mktemp("pitches"), counts, make)


@pytest.fixture(scope="module")
def settings(whisper):
    return {
        "backbone": str(whisper), "batch_size": 8, "precision": "fp32", "freeze": "none",
        "lr_encoder": 2e-3, "lr_head": 5e-3, "task": "pitch",
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(data, settings, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {}
    for method in ("full", "input"):
        config = TrainConfig(**settings, method=method, epochs=15)
        train(config, load_folder(data), root / method)
        made[method] = load_run(root / method)
    return root, made


def test_it_is_trained_and_swept_and_gets_its_own_name_and_score(runs, data):
    _, made = runs
    result = sweep(list(made.values()), load_folder(data), rounds=0)
    assert {row.metric for row in result.rows} == {"distance"}
    for method in ("full", "input"):
        full = next(r for r in result.rows if r.method == method and r.kept_layers == 4)
        assert full.value < GUESS / 3
        assert full.ci_low <= full.value <= full.ci_high
    assert "| distance | 95 % CI |" in markdown(result)
    run = made["input"]
    assert "Classes: 0.0, 0.5, 1.0" in model_card(run, result, count_macs(run.dynamic))


def test_the_command_line_predicts_with_it_in_its_own_words(runs, data, capsys):
    root, _ = runs
    clip = str(data / "test2.wav")
    assert main(["run", str(root / "input"), clip, "--budget", "4", "--json"]) == 0
    assert float(json.loads(capsys.readouterr().out)["label"]) == pytest.approx(1.0, abs=0.4)


def test_it_is_compared_by_other_methods_and_its_errors_stand_in_the_files(
    data, settings, tmp_path
):
    study = StudyConfig(
        settings={**settings, "epochs": 1},
        variants=("full", "input", "early-exit"), seeds=(0,),
    )  # fmt: skip
    assert compare(study, [data], tmp_path)
    assert (tmp_path / "report.html").exists()
    measured = json.loads((tmp_path / data.name / "input-0" / "measured.json").read_text())
    assert measured["metric"] == "distance"
    errors = next(r for r in measured["sets"]["test"]["rows"] if r["rule"] == "exact")["errors"]
    assert not set(errors[0]) <= {0, 1}


def test_what_the_runtime_cannot_read_is_not_exported(runs, tmp_path):
    with pytest.raises(ExportError, match="the runtime knows no numbers"):
        export(runs[1]["input"], tmp_path / "m.onnx")


def test_the_task_of_the_page_runs_as_printed_and_is_short(data, whisper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").symlink_to(data)
    task, use = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(f"{task}{use}".splitlines()) <= 60
    tiny = use.replace('"whisper-base"', f"{str(whisper)!r}, epochs=2, batch_size=8")
    assert tiny != use
    names: dict = {}
    exec(task, names)
    exec(tiny, names)
    run = names["run"]
    assert type(run.task) is names["Grades"]
    targets = run.task.targets(load_folder(data), load_folder(data).split("test")[:3])
    assert run.task.count(["0.0"] * 3, targets) == [float(target.text) for target in targets]
    answer = load_export(tmp_path / "grades.onnx").run(str(data / "test0.wav"), 4)
    assert answer.label in PITCHES


def test_what_is_no_task_and_what_does_not_fit_the_data_is_said():
    with pytest.raises(TypeError, match=r"subclass of sounding\.Task; got 'pitch'"):
        sounding.register_task("loud", "pitch")
    silent = type("Silent", (sounding.Task,), {"decode": Pitch.decode})
    with pytest.raises(ValueError, match="Silent has a decode of its own: say in `runtime`"):
        sounding.register_task("silent", silent)
    with pytest.raises(ValueError, match="a task 'ctc' already"):
        sounding.register_task("ctc", Pitch)
    with pytest.raises(ValueError, match="kind 'text', and task 'pitch' takes 'classification'"):
        find_task("pitch", "text")
    assert find_task("auto", "classification").__name__ == "OneClass"
    with pytest.raises(ValueError, match="task is one of auto, class, tags, ctc, decoder, pitch"):
        TrainConfig(task="pich")
