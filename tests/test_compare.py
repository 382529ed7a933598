"""A study end to end: every method trained, measured, compared; and what would catch a cheat."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers

from sounding.cli.app import main
from sounding.data.folder import load_folder
from sounding.evaluation.report import check_outputs
from sounding.evaluation.sweep import sweep
from sounding.policies import StaticScores
from sounding.policies.masks import every_mask
from sounding.progress import Interrupted
from sounding.runs.mask_outputs import mask_outputs
from sounding.runs.run import load_run
from sounding.runs.search import best_static, choose_fallbacks
from sounding.study import compare as module
from sounding.study.arms import check
from sounding.study.compare import StudyConfig, compare, place
from sounding.study.measure_run import measure_run
from sounding.study.measured import FILE
from sounding.study.study import load_study
from sounding.study.variants import bases, variants
from sounding.training.loop import train

SETS = ("validation", "test")


@pytest.fixture(scope="module")
def config(whisper, tones):
    return StudyConfig(
        settings={"backbone": str(whisper), "epochs": 2, "batch_size": 8},
        seeds=(0,),
        snr_db={tones.name: [0]},
    )


@pytest.fixture(scope="module")
def out(config, tones, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    compare(config, [tones], out)
    return out


@pytest.fixture(scope="module")
def study(out):
    return load_study([out])[0]


@pytest.fixture(scope="module")
def run(out, tones):
    return load_run(place(out, tones.name, "input", 0))


@pytest.fixture(scope="module")
def features(run, tones):
    return run.read(load_folder(tones).split("test"), "read")


def rows(out, tones, variant, where="test"):
    read = json.loads((place(out, tones.name, variant, 0) / FILE).read_text())
    return {(row["rule"], row["budget"]): row for row in read["sets"][where]["rows"]}


def test_every_method_has_its_rows_on_every_set(out, tones):
    rules = {
        "full": {"exact"},
        "random": {"exact", "static"},
        "dld": {"exact", "static"},
        "static": {"exact", "static"},
        "i3d": {"exact", "mean"},
        "early-exit": {"exact", "mean", "mean-shuffled", "mean-entropy"},
        "idld": {"exact", "static", "shuffled", "constant", "oracle"},
        "input": {"exact", "mean", "mean-shuffled", "static", "shuffled", "constant", "oracle"},
        "distill": {"exact"},
    }
    assert rules.keys() == bases().keys()
    for variant, expected in rules.items():
        for where in ("validation", "test", "test at 0 dB"):
            found = rows(out, tones, variant, where)
            if variant in ("idld", "input") and where == "test":
                expected = expected | {"ceiling", "ceiling-reference"}
            if where.startswith("test at"):
                expected = expected - {"oracle", "ceiling", "ceiling-reference"}
            assert {rule for rule, _ in found} == expected, (variant, where)
            assert {k for rule, k in found if rule == "exact"} == {1, 2, 3, 4}


def test_exact_rows_have_exactly_k_layers(out, tones):
    for variant in bases():
        for (rule, budget), row in rows(out, tones, variant).items():
            if not rule.startswith("mean"):
                masks = [row["masks"]] if isinstance(row["masks"], str) else row["masks"]
                assert {mask.count("1") for mask in masks} == {budget}


def test_what_is_looked_up_is_what_hooks_count(run, features, out, tones):
    """The rows come out of a tree of masks; here the same budgets run for real."""
    found = rows(out, tones, "input")
    batch = run.collate(features)
    for k in (1, 2, 3, 4):
        counts = []
        handles = [
            layer.register_forward_hook(lambda m, a, o, c=counts: c.append(len(a[0])))
            for layer in run.dynamic.stack.layers
        ]
        executed = run.dynamic(**batch, budget=k).executed_layers
        for handle in handles:
            handle.remove()
        ran = ["".join("01"[int(x)] for x in mask) for mask in executed.tolist()]
        assert ran == found["exact", k]["masks"]
        assert sum(counts) == k * len(features)


def test_shuffled_depths_are_the_same_depths_of_other_clips(out, tones):
    found = rows(out, tones, "input")
    for mean in (2, 3):
        own, other = found["mean", mean]["masks"], found["mean-shuffled", mean]["masks"]
        assert sorted(own) == sorted(other)
        assert own != other or len(set(own)) == 1


def test_a_row_that_does_not_fit_what_runs_is_refused(run, features, out, tones):
    good = [row for row in rows(out, tones, "input").values() if row["rule"] == "exact"]
    assert check(run, features, good)["same_layers"] == 8 * 4
    wrong = {**good[0], "masks": [mask[1:] + mask[:1] for mask in good[0]["masks"]]}
    with pytest.raises(RuntimeError, match="ran, the row has"):
        check(run, features, [wrong])


def test_the_oracle_is_never_below_any_choice_among_the_same_masks(study, out, tones):
    for where in ("validation", "test"):
        found = rows(out, tones, "input", where)
        for k in (1, 2, 3):
            oracle = np.array(found["oracle", k]["errors"][0]) == 0
            for rule in ("exact", "shuffled", "constant", "static"):
                right = np.array(found[rule, k]["errors"][0]) == 0
                assert (oracle >= right).all()
    assert study.data == tones.name


def test_shuffled_features_change_the_masks_of_a_selector_that_reads_them(run, features, tones):
    """With weights that make the choice follow the input, another clip's features show."""
    folder = load_folder(tones)
    before = {n: p.clone() for n, p in run.dynamic.policy.state_dict().items()}
    try:
        run.dynamic.policy.falls_back.zero_()
        with torch.no_grad():
            torch.nn.init.normal_(run.dynamic.policy.score.weight, std=3.0)
            torch.nn.init.zeros_(run.dynamic.policy.score.bias)
        made = measure_run(run, folder, "input")["sets"]["test"]["rows"]
        masks = {(row["rule"], row["budget"]): row["masks"] for row in made}
        assert masks["exact", 2] != masks["shuffled", 2]
        assert sorted(masks["exact", 2]) == sorted(masks["shuffled", 2])  # only who gets them
        assert len(set(masks["exact", 2])) > 1
        assert len(set(masks["constant", 2])) == 1
    finally:
        run.dynamic.policy.load_state_dict(before)


