"""Sweeps and what is made of them: every budget measured, by layers that really ran."""

from __future__ import annotations

import csv
import doctest
import io
import json
import os
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from sounding.data.features import load_features
from sounding.data.folder import load_folder
from sounding.evaluation import report, shown
from sounding.evaluation.card import model_card
from sounding.evaluation.classify import classify
from sounding.evaluation.report import check_outputs, write_sweep
from sounding.evaluation.shown import in_markdown, one_line
from sounding.evaluation.sweep import DRAWS, Sweep, sweep
from sounding.evaluation.table import markdown, rich_table, sorted_rows, to_csv
from sounding.model.macs import count_macs
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.predict import predict_logits
from sounding.runtime import show
from sounding.statistics import wilson
from sounding.training.loop import train


@pytest.fixture(scope="module")
def folder(tones):
    return load_folder(tones)


@pytest.fixture(scope="module")
def runs(folder, whisper, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    config = TrainConfig(backbone=str(whisper), epochs=2, batch_size=8)
    return [
        train(
            replace(config, method=m, teacher=str(root / "full") if m == "dld" else ""),
            folder,
            root / m,
        )
        for m in ("full", *(m for m in METHODS if m != "full"))
    ]


@pytest.fixture(scope="module")
def result(runs, folder):
    return sweep(runs, folder, rounds=3)


def of(runs, method):
    return next(run for run in runs if run.config.method == method)


def test_every_method_has_a_row_for_each_budget(result):
    rows = {(row.method, row.kept_layers) for row in result.rows}
    both = {(m, k) for m in METHODS if m != "full" for k in (1, 2, 3, 4)}
    both |= {(f"{m}-mean", k) for m in ("input", "early-exit", "i3d") for k in (2, 3)}
    assert rows == both | {("first", 1), ("first", 2), ("first", 3), ("full", 4)}


def test_rows_have_what_is_promised(result):
    for row in result.rows:
        assert row.metric == "accuracy"
        assert 0 <= row.ci_low <= row.value <= row.ci_high <= 1
        assert row.executed_layers == pytest.approx(sum(row.layer_use))
        if row.method.endswith("-mean"):
            assert row.latency_ms is None
            continue
        assert row.executed_layers == row.kept_layers
        assert row.latency_ms > 0
        assert row.macs_share <= 1.01
    full = [row for row in result.rows if row.kept_layers == 4]
    assert all(row.macs_share == 1 and row.latency_share == 1 for row in full)
    costs = [row.macs for row in sorted_rows(result) if row.method == "input"]
    assert costs[:3] == sorted(costs[:3])  # at full depth no exit answers beside the model's head


def test_header_says_where_the_numbers_come_from(result, folder):
    header = result.header
    assert header["data"] == {"name": folder.root.name, "digest": folder.digest, "split": "test"}
    assert header["clips"] == 16
    assert {"seed", "versions", "commit", "machine", "runs"} <= header.keys()
    assert header["versions"].keys() >= {"sounding", "torch", "transformers", "python"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_what_is_reported_is_what_hooks_count(runs, folder, method, k):
    run = of(runs, method)
    features = load_features(folder.split("test"), run.extractor, max_seconds=None)
    seen = torch.zeros(len(run.dynamic.stack), dtype=torch.long)

    def count(index):
        def hook(module, args, output):
            seen[index] += len(args[0])

        return hook

    layers = run.dynamic.stack.layers
    handles = [layer.register_forward_hook(count(i)) for i, layer in enumerate(layers)]
    try:
        _, executed = predict_logits(run, run.collate(features), k)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(executed.sum(0), seen)
    assert seen.sum() == k * len(features)


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_is_the_same_alone_and_in_a_batch(runs, folder, method):
    run = of(runs, method)
    features = load_features(folder.split("test"), run.extractor, max_seconds=None)
    together, executed = predict_logits(run, run.collate(features), 2)
    for index in (0, 7, 15):
        alone, ran = predict_logits(run, run.collate([features[index]]), 2)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-4)
        assert torch.equal(ran[0], executed[index])


def test_batch_size_does_not_change_a_sweep(runs, folder):
    small = sweep(runs, folder, rounds=0, batch_size=3)
    large = sweep(runs, folder, rounds=0, batch_size=16)
    assert [r.value for r in small.rows] == [r.value for r in large.rows]
    assert small.masks == large.masks


def test_random_dropping_is_averaged_over_several_masks_of_each_clip(result):
    rows = {row.kept_layers: row for row in result.rows if row.method == "random"}
    assert [rows[k].draws for k in (1, 2, 3, 4)] == [DRAWS, DRAWS, DRAWS, 1]
    for k in (1, 2, 3):
        np.testing.assert_allclose(rows[k].layer_use, k / 4, atol=0.2)


def test_full_depth_of_a_run_is_its_plain_model(runs, folder):
    run = of(runs, "input")
    features = load_features(folder.split("test")[:1], run.extractor, max_seconds=None)
    batch = run.collate(features)
    logits, _ = predict_logits(run, batch, 4)
    assert torch.equal(logits, run.dynamic(**batch).logits)


def test_masks_of_each_input_are_in_the_json(result, tmp_path):
    write_sweep(result, json=tmp_path / "s.json")
    read = json.loads((tmp_path / "s.json").read_text())
    means = {f"{m}-mean/{k}" for m in ("input", "early-exit", "i3d") for k in (2, 3)}
    chosen = {f"{m}/{k}" for m in ("idld", "input") for k in (1, 2, 3)}
    assert set(read["masks"]) == {"files", "labels"} | chosen | means
    assert all(mask.count("1") == 2 and len(mask) == 4 for mask in read["masks"]["input/2"])
    assert len(read["masks"]["files"]) == len(read["masks"]["input/2"]) == 16
    assert Sweep.from_json(tmp_path / "s.json") == result


@pytest.mark.parametrize("text", ["", "[]", '{"header": {}}', '{"rows": [{"a": 1}]}'])
def test_json_that_is_no_sweep(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match="is not the JSON of a sweep"):
        Sweep.from_json(tmp_path / "s.json")


def test_tables_for_terminal_markdown_and_spreadsheet_hold_every_row(result):
    assert rich_table(result).row_count == len(result.rows)
    lines = markdown(result).splitlines()
    assert len(lines) == len(result.rows) + 2
    assert len({line.count("|") for line in lines}) == 1
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert len(rows) == len(result.rows)
    assert float(rows[0]["value"]) == sorted_rows(result)[0].value
    assert len(rows[0]["layer_use"].split()) == 4


def test_plots_are_pictures(result, tmp_path):
    pytest.importorskip("matplotlib")
    write_sweep(result, plots=tmp_path)
    for name in ("accuracy.png", "layers.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_card_has_a_yaml_header_the_table_and_the_seed(result, runs):
    import yaml

    run = of(runs, "input")
    card = model_card(run, result, count_macs(run.dynamic), notes="- Data: tones.\n")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "audio-classification"
    assert markdown(result) in body
    assert "- Data: tones." in body
    assert "Seed 0" in body


def test_sweep_refuses_what_cannot_be_compared(runs, folder):
    with pytest.raises(ValueError, match="nothing to sweep"):
        sweep([], folder)
    with pytest.raises(ValueError, match="more than one run of a method"):
        sweep([runs[0], runs[0]], folder)
    with pytest.raises(ValueError, match="rounds and seed are 0 or more; got -1 and 0"):
        sweep(runs[:1], folder, rounds=-1)
    with pytest.raises(ValueError, match="knows the classes high, low"):
        sweep(runs[:1], replace(folder, labels=("a", "b")))


def test_classify_answers_each_file_by_itself(runs, folder):
    run = of(runs, "input")
    files = [clip.path for clip in folder.split("test")[:3]]
    answers = list(classify(run, files, 2))
    assert [a.file for a in answers] == [str(f) for f in files]
    assert all(len(a.executed_layers) == a.kept_layers == 2 for a in answers)
    assert all(0.5 <= a.probability <= 1 and a.label in ("high", "low") for a in answers)
    assert "2 of 4" in show(answers[0])
    assert show(answers[0]).count("■") == 2
    assert next(classify(run, files, "50%")).executed_layers == answers[0].executed_layers
    with pytest.raises(ValueError, match="budget '9' is not allowed: there are 4 layers"):
        list(classify(run, files, 9))


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(1.0, 100, 0.9630, 1.0), (0.0, 10, 0.0, 0.2775), (0.5, 20, 0.2993, 0.7007)],
)
def test_wilson_interval_against_known_values(share, count, low, high):
    assert wilson(share, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_needs_a_trial():
    with pytest.raises(ValueError, match="at least one"):
        wilson(0.5, 0)


# --- what others chose, as it is shown -------------------------------------------------------

NASTY = (
    "<img src=x onerror=alert(1)>",
    "a|b | `c` *d* [e](javascript:x)",
    "one\n---\n# two",
    "$x^{$",
    "[/red]",
    "$\\frac{1}{$ 日本 🎈 \x07",
    "long " * 60,
    "caf\udce9",
)


def renamed(result, name, labels=None):
    """A sweep whose data set and labels have other names."""
    header = {**result.header, "data": {**result.header["data"], "name": name}}
    masks = result.masks if labels is None else {**result.masks, "labels": labels}
    return replace(result, header=header, masks=masks)


def test_names_are_shown_as_they_are_in_markdown():
    assert in_markdown("plain words, 50 % (left-over)") == "plain words, 50 % (left-over)"
    assert in_markdown(NASTY[0]) == "&lt;img src=x onerror=alert(1)&gt;"
    assert in_markdown(NASTY[1]) == "a\\|b \\| \\`c\\` \\*d\\* \\[e\\](javascript\\:x)"
    assert in_markdown(NASTY[2]) == "one --- \\# two"
    assert in_markdown("https://x www.x.org @me a_b \\ ~~c~~") == (
        "https\\://x www\\.x.org \\@me a\\_b \\\\ \\~\\~c\\~\\~"
    )
    assert in_markdown("R&D &lt;") == "R&amp;D &amp;lt;"
    assert doctest.testmod(shown).failed == 0


@pytest.mark.parametrize("name", NASTY)
def test_a_card_shows_names_as_they_are_and_its_header_stays_yaml(name, result, runs):
    import yaml

    run = of(runs, "input")
    run = replace(run, info={**run.info, "labels": [name, "low"]}, config=run.config)
    card = model_card(run, renamed(result, name), count_macs(run.dynamic))
    found = re.match(r"\A---\n(.*?)\n---\n", card, re.DOTALL)
    front = yaml.safe_load(found.group(1))
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == one_line(name)
    body = card[found.end() :].replace(markdown(result), "")
    assert f"- Classes: {in_markdown(name)}, low." in body
    assert "<" not in body.replace("<br>", "")
    assert body.count("\n#") == 3  # the headings that are ours
    assert "|" not in body.replace("\\|", "")


@pytest.mark.parametrize("name", NASTY)
def test_plots_and_tables_draw_names_as_they_are(name, result, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    labels = [name if label == "low" else "high $" for label in result.masks["labels"]]
    sweep = renamed(result, name, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_sweep(sweep, json=tmp_path / "s.json", csv=tmp_path / "s.csv", plots=tmp_path)
    read = json.dumps(sweep.to_json()).replace("\\udce9", "?")  # of a name that is no UTF-8
    assert Sweep.from_json(tmp_path / "s.json").to_json() == json.loads(read)
    for file in ("accuracy.png", "layers.png"):
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    Console(width=200).print(rich_table(sweep))
    out = " ".join(capsys.readouterr().out.split())
    assert " ".join(one_line(name).split())[:30] in out


def test_texts_of_a_plot_are_no_formulas(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import rc_context

    from sounding.evaluation.plots import save, subplots

    figure, axes = subplots(1, 1, (3, 2))
    axes[0, 0].set_title("$x^2$")
    axes[0, 0].set_yticks([0, 1], ["$a$", "b"])
    with rc_context({"svg.fonttype": "none"}):
        save(figure, tmp_path / "f.svg", format="svg")
    drawn = (tmp_path / "f.svg").read_text()
    assert ">$x^2$</text>" in drawn
    assert ">$a$</text>" in drawn


def test_a_plot_that_fails_loses_nothing_of_the_sweep(result, runs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(report, "plot_accuracy", fail)
    names = ("s.json", "s.csv", "t.md", "card.md")
    files = dict(zip(("json", "csv", "table", "card"), (tmp_path / n for n in names), strict=True))
    with pytest.raises(ValueError, match=r"accuracy\.png cannot be drawn \(no ink\)"):
        write_sweep(result, **files, plots=tmp_path, run=of(runs, "input"))
    assert all((tmp_path / name).stat().st_size for name in (*names, "layers.png"))


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_outputs(files=[tmp_path / "new" / "s.json", None, tmp_path / "file"], plots=tmp_path)
    for bad in (
        {"files": [tmp_path]},
        {"files": [tmp_path / "file" / "s.json"]},
        {"plots": tmp_path / "file"},
    ):
        with pytest.raises(ValueError, match=r"is a (directory|file)"):
            check_outputs(**bad)
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_outputs(files=["s.json"])
