"""The search for settings of a study: the same for every variant, and by validation clips."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sounding.errors import UsageError
from sounding.progress import Interrupted
from sounding.study import compare as module
from sounding.study import search as searching
from sounding.study.compare import StudyConfig, compare, place
from sounding.study.html import report
from sounding.study.measured import FILE
from sounding.study.search import combinations, read_search
from sounding.study.study import load_study
from sounding.study.tables import markdown, trainings
from sounding.study.verdict import judge
from sounding.training.loop import train

RATES = [1e-5, 3e-3]
VARIANTS = ("full", "random", "dld", "random-heads")


@pytest.fixture(scope="module")
def config(whisper):
    settings = {"epochs": 3, "batch_size": 8, "validate_epochs": 0.5, "patience": 3}
    return StudyConfig(
        settings={"backbone": str(whisper), **settings},
        search={"lr_encoder": RATES},
        variants=VARIANTS,
        seeds=(4, 5),
        ablation_seeds=2,
        draws=2,
    )


@pytest.fixture(scope="module")
def trained():
    """The configurations of all trainings, in their order."""
    return []


@pytest.fixture(scope="module")
def out(config, tones, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")

    def noted(settings, folder, directory):
        if not (directory / "model").is_dir():
            trained.append(settings)
        return train(settings, folder, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", noted)
        patch.setattr(searching, "train", noted)
        compare(config, [tones], out)
    return out


def measured(out, tones, variant, seed):
    return json.loads((place(out, tones.name, variant, seed) / FILE).read_text())


def test_each_variant_is_tried_with_the_same_values_and_one_seed(config, out, trained, tones):
    tried = [one for one in trained if one.seed == 4]
    assert len(trained) == len(VARIANTS) * (len(RATES) + 1)
    assert [one.lr_encoder for one in tried] == RATES * len(VARIANTS)
    assert len({(one.epochs, one.patience, one.lr_head, one.batch_size) for one in trained}) == 1


def test_the_best_by_validation_is_taken_for_every_seed(out, trained, tones):
    for variant in VARIANTS:
        found = read_search(out / tones.name / "search" / f"{variant}.json")
        errors = [(trial.error, trial.loss) for trial in found.trials]
        assert found.chosen == errors.index(min(errors))
        rate = found.trials[found.chosen].settings["lr_encoder"]
        for seed in (4, 5):
            got = measured(out, tones, variant, seed)
            assert got["config"]["lr_encoder"] == rate
            assert got["search"]["chosen"] == found.chosen
        best = found.trials[found.chosen]
        curve = measured(out, tones, variant, 4)["validations"]
        assert [best.step, best.error, best.loss] in curve  # the trial is the run of its seed


def test_only_what_was_chosen_is_left(out, tones):
    left = {path.name for path in (out / tones.name / "search").iterdir()}
    assert left == {f"{variant}.json" for variant in VARIANTS}


def test_rival_heads_are_their_own_for_each_depth(out, tones):
    assert measured(out, tones, "random-heads", 4)["config"]["heads"] == "own"
    assert measured(out, tones, "random", 4)["config"]["heads"] == "auto"


def test_the_report_shows_curves_and_search(out, tones):
    (study,) = load_study([out])
    text = markdown(trainings(study)).replace("\\", "")
    assert text.count("lr_encoder 1e-05: ") == len(VARIANTS)
    assert text.count(", chosen") == len(VARIANTS)
    page = report([study], [judge(study)])
    assert "When the trainings stopped getting better" in page
    assert "cannot be drawn" not in page


def test_a_search_that_was_interrupted_goes_on(config, out, tones, tmp_path, monkeypatch):
    """Killed in the second trial, and killed once more before the first is handed over."""
    small, tries = replace(config, variants=("random",), seeds=(4,)), []

    def interrupted(settings, folder, directory):
        tries.append(settings.lr_encoder)
        if len(tries) == 2:
            raise Interrupted("now")
        return train(settings, folder, directory)

    monkeypatch.setattr(searching, "train", interrupted)
    with pytest.raises(Interrupted):
        compare(small, [tones], tmp_path)
    with monkeypatch.context() as patch:

        def killed(*_):
            raise Interrupted("then")

        patch.setattr(module, "hand_over", killed)
        with pytest.raises(Interrupted):
            compare(small, [tones], tmp_path)
    compare(small, [tones], tmp_path)
    assert tries == [RATES[0], RATES[1], RATES[0], RATES[1]]
    for key in ("validations", "sets", "steps"):
        assert measured(tmp_path, tones, "random", 4)[key] == measured(out, tones, "random", 4)[key]


def test_other_values_than_were_tried_are_refused(config, out, tones):
    other = replace(config, search={"lr_encoder": [1e-5, 1e-4]}, seeds=(4, 5, 6))
    with pytest.raises(UsageError, match="other values"):
        compare(other, [tones], out)


def test_a_search_needs_values_that_a_setting_takes_and_something_to_judge_by(config, tones):
    with pytest.raises(UsageError, match=r"search\.lr_encoder has no values"):
        replace(config, search={"lr_encoder": []})
    with pytest.raises(UsageError, match=r"search\.lr_encoder"):
        replace(config, search={"lr_encoder": ["fast"]})
    with pytest.raises(UsageError, match=r"search\.lr_rate is not known"):
        replace(config, search={"lr_rate": [1]})
    blind = {k: v for k, v in config.settings.items() if k not in ("validate_epochs", "patience")}
    with pytest.raises(UsageError, match="set validate_epochs"):
        compare(replace(config, settings=blind), [tones], tones / "no")


def test_a_damaged_search_is_said(tmp_path):
    file = tmp_path / "full.json"
    file.write_text('{"trials": [], "chosen": 0}')
    with pytest.raises(UsageError, match="is no search of a study: trial 0 of 0"):
        read_search(file)


def test_combinations():
    assert combinations({}) == [{}]
    assert combinations({"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