def test_a_selector_made_constant_equals_its_static_mask(run, features):
    selector = run.dynamic.policy
    weight, falls_back = selector.project.weight.clone(), selector.falls_back.clone()
    try:
        selector.falls_back.zero_()
        with torch.no_grad():
            selector.project.weight.zero_()
        batch = run.collate(features)
        chosen = run.dynamic(**batch, budget=2)
        scores = selector.scores_of(torch.zeros(1, 2 * selector.width), torch.tensor([2]))
        run.dynamic.policy = StaticScores(scores[0].detach())
        static = run.dynamic(**batch, budget=2)
        assert chosen.executed_layers.equal(static.executed_layers)
        assert chosen.logits.equal(static.logits)
    finally:
        run.dynamic.policy = selector
        with torch.no_grad():
            selector.project.weight.copy_(weight)
            selector.falls_back.copy_(falls_back)


def test_a_selector_falls_back_where_the_static_mask_is_as_good(run, features, tones):
    """Whatever it learned, on validation it is never below the best static mask."""
    folder = load_folder(tones)
    clips = folder.split("validation")
    targets = run.task.targets(folder, clips)
    labels = torch.tensor([target.ids[0] for target in targets])
    some = run.read(clips, "read")
    before = {n: p.clone() for n, p in run.dynamic.policy.state_dict().items()}
    masks = every_mask(4)
    found = mask_outputs(run, some, masks, targets)
    right = (8 - found.errors.sum(1)).tolist()
    losses = found.losses.mean(1).tolist()
    try:
        run.dynamic.policy.falls_back.zero_()
        with torch.no_grad():
            run.dynamic.policy.score.bias.copy_(torch.tensor([-9.0, 0, 9, 3]))  # a bad habit
        choose_fallbacks(run, some, targets)
        best = best_static(run, some, targets)
        for k in (1, 2, 3):
            first = (masks == (torch.arange(4) < k)).all(-1).int().argmax()
            searched = (masks == best[k]).all(-1).int().argmax()
            ahead = right[searched] > right[first] and losses[searched] < losses[first]
            static = searched if ahead else first
            out = run.dynamic(**run.collate(some), budget=k)
            if run.dynamic.policy.falls_back[k]:
                assert (out.executed_layers == masks[static]).all()
            else:
                assert (out.logits.argmax(-1) == labels).sum() > right[static]
        assert run.dynamic.policy.falls_back[1:4].any()
    finally:
        run.dynamic.policy.load_state_dict(before)


