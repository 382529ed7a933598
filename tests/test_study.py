"""A study of synthetic runs whose answer is known: on "helps" the input matters, on "idle" not."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_study import CLIPS, HELP, LABELS, METHODS, SETS, columns, measured, write

from sounding.evaluation.shown import in_markdown, in_plot
from sounding.evaluation.sweep import Row, Sweep
from sounding.files import write_json
from sounding.statistics import paired_bootstrap, ratio_bootstrap
from sounding.study.compare import StudyConfig
from sounding.study.diagnostics import (
    area_weights,
    areas,
    layer_use,
    mask_variety,
    regret,
    terciles,
    varying_arms,
    worst_group,
)
from sounding.study.html import report, write_report
from sounding.study.measured import Measured
from sounding.study.study import Study, load_study
from sounding.study.tables import accuracies
from sounding.study.verdict import best_blind, in_words, judge, verdict_line

VOID = {"meta", "br", "path", "use", "rect", "image"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    for data in ("helps", "idle"):
        for seed in range(3):
            for method in METHODS:
                write(root, measured(method, seed, data))
            write(root, measured("input", seed, data, variant="input-flat", gain=-0.1))
    return root


@pytest.fixture(scope="module")
def studies(root):
    return {study.data: study for study in load_study(root)}


@pytest.fixture(scope="module")
def verdicts(studies):
    return {name: judge(study) for name, study in studies.items()}


@pytest.fixture(scope="module")
def page(root, tmp_path_factory):
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("report")
    lines = write_report(root, out / "r.html", verdict=out / "v.json", table=out / "t.md")
    return out, lines, (out / "r.html").read_text()


def test_bootstrap_covers_a_known_difference():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        ours, theirs = rng.uniform(size=(2, 1, 200))
        low, high = paired_bootstrap((ours < 0.7) * 1.0 - (theirs < 0.6))[1:]
        hits += low <= 0.1 <= high
    assert 0.91 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.96), (0.99, 2.576)])
def test_bootstrap_is_as_wide_as_the_normal_approximation(level, z):
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], (3, 700), p=[0.2, 0.5, 0.3])
    mean, low, high = paired_bootstrap(values, level=level, resamples=8000)
    assert mean == pytest.approx(values.mean())
    width = 2 * z * values.mean(0).std() / 700**0.5
    assert high - low == pytest.approx(width, rel=0.05)


def test_bootstrap_of_no_difference_is_zero():
    assert paired_bootstrap(np.zeros((3, 50))) == (0, 0, 0)
    thirds = np.array([[1.0, 0], [-1, 1], [0, -1]])  # each clip adds up to 0 over the seeds
    assert paired_bootstrap(thirds) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(0, 0), (5,), (3, 0)])
def test_bootstrap_needs_seeds_and_clips(shape):
    with pytest.raises(ValueError, match="seeds, clips"):
        paired_bootstrap(np.zeros(shape))
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap(np.zeros((1, 2)), level=95)


def test_study_is_read_by_data_set_and_averages_draws_and_seeds(studies, root):
    study = studies["helps"]
    assert list(studies) == ["helps", "idle"]
    assert list(study.variants) == [*METHODS, "input-flat"]
    assert study.sets == list(SETS)[1:]
    rows = study.rows("test", ("random", "exact"), 2)
    assert list(rows) == [0, 1, 2]
    raw = json.loads((root / "helps-random-1" / "measured.json").read_text())
    entry = next(r for r in raw["sets"]["test"]["rows"] if (r["rule"], r["budget"]) == ("exact", 2))
    assert len(entry["errors"]) == 3
    assert rows[1].accuracy == pytest.approx(1 - np.mean(entry["errors"]))
    mean = np.mean([row.accuracy for row in rows.values()])
    assert study.accuracy("test", ("random", "exact"), 2) == pytest.approx(mean)
    assert rows[1].executed_layers == 2
    assert study.share("test", ("random", "exact"), 2) == pytest.approx(0.4)
    assert study.accuracy("test", ("random", "none"), 2) is None


def test_differences_are_paired_over_the_seeds_and_clips_that_both_have(studies):
    study = studies["helps"]
    ceiling = study.difference("test", ("input", "ceiling"), 2, ("input", "exact"))
    assert ceiling.values.shape == (3, CLIPS // 3)
    some = Study(study.data, [r for r in study.runs if r.variant != "static" or r.seed])
    assert some.difference("test", ("input", "exact"), 2, ("static", "exact")).by_seed.shape == (2,)
    assert study.difference("test", ("input", "exact"), 2, ("x", "exact")).size == 0


def test_the_best_blind_mask_is_chosen_on_validation(studies):
    study = studies["helps"]
    assert best_blind(study, 3) == ("static", "static")
    assert best_blind(study, 3.5) is None
    twins = Study(study.data, [r for r in study.runs if r.variant == "input"])
    assert best_blind(twins, 3) == ("input", "static")


def test_the_input_matters_where_it_does_by_construction(verdicts):
    verdict = verdicts["helps"]
    assert verdict["matters"] is verdict["depth_matters"] is True
    assert any("how many layers run it matters, at mean 2" in text for text in in_words(verdict))
    assert (verdict["seeds"], verdict["preliminary"]) == (3, False)
    test = verdict["sets"]["test"]
    assert test["level"] == pytest.approx(0.99)
    for budget in ("1", "2", "3"):  # above that the accuracy reaches 1
        result = test["budgets"][budget]
        assert result["matters_corrected"]
        assert result["blind"]["against"] == "static/static"
        assert result["blind"]["gain"] == pytest.approx(100 * (HELP - 0.06), abs=6)
        assert result["shuffled"]["gain"] == pytest.approx(100 * HELP, abs=6)
        assert result["blind"]["low_corrected"] < result["blind"]["low"] < result["blind"]["gain"]
    assert set(test["budgets"]["1"]["methods"]) == set(METHODS) - {"input"}
    assert in_words(verdict)[0].startswith("Yes: on helps")
    assert verdict["sets"]["test at 0 dB"]["matters"] is True


def test_the_input_does_not_matter_where_it_does_not(verdicts):
    verdict = verdicts["idle"]
    assert verdict["matters"] is verdict["depth_matters"] is False
    assert in_words(verdict)[0].startswith("No: these runs do not show")
    for result in verdict["sets"]["test"]["budgets"].values():
        assert abs(result["shuffled"]["gain"]) < 4
    full = verdict["sets"]["test"]["full_depth"]
    assert full["low"] <= full["gain"] <= full["high"]


def test_mean_budgets_are_compared_at_as_many_layers(verdicts):
    means = verdicts["helps"]["sets"]["test"]["mean_budgets"]
    assert set(means) == {"2", "3.5", "4"}
    assert means["2"]["blind"]["gain"] == pytest.approx(14, abs=6)
    # it ran 4 layers for every clip, so it stands against rows of 4 layers, not of 3.5
    assert means["3.5"]["exact"]["gain"] < 0
    assert means["3.5"]["early-exit"]["seeds"] == 3
    assert means["3.5"]["executed"] == 4
    assert means["3.5"]["off"] == [pytest.approx(1 / 7, abs=1e-4)] * 3


def test_the_verdict_is_json_on_one_line(verdicts):
    line = verdict_line(verdicts["helps"])
    assert "\n" not in line
    read = json.loads(line.removeprefix("VERDICT "))
    assert read.keys() == {
        "data",
        "set",
        "seeds",
        "matters",
        "depth_matters",
        "budgets",
        "mean_budgets",
    }
    assert read["budgets"]["1"].keys() == {"gain", "low", "high"}
    assert json.loads(json.dumps(verdicts["helps"], allow_nan=False)) == verdicts["helps"]


def test_few_seeds_and_missing_controls_are_said(studies):
    runs = [run for run in studies["helps"].runs if run.seed == 0]
    verdict = judge(Study("helps", runs))
    assert verdict["preliminary"]
    assert "PRELIMINARY: 1 of 3 seeds." in in_words(verdict)
    verdict = judge(Study("helps", [run for run in runs if run.method != "input"]))
    assert verdict["matters"] is None
    assert in_words(verdict)[0].startswith("Not tested")
    assert json.loads(verdict_line(verdict).removeprefix("VERDICT "))["budgets"] == {}


def test_area_of_known_lines():
    x = np.array([0.1, 0.5, 1.0])
    assert area_weights(x, 0.1, 1.0).sum() == pytest.approx(1)
    assert area_weights(x, 0.1, 1.0) @ x == pytest.approx(0.55)
    assert area_weights(x, 0.3, 0.7) @ x == pytest.approx(0.5)


def test_areas_share_a_range_and_follow_the_accuracy(studies):
    study = studies["helps"]
    arms = [(variant, "exact") for variant in study.variants]
    (low, high), found = areas(study, "test", arms)
    assert (low, high) == pytest.approx((0.25, 1.0))
    assert found[arms[0]].values.shape == (3, CLIPS)
    means = {arm[0]: area.by_seed.mean() for arm, area in found.items()}
    assert max(means, key=means.get) == "input"
    assert min(means, key=means.get) == "input-flat"


def test_mask_variety_of_known_masks():
    masks = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    assert mask_variety(masks) == {
        "distinct": 2, "entropy": 1.0, "commonest": 0.5, "collapsed": False,
    }  # fmt: skip
    assert mask_variety(masks[:2])["collapsed"] is True
    assert mask_variety(masks[:2])["entropy"] == 0


def test_layers_and_groups(studies):
    study = studies["helps"]
    arms = varying_arms(study, "test")
    assert ("input", "exact") in arms
    assert ("early-exit", "mean") in arms
    assert not {("random", "exact"), ("static", "exact"), ("early-exit", "exact")} & set(arms)
    use = layer_use(study, ("input", "exact"), 2)
    assert list(use) == ["set", "label", "speaker", "duration"]
    assert list(use["set"]) == study.sets
    assert use["set"]["test"] == pytest.approx([0.5, 0.5, 0, 0, 0.5, 0.5])
    assert set(use["duration"]) == {"short", "middle", "long"}
    assert terciles(np.array([1.0, 2, 3])) == ["short", "middle", "long"]
    name, worst = worst_group(study, "test", ("full", "exact"), 2, "speaker")
    assert name in {f"s{i}" for i in range(7)}  # "rare" has three clips only
    assert worst < study.accuracy("test", ("full", "exact"), 2)
    assert worst_group(study, "test", ("full", "none"), 2, "label") is None


def test_a_group_without_a_word_is_no_worst_group(tmp_path):
    run = measured("static", 0, "idle")
    run["metric"] = "wer"
    for clips in run["sets"].values():
        clips["clips"]["weight"] = [
            int(i % 3 > 0) for i in range(CLIPS)
        ]  # none has the first label
    write(tmp_path, run)
    (study,) = load_study(tmp_path)
    assert worst_group(study, "test", ("static", "exact"), 2, "label")[0] in LABELS[1:]


def test_regret(studies):
    found = regret(studies["idle"], "test", 2)
    assert found["oracle"].mean == pytest.approx(0.3, abs=0.06)
    assert found["ceiling"].mean == pytest.approx(0.1, abs=0.06)


class Reader(HTMLParser):
    """Notes what is loaded and whether every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags, self.texts = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v[:1] != "#"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v[:1] != "#"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_loads_nothing_and_is_well_formed(page):
    reader = Reader()
    reader.feed(page[2])
    assert reader.open == []
    assert all(address.startswith("data:image/png") for address in reader.loads)
    assert not re.search("https?://", page[2])
    assert "script" not in reader.tags
    assert LABELS[0] in "".join(reader.texts)
    text = " ".join(reader.texts)
    sections = ("Mean budgets", "Ablations", "Controls", "Masks by clip", "Noise", "Worst speaker")
    for part in ("Verdict: helps", *sections, "c0ffee", "best on validation", "d1"):
        assert part in text
    assert text.index("Yes: on helps") < text.index("all methods")
    assert "PRELIMINARY" not in text


