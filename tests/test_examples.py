"""The scripts of examples/ run as a user starts them, without network, and print what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sounding

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script, *options, cwd):
    """Run a script in a process of its own, which may not reach a hub; return what it printed."""
    source = str(Path(sounding.__file__).parents[1])
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, options)],
        cwd=cwd, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the example that trains printed, and its directory."""
    root = tmp_path_factory.mktemp("examples")
    return run("train_and_sweep.py", "--quick", cwd=root), root


def test_wrap_and_count_shows_the_layers_that_ran(tmp_path):
    lines = run("wrap_and_count.py", "--policy", "first", cwd=tmp_path).splitlines()
    ran = {
        line.split(":")[0].split(" ", 1)[1].strip(): line.split(":")[1].split()
        for line in lines[:-1]
    }
    assert ran["1"] == ["x....."] * 4
    assert ran["50%"] == ran["3"] == ["xxx..."] * 4
    assert ran["[1, 2, 3, None]"] == ["x.....", "xx....", "xxx...", "xxxxxx"]
    assert ran["None"] == ["xxxxxx"] * 4
    assert "WhisperForAudioClassification" in lines[-1]


def test_train_and_sweep_prints_a_row_for_each_method_and_number_of_layers(trained):
    printed, root = trained
    for label in ("early exit", "input-driven"):
        assert re.findall(rf"^\| {label} \| (\d) \|", printed, re.M) == list("1234")
    rows = json.loads((root / "runs/tones/sweep.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"early-exit", "input"}


def test_trainer_trains_every_depth_and_runs_no_layer_more(tmp_path):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    printed = run("train_with_trainer.py", cwd=tmp_path)
    found = re.findall(r"^budget (\d): (\d+)% right, layers that ran: \[(\d)\]$", printed, re.M)
    assert [(k, ran) for k, _, ran in found] == [(k, k) for k in "1234"]
    assert all(int(right) > 100 / 3 for _, right, _ in found)  # of three classes
    assert sounding.load(tmp_path / "runs/trainer/model").num_layers == 4


def test_export_and_run_answers_without_torch_at_layers_times_and_a_governor(trained):
    _, root = trained
    printed = run("export_and_run.py", "runs/tones/input", cwd=root)
    assert "answers the same" in printed
    ran = re.findall(r"^budget +(\S+): (?:low|middle|high) ([x.]{4}) ", printed, re.M)
    assert [layers.count("x") for _, layers in ran[:3]] == [1, 2, 4]
    assert ran[3][0].endswith("ms")
    assert re.search(r"^governor at \S+ ms: \d+ of 20 inputs were late$", printed, re.M)
    assert printed.endswith("torch was not imported\n")


def test_the_page_of_the_examples_names_each_of_them():
    page = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"examples/(\w+\.py)", page)) == {p.name for p in EXAMPLES.glob("*.py")}