def test_the_best_static_mask_is_the_best_of_all(run, features, tones, monkeypatch):
    folder = load_folder(tones)
    targets = run.task.targets(folder, folder.split("test"))
    masks = every_mask(4)
    right = 1 - mask_outputs(run, features, masks, targets).errors.double().mean(1)
    best = best_static(run, features, targets)
    for k in (1, 2, 3):
        under = {tuple(m): float(r) for m, r in zip(masks.tolist(), right, strict=True)}
        ceiling = max(value for mask, value in under.items() if sum(mask) == k)
        assert under[tuple(best[k].tolist())] == ceiling
    monkeypatch.setattr("sounding.runs.search.ALL", 3)  # too many of any size: beam only
    beam = best_static(run, features, targets)
    assert [int(beam[k].sum()) for k in (1, 2, 3)] == [1, 2, 3]
    assert beam[3].equal(best[3])  # the first step of the beam tries them all


def test_a_killed_study_goes_on_and_does_nothing_twice(config, tones, tmp_path, monkeypatch):
    config = replace(config, variants=("full", "early-exit"), snr_db={})
    trained = []

    def interrupted(config, folder, out):
        if trained:
            raise Interrupted("stopped")
        trained.append(out)
        return train(config, folder, out)

    train = module.train
    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(Interrupted):
        compare(config, [tones], tmp_path)
    assert (place(tmp_path, tones.name, "full", 0) / FILE).exists()
    monkeypatch.setattr(module, "train", lambda *args: [trained.append(args[2]), train(*args)][1])
    (line,) = compare(config, [tones], tmp_path, keep_models=False)
    assert [path.name for path in trained] == ["full-0", "early-exit-0"]
    assert line.startswith("VERDICT {")
    assert not list(tmp_path.rglob("model.safetensors"))
    compare(config, [tones], tmp_path, keep_models=False)
    assert len(trained) == 2


def test_a_model_of_one_layer_has_nothing_to_choose_and_is_studied_all_the_same(tones, tmp_path):
    tiny.make("whisper-classification", encoder_layers=1).save_pretrained(tmp_path / "one")
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(
        tmp_path / "one"
    )
    settings = {"backbone": str(tmp_path / "one"), "epochs": 0.2, "batch_size": 8}
    variants = tuple(name for name in bases() if name != "distill")  # which says so
    config = StudyConfig(settings=settings, seeds=(0,), variants=variants)
    (line,) = compare(config, [tones], tmp_path / "study")
    assert json.loads(line.removeprefix("VERDICT "))["matters"] is None
    runs = [load_run(place(tmp_path / "study", tones.name, v, 0)) for v in variants]
    assert {row.kept_layers for row in sweep(runs, load_folder(tones), rounds=0).rows} == {1}


def test_a_study_that_cannot_be_drawn_does_not_begin(config, tones, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"sounding\[demo\]"):
        compare(config, [tones], tmp_path / "study")
    assert not (tmp_path / "study").exists()
    with pytest.raises(ModuleNotFoundError, match=r"sounding\[demo\]"):
        check_outputs(plots=tmp_path)