def test_the_report_comes_with_verdict_and_table(page, studies):
    out, lines, _ = page
    assert [json.loads(line.removeprefix("VERDICT "))["matters"] for line in lines] == [True, False]
    read = json.loads((out / "v.json").read_text())
    assert [v["data"] for v in read["verdicts"]] == ["helps", "idle"]
    table = [line for line in (out / "t.md").read_text().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    head, rows, _ = accuracies(studies["helps"], "test")
    assert head[1] == "k = 1 (25 %)"
    cells = {row[0]: row for row in rows}
    assert {"full depth", "input-driven", "static scores, best static mask"} <= cells.keys()
    assert "masks ±" in cells["random dropping"][2]
    assert cells["input-driven, mean budget"][1] == "-"
    assert cells["input-driven, mean budget"][2].endswith("at 2.00")
    assert cells["early exit, mean budget by entropy"][3].endswith("at 3.00")


def test_a_report_of_one_run_is_possible_and_loud(tmp_path):
    pytest.importorskip("matplotlib")
    path = write(tmp_path, measured("input", 0, "idle"))
    (line,) = write_report(path, tmp_path / "r.html")
    assert json.loads(line.removeprefix("VERDICT "))["seeds"] == 1
    assert "PRELIMINARY: 1 of 3 seeds" in (tmp_path / "r.html").read_text()
    other = write(tmp_path, measured("full", 0, "bare"))
    write_report([other], tmp_path / "r.html")
    assert "Not tested on bare" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("name", ["<b>*a*|`c`</b> [x](y)", "$x^{$", "one\n## two"])
def test_names_are_shown_as_they_are_in_report_and_table(tmp_path, name):
    pytest.importorskip("matplotlib")
    run = measured("input", 0, "idle", variant=name)
    run["data"]["name"] = name
    run["labels"] = [name, "b", "c"]
    for clips in run["sets"].values():
        clips["clips"]["label"] = [name if i % 3 else "b" for i in range(CLIPS)]
    (tmp_path / "measured.json").write_text(json.dumps(run))
    write_report(tmp_path, tmp_path / "r.html", table=tmp_path / "t.md")
    table = (tmp_path / "t.md").read_text()
    assert "<" not in table
    assert in_markdown(name) in table
    assert table.count("\n## ") + table.startswith("## ") == 3  # a set each
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    reader = Reader()
    reader.feed((tmp_path / "r.html").read_text())
    assert reader.open == []
    assert not {"b", "a"} & reader.tags
    assert "cannot be drawn" not in "".join(reader.texts)
    assert in_plot(name) in reader.texts  # in a figure


def test_a_figure_that_fails_loses_nothing_of_the_report(tmp_path, root, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def fail(*args):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr("sounding.study.html.plot_pareto", fail)
    write_report(root, tmp_path / "r.html", verdict=tmp_path / "v.json", table=tmp_path / "t.md")
    page = (tmp_path / "r.html").read_text()
    assert "This figure cannot be drawn: no &lt;ink&gt;" in page
    assert page.count("<svg") > 3
    assert "cannot be drawn: no <ink>" in capsys.readouterr().err


def spoil(change):
    run = measured("static", 0, "idle")
    change(run, run["sets"]["test"], run["sets"]["test"]["rows"][0])
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run, clips, row: run.pop("sets"), "is no measured.json: sets is missing"),
        (lambda run, clips, row: run.update(format=3), "format 3, this version reads 1 and 2"),
        (lambda run, clips, row: run.update(method=True), "method: expected a text, got true"),
        (lambda run, clips, row: run.update(macs=[]), "is no measured.json"),
        (
            lambda run, clips, row: run["macs"].update(full=0),
            "expected greater than 0, got 0",
        ),
        (
            lambda run, clips, row: run.update(machine="mine"),
            "expected names with values, got 'mine'",
        ),
        (lambda run, clips, row: run["data"].pop("digest"), "data.digest is missing"),
        (lambda run, clips, row: row.update(correct=["01"]), "set 'test', row exact 1: expected"),
        (lambda run, clips, row: row.update(correct=[]), "expected texts of 240 digits"),
        (lambda run, clips, row: row.update(errors=[[0, 1]]), "the errors of 240 clips"),
        (lambda run, clips, row: row.update(errors=[]), "the errors of 240 clips"),
        (lambda run, clips, row: clips["clips"].update(weight=[1]), "weights that do not fit"),
        (lambda run, clips, row: row.update(masks="11x000"), "texts of 6 digits 0 and 1"),
        (lambda run, clips, row: row.update(masks=["110000"]), "1 masks for 240 clips"),
        (lambda run, clips, row: row.update(clips=[999]), "clips that are not in the set"),
        (lambda run, clips, row: clips["rows"].append(row), "two rows exact 1"),
        (lambda run, clips, row: clips["clips"]["label"].pop(), "columns of different lengths"),
        (
            lambda run, clips, row: run.update(layers="6"),
            "layers: expected a whole number",
        ),
        (lambda run, clips, row: run.update(layers=10**9), "layers: expected less than or equal"),
        (lambda run, clips, row: run.update(steps=10**400), "is too large"),
        (lambda run, clips, row: run.update(more=1), "more is not known"),
        (lambda run, clips, row: run.update(seconds={"train": "x"}), "seconds.train: expected a"),
        (lambda run, clips, row: run.update(labels="abc"), "labels: expected a list, got 'abc'"),
        (lambda run, clips, row: run.update(commit=5), "commit: expected a text, got 5"),
        (lambda run, clips, row: row.update(macs=float("nan")), "NaN is no number"),
        (lambda run, clips, row: row.update(budget=-1), "budget: expected greater than 0"),
        (lambda run, clips, row: row.update(errors=[["a"] * 240]), "errors[0][0]: expected a num"),
        (lambda run, clips, row: row.update(errors=None), "errors: expected a list, got null"),
        (lambda run, clips, row: row.update(errors=[[-1] * 240]), "the errors of 240 clips"),
        (lambda run, clips, row: row.update(clips=["1"]), "clips[0]: expected a whole number"),
        (lambda run, clips, row: row.update(masks=[1]), "masks"),
        (
            lambda run, clips, row: row.update(errros=[]),
            "rows[0].errros is not known: did you mean errors?",
        ),
        (lambda run, clips, row: clips["clips"].update(file=[]), "file"),
        (lambda run, clips, row: clips["clips"].update(speaker=[5] * 240), "speaker[0]: expected"),
        (lambda run, clips, row: clips["clips"].update(weight=[]), "weights that do not fit"),
    ],
)
def test_what_is_no_measured_file_is_said(tmp_path, change, message):
    path = write(tmp_path, spoil(change))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Measured.from_json(path)
    assert str(path) in str(caught.value)


