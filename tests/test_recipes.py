"""Recipes: what each says is true, and each trains a step and is swept on a tiny copy."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import corpora
import numpy as np
import pytest
import tiny
import transformers as t
import yaml

from sounding.cli.app import main
from sounding.data.corpora import LAYOUTS, MARKS
from sounding.data.folder import DataError
from sounding.data.hub import hub_folder
from sounding.evaluation.sweep import sweep
from sounding.model.loading import load
from sounding.recipes import (
    METRICS,
    NOT_YET,
    load_recipe,
    recipe_names,
    recipe_table,
    recipe_text,
)
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.study.study import load_study
from sounding.training.loop import train

ROOT = Path(__file__).parents[1]
SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}
TARGETS = {"accuracy": "label", "wer": "text", "map": "labels"}
BACKBONES = {  # of a recipe -> the same architecture in tiny, and its feature extractor
    "whisper-base": (
        "whisper-classification",
        lambda: t.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
    ),
    "moonshine-base": ("moonshine-model", lambda: t.Wav2Vec2FeatureExtractor(do_normalize=False)),
    "microsoft/wavlm-base": ("wavlm-post", lambda: t.Wav2Vec2FeatureExtractor()),
    "MIT/ast-finetuned-audioset-10-10-0.4593": (
        "ast",
        lambda: t.ASTFeatureExtractor(num_mel_bins=32, max_length=64),
    ),
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Where the tiny backbone of each of the recipes' backbones is."""
    made = {}
    for name, (family, extractor) in BACKBONES.items():
        made[name] = tmp_path_factory.mktemp("backbones") / family
        tiny.make(family).save_pretrained(made[name])
        extractor().save_pretrained(made[name])
    made["decoder"] = tmp_path_factory.mktemp("speaker")
    tiny.save_speaker(made["decoder"])
    return made


def backbone_of(settings, backbones) -> str:
    """The tiny backbone in place of the one that settings name."""
    own_decoder = settings.get("task") == "decoder"
    return str(backbones["decoder" if own_decoder else settings["backbone"]])


def tiny_corpus(recipe, root: Path) -> Path:
    layout = recipe.corpus["layout"]
    if layout != "folder":
        corpora.MAKE[layout](root)
    else:
        splits = ("test",) if recipe.trained_by else ("train", "validation", "test")
        corpora.folder(root, TARGETS[recipe.metric], splits)
    return root


def settings_of(recipe) -> dict:
    """Those of the recipe, or a skip where this version of `sounding` has not all of them."""
    missing = set(recipe.settings) - SETTINGS
    if missing:
        pytest.skip(f"TrainConfig has no {', '.join(missing)} yet")
    return recipe.settings


def test_there_is_a_recipe_for_each_benchmark_and_backbone():
    wavlm, ast = ("-wavlm-base",), ("-ast", "-wavlm-base")
    expected = {"librispeech100": wavlm, "librispeech960": wavlm, "tedlium3": wavlm}
    expected |= dict.fromkeys(("speech-commands", "esc50", "audioset", "fluent"), ast)
    small = ("speechocean762", "ljspeech_part", "wakewords", "fsdd", "ravdess", "esc10")
    expected |= dict.fromkeys(small, ("-whisper-base", "-moonshine-base"))
    expected["iemocap"] = wavlm
    expected["ravdess"] += wavlm
    expected["speechocean762"] += ("-whisper-base-decoder",)
    assert recipe_names() == sorted(name + end for name in expected for end in expected[name])


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_resolves(name):
    recipe = load_recipe(name)
    options = {n: value for n, value in recipe.corpus.items() if n != "layout"}
    layout = recipe.corpus["layout"]
    assert layout in MARKS
    assert set(options) <= set(LAYOUTS[layout].options if layout in LAYOUTS else ())
    hub = {n: value for n, value in recipe.hub.items() if n != "id"}
    inspect.signature(hub_folder).bind(recipe.hub.get("id", "a/b"), **hub)
    if layout in LAYOUTS:
        tasks = {"classification": "accuracy", "text": "wer", "tags": "map"}
        assert recipe.metric == tasks[LAYOUTS[layout].task]
    assert recipe.metric in METRICS
    if recipe.trained_by:
        assert load_recipe(recipe.trained_by).metric == recipe.metric
        with pytest.raises(ValueError, match=f"test clips only: train {recipe.trained_by}, then"):
            recipe.config()
        return
    assert recipe.settings["backbone"] in BACKBONES
    settings_of(recipe)
    config = recipe.config({"epochs": "2"})
    assert config == TrainConfig.from_values({**recipe.settings, "epochs": 2})


@cache
def packed(measured: Path) -> list[tuple[str, dict]]:
    """Data set and settings of each run of a study."""
    return [(run.data, run.info["config"]) for one in load_study(measured) for run in one.runs]


