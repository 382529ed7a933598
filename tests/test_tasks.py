"""Tasks by name: which fits the data, what settings of before mean, what all of them share."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import sounding
from sounding.data.folder import load_folder
from sounding.registry import TASKS
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.tasks import find_task, metric_title
from sounding.tasks.base import Prediction, Target
from sounding.tasks.one_class import OneClass
from sounding.training.loop import train


def test_the_names_are_known_without_torch():
    asked = (
        "import sys; from sounding.runs.config import TrainConfig; from sounding.registry import *;"
        "TrainConfig(task='decoder'); print(*TASKS, 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["class", "tags", "ctc", "decoder", "False"]


@pytest.mark.parametrize(
    ("data", "first"), [("classification", "class"), ("tags", "tags"), ("text", "ctc")]
)
def test_the_data_say_which_task_it_is_unless_the_settings_do(data, first):
    assert find_task("auto", data) is TASKS[first]
    for name in ("class", "tags", "ctc", "decoder"):
        if TASKS[name].data == data:
            assert find_task(name, data) is TASKS[name]
        else:
            with pytest.raises(ValueError, match=rf"'{data}', and task '{name}' .* is {first}"):
                find_task(name, data)


def test_a_training_by_a_task_that_does_not_fit_the_data_is_refused_before_it_begins(
    tones, whisper, tmp_path
):
    config = TrainConfig(backbone=str(whisper), task="decoder")
    with pytest.raises(ValueError, match="'classification', and task 'decoder' takes 'text'"):
        train(config, load_folder(tones), tmp_path / "run")


def test_settings_of_before_load_under_the_name_of_before():
    assert TrainConfig.from_values({"recognition": "ctc"}).task == "auto"
    assert TrainConfig.from_values({"recognition": "decoder"}).task == "decoder"
    for wrong in ({"recognition": "rnnt"}, {"recognition": "ctc", "task": "decoder"}):
        with pytest.raises(ValueError, match="recognition is one of ctc, decoder, and is now call"):
            TrainConfig.from_values(wrong)


def test_a_run_of_before_loads_whatever_way_it_named_to_recognize_texts(tones, whisper, tmp_path):
    """Of a training on classes nobody asked that."""
    config = TrainConfig(backbone=str(whisper), method="full", epochs=0.2, heads="shared")
    run = train(config, load_folder(tones), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    for way in ("ctc", "decoder"):
        lines = [line for line in path.read_text().splitlines() if line.split(":")[0] not in
                 ("task", "recognition")]  # fmt: skip
        path.write_text("\n".join([*lines, f"recognition: {way}", ""]))
        info = json.loads((tmp_path / "run" / "run.json").read_text())
        info.pop("sha256", None)
        info.pop("seal", None)
        (tmp_path / "run" / "run.json").write_text(json.dumps(info))
        again = load_run(tmp_path / "run")
        assert type(again.task) is OneClass
        assert again.config == replace(run.config, task="auto")


def test_metrics_have_names_for_people():
    assert [metric_title(m) for m in ("accuracy", "wer", "map")] == ["accuracy", "WER", "mAP"]
    assert metric_title("of nobody") == "of nobody"


def test_a_task_has_to_say_its_loss_alone():
    task = sounding.Task(["a", "b"])
    targets = [Target((0,), "a"), Target((1,), "b"), Target((1,), "b")]
    logits = torch.tensor([[[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]]])
    with pytest.raises(NotImplementedError, match="Task has to define losses"):
        task.losses(logits, None, targets)
    assert task.decode(logits[0], None) == ["a", "b", "a"]
    assert task.errors(logits, None, targets).tolist() == [[0, 0, 1]]
    assert task.details(Prediction([], torch.ones(3, 4), None), targets) is None
    score = task.score(np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), None, targets)
    assert score.value == pytest.approx(0.5)
    assert score.low < 0.5 < score.high
    torch.testing.assert_close(task.confidence(logits[0], None), logits[0].softmax(-1).amax(-1))
    assert task.distances(logits, logits[0], None, targets).abs().max() < 1e-6