def test_files_of_the_first_format_are_read_alike(tmp_path):
    run = measured("static", 0, "idle")
    new = Measured.from_json(write(tmp_path / "new", run))
    run["format"] = 1
    for clips in run["sets"].values():
        for row in clips["rows"]:
            row["correct"] = ["".join("10"[e] for e in draw) for draw in row.pop("errors")]
    old = Measured.from_json(write(tmp_path / "old", run))
    for where, clips in new.sets.items():
        for key, row in clips.rows.items():
            np.testing.assert_array_equal(row.correct, old.sets[where].rows[key].correct)


def test_texts_count_by_their_words(tmp_path):
    """The mean is 1 - WER, not that of the clips, and groups have words of their own."""
    words = [1 + i % 5 for i in range(CLIPS)]
    run = measured("static", 0, "idle")
    run["metric"] = "wer"
    errors = [i % 3 for i in range(CLIPS)]
    for clips in run["sets"].values():
        clips["clips"]["weight"] = words
        for row in clips["rows"]:
            row["errors"] = [errors for _ in row["errors"]]
    write(tmp_path, run)
    (study,) = load_study(tmp_path)
    arm = ("static", "exact")
    expected = 1 - sum(errors) / sum(words)
    assert study.accuracy("test", arm, 2) == pytest.approx(expected)
    mean, low, high = study.interval("test", arm, 2)
    assert mean == pytest.approx(expected)
    assert low < mean < high
    name, worst = worst_group(study, "test", arm, 2, "speaker")
    inside = [i for i in range(CLIPS) if columns()["speaker"][i] == name]
    rate = sum(errors[i] for i in inside) / sum(words[i] for i in inside)
    assert worst == pytest.approx(1 - rate)
    assert f"{100 - 100 * expected:.1f} (" in accuracies(study, "test").rows[0][2]