def disagreements(measured: Path, settings: dict, name: str = "") -> list[str]:
    """What the runs of a sweep, or of a study on the corpus of a recipe, had set otherwise."""
    if measured.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        configs = [config for data, config in packed(measured) if name.startswith(f"{data}-")]
    else:
        read = json.loads(measured.read_text())
        configs = [run["config"] for run in read.get("header", read)["runs"]]
    assert configs, f"no run in {measured}"
    return [
        f"{name}: {config[name]}"
        for config in configs
        for name, value in settings.items()
        if name in config and config[name] != TrainConfig.from_values({name: value}).__dict__[name]
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_measured_was_measured_with_the_settings_of_the_recipe(name):
    recipe = load_recipe(name)
    if not recipe.measured.startswith(NOT_YET):
        assert recipe.measured.startswith("benchmarks/results/")
        assert not disagreements(ROOT / recipe.measured, recipe.settings, name)


def test_settings_that_disagree_with_a_measurement_are_found():
    measured = ROOT / "benchmarks" / "results" / "fsdd.json"
    assert not disagreements(measured, {"backbone": "whisper-base", "epochs": 4})
    assert disagreements(measured, {"epochs": 5}) == ["epochs: 4.0"] * 4
    study = ROOT / "benchmarks" / "results" / "study" / "measured.parquet"
    assert disagreements(study, {"max_seconds": 2.4}, "ravdess-whisper-base")
    assert not disagreements(study, {"max_seconds": 2.5}, "ravdess-whisper-base")


@pytest.mark.parametrize("name", [n for n in recipe_names() if not load_recipe(n).trained_by])
@pytest.mark.filterwarnings("ignore:.*have no audio", "ignore:At least one mel filter")
def test_a_recipe_trains_one_step_and_is_swept(name, backbones, tmp_path):
    recipe = load_recipe(name)
    settings = settings_of(recipe)
    folder = recipe.open(tiny_corpus(recipe, tmp_path / "corpus"))
    config = recipe.config({"backbone": backbone_of(settings, backbones), "epochs": 1e-4})
    train(config, folder, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.info["steps"] == 1
    result = sweep([run], folder, rounds=0)
    assert {row.metric for row in result.rows} == {recipe.metric}
    assert [row.kept_layers for row in result.rows if row.method == "input"] == [1, 2, 3, 4]
    assert result.header["clips"] == len(folder.split("test"))


@pytest.mark.parametrize("name", [n for n in recipe_names() if load_recipe(n).trained_by])
def test_a_recipe_for_the_test_sweeps_a_run_of_another(name, backbones, tmp_path):
    recipe = load_recipe(name)
    other = load_recipe(recipe.trained_by)
    backbone = backbones[settings_of(other)["backbone"]]
    config = other.config({"backbone": str(backbone), "epochs": 1e-4})
    train(config, other.open(tiny_corpus(other, tmp_path / "trained")), tmp_path / "run")
    folder = recipe.open(tiny_corpus(recipe, tmp_path / "tested"))
    result = sweep([load_run(tmp_path / "run")], folder, rounds=0)
    assert {row.metric for row in result.rows} == {"wer"}


@pytest.mark.parametrize("name", ["librispeech100-wavlm-base", "tedlium3-wavlm-base"])
def test_a_recipe_of_speech_runs_in_two_processes_of_two_workers(name, backbones, tmp_path):
    recipe = load_recipe(name)
    corpus = tiny_corpus(recipe, tmp_path / "corpus")
    data = ["--recipe", name, "--data", str(corpus)]
    backbone = shutil.copytree(backbone_of(recipe.settings, backbones), tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_text())
    still = {key: 0.0 for key in config if "dropout" in key}  # else each process draws its own
    (backbone / "config.json").write_text(json.dumps(config | still))
    command = ["train", *data, "--backbone", str(backbone)]
    command += ["--epochs", "2", "--set", "precision=fp32", "--set", "batch_size=2"]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    code = "import sys; from sounding.cli import main; sys.exit(main(sys.argv[1:]))"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start += ["--no-python", sys.executable, "-c", code]
    done = subprocess.run(
        [*start, *command, "--set", "workers=2", "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = [
        np.loadtxt(tmp_path / run / "log.csv", delimiter=",", skiprows=1) for run in ("one", "two")
    ]
    assert len(logs[0]) > 2
    np.testing.assert_allclose(*logs, rtol=1e-3)
    sweep = ["sweep", str(tmp_path / "two"), *data, "--rounds", "0"]
    assert main([*sweep, "--json", str(tmp_path / "sweep.json")]) == 0
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == {"wer"}


# --- the commands ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_train_and_sweep_by_a_recipe_of_ones_own(backbones, tmp_path, capsys):
    corpora.esc50(tmp_path / "ESC-50-master")
    values = yaml.safe_load(recipe_text("esc50-ast"))
    values["corpus"] |= {"test_fold": 1, "validation_fold": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    data = ["--recipe", str(tmp_path / "mine.yaml"), "--data", str(tmp_path / "ESC-50-master")]
    backbone = str(backbones[values["settings"]["backbone"]])
    command = ["train", *data, "--backbone", backbone, "--set", "epochs=0.01"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert f"--recipe {tmp_path / 'mine.yaml'}" in capsys.readouterr().out
    config = TrainConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.lr_encoder, config.epochs) == (values["settings"]["lr_encoder"], 0.01)
    command = ["sweep", str(tmp_path / "run"), *data, "--rounds", "0"]
    assert main([*command, "--json", str(tmp_path / "sweep.json")]) == 0
    files = json.loads((tmp_path / "sweep.json").read_text())["masks"]["files"]
    assert all(Path(file).name.startswith("1-") for file in files)
    assert load(tmp_path / "run" / "model").num_layers == 4


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out == recipe_table()
    assert main(["recipes", "fluent-ast"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["corpus"]["layout"] == "fluent"


def test_the_page_has_the_table_of_the_recipes():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert recipe_table() in page, "put the output of `sounding recipes` into docs/recipes.md"
    assert recipe_text("esc50-ast") in page
    for name in (*LAYOUTS, "hub", "folder"):
        assert f"`{name}`" in page


GOOD = """
title: mine
source: here
corpus: {layout: esc50, test_fold: 5}
target: a sound
metric: accuracy
measured: not yet
settings: {}
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title: x\n", "is no recipe (source is missing)"),
        ("- a\n", "is no recipe (expected names with values, got a list of 1)"),
        ("title: a: b\n", "is no recipe (it is no YAML: mapping values are not allowed"),
        (None, "is no recipe (No such file"),
        (GOOD + "licence: no\n", "licence: expected a text, got false"),
        (GOOD + "licence: MIT\nfree: 1\n", "free is not known"),
        (GOOD + "lisence: MIT\n", "lisence is not known: did you mean licence?"),
        (
            GOOD.replace("{}", "{epcohs: 1}") + "licence: MIT\n",
            "settings.epcohs is not known: did you mean epochs?",
        ),
        (
            GOOD.replace("{}", "{language: no}") + "licence: MIT\n",
            "settings.language takes a text, in quotes; got false (or no, or off)",
        ),
        (
            GOOD.replace("{}", "{vocabulary: 0500}") + "licence: MIT\n",
            "0500 would be a number that is not decimal: write it without zeros in front, or in q",
        ),
        (GOOD + "licence: MIT\nname: x\n", "name is not known"),
        (GOOD.replace("accuracy", "bleu") + "licence: MIT\n", "metric: expected 'accuracy', 'wer'"),
        (GOOD.replace("layout", "kind") + "licence: MIT\n", "corpus needs a layout"),
        (GOOD.replace("esc50", "[esc50]") + "licence: MIT\n", "corpus needs a layout"),
        (GOOD + "licence: MIT\nsettings: 5\n", "settings stands there twice"),
        (
            GOOD + "licence: MIT\nhub: {id: a/b, splits: {train: all}}\n",
            "hub: splits cannot be used: train: exp",
        ),
        (GOOD + "licence: MIT\nhub: {id: a/b, colour: red}\n", "hub has no option colour"),
        (
            GOOD.replace("fold: 5", "fold: yes") + "licence: MIT\n",
            "expected a whole number, got true",
        ),
        (GOOD.replace("test_fold", "fold") + "licence: MIT\n", "corpus has no option fold"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, capsys, text, told):
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert (
        main(["train", "--recipe", str(tmp_path / "mine.yaml"), "--data", "x", "--out", "y"]) == 2
    )


def test_a_recipe_of_ones_own_is_shown_too(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text("esc50-ast").replace("epochs: 15", "epochs: 3"))
    assert main(["recipes", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert load_recipe(str(path)).config().epochs == 3


def test_a_recipe_reads_its_hub_copy_by_its_own_rule(monkeypatch, tmp_path):
    asked = {}

    def hub(source, **options):
        asked.update(options, source=source)
        corpora.folder(tmp_path / "copy", "label")
        return tmp_path / "copy"

    monkeypatch.setattr("sounding.data.corpora.hub_folder", hub)
    assert load_recipe("esc50-ast").open("ashraq/esc50").clips
    by = {"column": "fold", "validation": [4], "test": [5]}
    assert asked == {"source": "ashraq/esc50", "target": "category", "by": by}


def test_a_copy_under_another_id_is_read_by_the_same_rule(monkeypatch):
    asked = []

    def hub(source, **options):
        asked.append((source, options))
        raise DataError("no network")

    monkeypatch.setattr("sounding.data.corpora.hub_folder", hub)
    for name in ("librispeech100-wavlm-base", "wakewords-whisper-base"):
        with pytest.raises(DataError, match="no network"):
            load_recipe(name).open("mine/copy")
    assert [source for source, _ in asked] == ["mine/copy"] * 2
    assert asked[0][1]["splits"]["train"] == ["train.clean.100"]
    assert asked[1][1] == {}


def test_a_recipe_takes_its_corpus_as_a_folder_too(tmp_path):
    corpora.folder(tmp_path / "clips")
    assert len(load_recipe("ravdess-whisper-base").open(tmp_path / "clips").clips) == 12
