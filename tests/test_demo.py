"""The demo from end to end, on a tiny backbone and a tenth of the data."""

from __future__ import annotations

import json

import pytest
import tiny
import transformers

from sounding.cli.app import main

pytest.importorskip("espeakng_loader", reason="the demo's speech engine is not installed")
pytest.importorskip("matplotlib", reason="the demo's plots need matplotlib")


def test_demo_writes_everything_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOUNDING_CACHE", str(tmp_path / "cache"))
    tiny.make("whisper-classification", max_source_positions=100).save_pretrained(tmp_path / "b")
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    extractor.save_pretrained(tmp_path / "b")
    command = ["demo", "--quick", "--backbone", str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    out = capsys.readouterr().out
    for text in ("input-driven", "early exit", "random dropping", "budget 1:", "of 4"):
        assert text in out
    files = {"sweep.json", "sweep.csv", "table.md", "accuracy.png", "layers.png", "MODEL_CARD.md"}
    assert files <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "**synthetic**" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    sweep = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(sweep["rows"]) == 20 + 4  # and mean budgets of early exit and input

    trained = tmp_path / "out" / "runs" / "input" / "model" / "model.safetensors"
    before = trained.stat().st_mtime_ns
    assert main(command) == 0
    assert trained.stat().st_mtime_ns == before