def spoken(tmp_path, speakers, better=None):
    """A study of texts: "static" and, with as many errors less as `better` says, "input"."""
    words = [1 + i % 5 for i in range(CLIPS)]
    rng = np.random.default_rng(0)
    bad = rng.uniform(0, 1, CLIPS)  # how hard a speaker is to understand
    errors = [
        1 + int(w * bad[speakers.index(s)] > 0.5) + w // 3
        for w, s in zip(words, speakers, strict=True)
    ]
    for method, less in (("static", np.zeros(CLIPS, dtype=int)), ("input", better)):
        run = measured(method, 0, "said")
        run["metric"] = "wer"
        for clips in run["sets"].values():
            clips["clips"] |= {"weight": words, "speaker": speakers}
            for row in clips["rows"]:
                inside = row.get("clips", range(CLIPS))
                own = [errors[i] - int(less[i]) * (row["rule"] == "exact") for i in inside]
                row["errors"] = [own for _ in row["errors"]]
        write(tmp_path, run)
    (study,) = load_study(tmp_path)
    return study, np.array(words, dtype=float), np.array(errors, dtype=float)


@pytest.mark.parametrize(("count", "over"), [(20, "speakers"), (9, "clips"), (0, "clips")])
def test_intervals_of_word_error_rates_are_over_speakers_as_in_a_sweep(tmp_path, count, over):
    speakers = [f"s{i % count}" if count else "" for i in range(CLIPS)]
    better = np.array([int(i % 20 < 5) for i in range(CLIPS)])  # for some of the speakers
    study, words, errors = spoken(tmp_path, speakers, better)
    groups = speakers if over == "speakers" else None
    arm, ours = ("static", "exact"), ("input", "exact")
    rate = ratio_bootstrap(errors, words, groups=groups)
    found = study.interval("test", arm, 2)
    assert found == pytest.approx((1 - rate.mean, 1 - rate.high, 1 - rate.low))
    result = judge(study)["sets"]["test"]
    assert result["intervals_over"] == over
    level = result["level"]
    for ends, expected in (
        ("", ratio_bootstrap(better, words, groups=groups)),
        ("_corrected", ratio_bootstrap(better, words, groups=groups, level=level)),
    ):
        gain = result["budgets"]["2"]["methods"]["static"]
        got = (gain["gain"], gain["low" + ends], gain["high" + ends])
        assert got == pytest.approx([100 * x for x in expected], abs=1e-3)
    _, found = areas(study, "test", [arm, ours])
    assert found[arm].interval() == pytest.approx(study.interval("test", arm, 2))  # as flat a line
    mean = study.over("test", ours, 2, [(arm, 2)]).interval()
    assert mean == pytest.approx(ratio_bootstrap(better, words, groups=groups))
    text = report([study], [judge(study)])
    assert f"paired bootstrap over {over}" in text