def test_all_runs_of_a_study_go_on_from_its_start(config, tones, tmp_path, monkeypatch):
    config = replace(
        config, variants=("full", "random"), seeds=(3,), snr_db={}, start={"epochs": 1.0}
    )
    trained = []
    monkeypatch.setattr(module, "train", lambda *args: [trained.append(args[0]), train(*args)][1])
    compare(config, [tones], tmp_path, keep_models=False)
    start = tmp_path / tones.name / "start"
    assert [(one.method, one.seed) for one in trained] == [
        ("full", 0), ("full", 3), ("full", 0), ("random", 3)
    ]  # fmt: skip
    assert {one.backbone for one in trained[1::2]} == {str(start / "model")}
    assert trained[0].epochs == 1.0 != trained[1].epochs
    assert (start / "model").is_dir()
    assert not (start / FILE).exists()


def test_a_study_without_ceilings_answers_no_test_clip_under_every_mask(config, tones, tmp_path):
    config = replace(config, variants=("input",), seeds=(0,), snr_db={}, ceilings=False)
    compare(config, [tones], tmp_path, keep_models=False)
    rules = {where: {rule for rule, _ in rows(tmp_path, tones, "input", where)} for where in SETS}
    assert "oracle" in rules["validation"]  # where all masks are known anyway
    assert rules["test"] == rules["validation"] - {"oracle"}


def test_random_dropping_is_measured_under_as_many_masks_as_asked(config, out, tones, tmp_path):
    few = replace(config, variants=("random",), snr_db={}, draws=1)
    compare(few, [tones], tmp_path)
    for where, expected in ((tmp_path, {1}), (out, {3, 4, 5, 6})):  # those of one layer are four
        found = rows(where, tones, "random")
        assert {len(found["exact", k]["errors"]) for k in (1, 2, 3)} <= expected
        assert len(found["exact", 4]["errors"]) == 1
    with pytest.raises(ValueError, match="draws is a number of masks from 1 on; got 0"):
        replace(config, draws=0)


def test_a_slip_in_the_name_of_a_data_set_is_said_before_the_first_training(
    config, tones, tmp_path, monkeypatch, capsys
):
    def never(*args):
        raise AssertionError("it began")

    monkeypatch.setattr(module, "train", never)
    slip = tones.name[:-1]
    for changes in ({"data": {slip: {"epochs": 9}}}, {"snr_db": {slip: [0]}}):
        wrong = rf"\.{slip} is none of the data sets: did you mean {tones.name}\?"
        with pytest.raises(ValueError, match=wrong):
            compare(replace(config, **changes), [tones], tmp_path)
    other = replace(config, data={"elsewhere": {}, slip: {}, tones.name: {}})
    with pytest.raises(AssertionError, match="it began"):
        compare(other, [tones], tmp_path)
    said = capsys.readouterr().err
    for name in ("elsewhere", slip):  # of another part of the study
        assert f"data.{name} is not used: the data sets are {tones.name}" in said


def test_command_line(out, tones, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--out", str(page), "--table", str(tmp_path / "t.md")]) == 0
    assert "VERDICT {" in capsys.readouterr().out
    assert tones.name in page.read_text()
    base = ["compare", "--data", str(tones), "--out", str(tmp_path / "s")]
    for wrong, text in (
        (["--methods", "magic"], "unknown method 'magic'. Known: full"),
        (["--methods", "dld"], "add full"),
        (["--seeds", "one"], "--seeds takes numbers"),
        (["--set", "epochs=never"], "epochs takes a float"),
        (["--config", str(tmp_path / "none.yaml")], "is not the YAML of a study"),
    ):
        assert main([*base, *wrong]) == 2
        assert text in capsys.readouterr().err
    assert main([*base, "--data", str(tones), str(tones)]) == 2
    assert "two data sets of one name" in capsys.readouterr().err


def test_study_configuration_from_yaml(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("seeds: [3]\nvariants: [full, dld]\ndata: {a: {epochs: 7}}\n")
    config = StudyConfig.from_yaml(path)
    made = config.train_config("a", "dld", 3, Path("o"))
    assert (made.epochs, made.teacher, made.seed) == (7.0, "o/a/full-3", 3)
    path.write_text("sedes: [3]")
    with pytest.raises(ValueError, match="sedes"):
        StudyConfig.from_yaml(path)
    assert set(bases()) < set(variants())
