"""The results in the repository are small, and the pages are what they give."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from sounding.study.html import table_text
from sounding.study.study import load_study
from sounding.study.verdict import judge

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.rglob("measured.parquet"))

pytest.importorskip("pyarrow")


@pytest.fixture
def script(monkeypatch):
    """Import a script of the benchmarks, with those that it imports."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for path in BENCHMARKS.glob("*.py"):  # so that no other test takes one of them for its own
        sys.modules.pop(path.stem, None)


def test_the_page_is_what_the_results_give(script, monkeypatch, tmp_path):
    page = script("page")
    monkeypatch.setattr(page, "HERE", tmp_path)
    (tmp_path / "results").symlink_to(RESULTS)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    page.main()
    made = (tmp_path / "README.md").read_text()
    assert made == (BENCHMARKS / "README.md").read_text(), "run python benchmarks/page.py"


def test_the_results_that_git_keeps_are_small(script):
    shrink = script("shrink")
    if not (BENCHMARKS.parent / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository")
    kept = shrink.tracked()
    assert kept
    assert sum(path.stat().st_size for path in kept) < 2e6
    text = [path for path in kept if path.suffix in (".json", ".md")]
    assert sum(path.read_bytes().count(b"\n") for path in text) < 3000


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_of_a_study_is_what_its_pack_gives(name):
    assert table_text(load_study(RESULTS / name)) == (RESULTS / name / "table.md").read_text()


def test_the_verdict_of_a_study_is_what_its_pack_gives():
    (study,) = load_study(RESULTS / "asr-whisper")
    read = json.loads((RESULTS / "asr-whisper" / "verdict.json").read_text())
    assert json.loads(json.dumps(judge(study))) == read["verdicts"][0]


def test_shrinking_keeps_every_number_that_a_page_reads(script, tmp_path):
    shrink = script("shrink")
    read = {"header": {"a": 0.1 + 0.2}, "rows": [{"x": 1e-9}, {"x": [1, 2]}], "masks": {"a": "0"}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(read | {"clips": 7}))
    shrink.shrink(path)
    assert json.loads(path.read_text()) == read | {"masks": {}, "clips": 7}
    lines = path.read_text()
    assert lines.count("\n") == 9
    shrink.shrink(path)
    assert path.read_text() == lines