def test_some_clips_of_texts_are_compared_with_all_in_the_same_words(tmp_path):
    """What is measured on some clips only (ceilings) has its own mean number of words."""
    study, words, _ = spoken(tmp_path, [""] * CLIPS, np.ones(CLIPS, dtype=int))
    gap = study.difference("test", ("input", "exact"), 2, ("input", "ceiling"))
    some = slice(0, CLIPS, 3)
    assert gap.interval().mean == pytest.approx(len(words[some]) / words[some].sum())


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1}', '{"format": 1, "meth', 99_999 * "[", "null"], ids=len
)
def test_foreign_and_truncated_files(tmp_path, text):
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(ValueError, match=r"measured\.json is no measured\.json"):
        load_study(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_pipe_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "measured.json")
    with pytest.raises(ValueError, match="a pipe or a device"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sedes: [3]", "sedes is not known: did you mean seeds?"),
        ("settings: {epoch: 3}", "settings.epoch is not known: did you mean epochs?"),
        ("settings: {language: no}", "settings.language takes a text, in quotes; got false"),
        ("settings: {vocabulary: 0500}", "line 1: 0500 would be a number that is not decimal: "),
        ("settings: {method: no}", "settings.method takes a text, in quotes; got false"),
        ("data: {a: {language: no}}", "data.a.language takes a text, in quotes; got false"),
        ("data: {a: {}, b: {vocabulry: x}}", "b.vocabulry is not known: did you mean vocabulary?"),
        ("data: {a: {epochs: many}}", "data.a.epochs takes a float; got 'many'"),
        ('data: {"a\\nb": {epochs: 0}}', "data.'a\\nb'.epochs must be above 0"),
        ("start: {lr_haed: 1}", "start.lr_haed is not known: did you mean lr_head?"),
        ("seeds: 3", "seeds: expected a list, got 3"),
        ("seeds: [x]", "seeds[0]: expected a whole number, got 'x'"),
        ("seeds: [yes]", "seeds[0]: expected a whole number, got true"),
        ("seeds: []", "one method and one seed at least"),
        ("variants: full", "variants: expected a list, got 'full'"),
        ("variants: [no]", "variants[0]: expected a text, got false"),
        ("variants: [magic]", "unknown method 'magic'"),
        ("settings: [a]", "settings: expected names with values"),
        ("data: {a: 5}", "data.a: expected names with values, got 5"),
        ("data: {2024: {}}", "the name 2024 is no text: write it in quotes"),
        ("snr_db: {a: 10}", "snr_db.a: expected a list, got 10"),
        ("snr_db: {a: [.nan]}", ".nan is no number"),
        ("ceilings: 1", "ceilings: expected true or false, got 1"),
        ("draws: 1000000000", "draws is a number of masks"),
        ("ablation_seeds: -1", "ablation_seeds must be 0 or more"),
        ("seeds: [1]\nseeds: [2]", "seeds stands there twice"),
        ("- a", "expected names with values, got a list of 1"),
        ("a: [", "it is no YAML"),
    ],
)
def test_a_study_that_is_none_gets_one_line(tmp_path, text, told):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"study\.yaml is not the YAML of a study: ") as error:
        StudyConfig.from_yaml(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda read: read.pop("masks"), "masks is missing"),
        (lambda read: read["rows"][0].pop("macs"), "rows[0].macs is missing"),
        (lambda read: read["rows"][0].update(value="1"), "rows[0].value: expected a number"),
        (lambda read: read["rows"][0].update(valeu=1), "rows[0].valeu is not known"),
        (lambda read: read["rows"][0].update(value=float("nan")), "NaN is no number"),
        (lambda read: read.update(masks={"files": "abc"}), "masks.files: expected a list"),
        (lambda read: read.update(header=[]), "header: expected names with values"),
        (lambda read: read.update(rows={}), "rows: expected a list"),
    ],
)
def test_a_sweep_that_is_none_gets_one_line(tmp_path, change, told):
    row = Row("full", 6, "accuracy", 0.5, 0.4, 0.6, 1e9, 1.0, None, None, 6.0, [1.0] * 6)
    sweep = Sweep({"clips": 2}, [row], {"files": ["a", "b"], "labels": ["x", "y"]})
    path = tmp_path / "s.json"
    write_json(path, sweep.to_json())
    assert Sweep.from_json(path) == sweep
    read = json.loads(path.read_text())
    change(read)
    path.write_text(json.dumps(read))
    with pytest.raises(ValueError, match="is not the JSON of a sweep: ") as error:
        Sweep.from_json(path)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run["sets"]["test"]["clips"]["file"].reverse(), "other clips of 'test'"),
        (lambda run: run.update(labels=["x"]), "other labels"),
        (
            lambda run: run["sets"]["test"]["clips"].update(weight=[2] * CLIPS),
            "other clips of 'test'",
        ),
        (lambda run: run.update(metric="wer"), "other metric"),
        (lambda run: run["data"].update(digest="d2"), "other data digest"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, change, message):
    write(tmp_path, measured("full", 0, "idle"))
    run = measured("static", 0, "idle")
    change(run)
    write(tmp_path, run)
    with pytest.raises(ValueError, match=message):
        load_study(tmp_path)


def test_two_runs_of_one_seed_and_no_runs(tmp_path):
    with pytest.raises(ValueError, match=r"no measured\.json"):
        load_study(tmp_path)
    write(tmp_path, measured("full", 0, "idle"))
    write(tmp_path / "again", measured("full", 0, "idle"))
    with pytest.raises(ValueError, match="a second run of full, seed 0"):
        load_study(tmp_path)
