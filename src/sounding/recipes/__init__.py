"""Recipes: one YAML for each benchmark and backbone, which says all that a training needs.

`sounding recipes` lists them; `sounding train --recipe NAME --data DIR_OR_HUB_ID --out RUN` runs
one. A copy of a file that was changed is given by its path: `--recipe mine.yaml`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from ..errors import UsageError
from ..runs.settings import check_settings

if TYPE_CHECKING:  # what reads, checks and trains is imported where it is used, for a quick list
    from ..data.folder import AudioFolder
    from ..runs.config import TrainConfig

DIRECTORY = Path(__file__).parent
METRICS = ("accuracy", "wer", "map")
NOT_YET = "not yet"


@dataclass(frozen=True)
class Recipe:
    """How to train on one corpus with one backbone, and what is known of it.

    Attributes:
        name: of the file, without .yaml.
        title: for people.
        source: where the corpus comes from.
        licence: of the corpus.
        corpus: `layout` (see `sounding.data.corpora.MARKS`) and the options of its reader, such as
            which part is for what.
        target: what is to be recognized, and by which rule.
        metric: "accuracy", "wer" (word error rate) or "map" (mean average precision).
        measured: a file or directory of benchmarks/results, or "not yet" and why.
        settings: of `TrainConfig`.
        hub: `id` on the hub and how to read it (see `sounding.data.hub.hub_folder`); empty where
            the hub has no copy that can be read without running code.
        trained_by: the recipe of the runs to measure, where the corpus is for the test only.
    """

    name: str
    title: str
    source: str
    licence: str
    corpus: dict[str, Any]
    target: str
    metric: Literal["accuracy", "wer", "map"]
    measured: str
    settings: dict[str, Any]
    hub: dict[str, Any] = field(default_factory=dict)
    trained_by: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.corpus.get("layout"), str):
            raise UsageError("corpus needs a layout")
        check_settings(self.settings, "settings")

    def config(self, changes: dict[str, Any] | None = None) -> TrainConfig:
        """Return the settings, with `changes` on top.

        Raises:
            UsageError: a setting that is not known or wrong, or a corpus for the test only.
        """
        from ..runs.config import TrainConfig

        if self.trained_by:
            raise UsageError(
                f"the recipe {self.name} has test clips only: train {self.trained_by}, then "
                f"sounding sweep RUN --recipe {self.name} --data DIR"
            )
        return TrainConfig.from_values({**self.settings, **(changes or {})})

    def open(self, data: Path | str) -> AudioFolder:
        """Open the corpus in `data`.

        It is in the layout of the recipe, a folder with metadata.csv, or the id of a data set on
        the hub, which is read by the rule of `hub`.

        Raises:
            DataError: as `open_corpus`.
        """
        from ..data.corpora import open_corpus
        from ..data.rows import has_metadata
        from ..model.hub import is_repo_id

        layout, path = self.corpus["layout"], Path(data).expanduser()
        if is_repo_id(str(data)) and not path.exists():
            options = {name: value for name, value in self.hub.items() if name != "id"}
            return open_corpus(data, "hub", **options)
        if layout == "folder" or has_metadata(path):
            return open_corpus(data)
        options = {name: value for name, value in self.corpus.items() if name != "layout"}
        return open_corpus(data, layout, **options)


def recipe_names() -> list[str]:
    """Return the names of all recipes that come with `sounding`, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe by its name, or by the path of a YAML file.

    Raises:
        UsageError: neither, or a file that is no recipe; the text says what it lacks.
    """
    from ..data.corpora import LAYOUTS
    from ..data.hub import hub_folder

    path, recipe = _path(name), _read(name)
    if recipe.corpus["layout"] in LAYOUTS:
        _check_options(f"{path}: corpus", recipe.corpus, LAYOUTS[recipe.corpus["layout"]].read)
    _check_options(f"{path}: hub", recipe.hub, hub_folder)
    return recipe


def _read(name: str) -> Recipe:
    """Read a recipe, but for what the readers of its corpus have to say of their options."""
    from ..typed import check, read_yaml

    path = _path(name)
    what = "is no recipe"
    advice = "give the path of a YAML file or one of " + ", ".join(recipe_names())
    values: dict[str, Any] = read_yaml(path, dict[str, Any], what=what, advice=advice)
    if not values.get("hub", {}):  # null is as good as nothing
        values.pop("hub", None)
    if "name" in values:
        raise UsageError(f"{path} {what} (name is not known): a recipe is named by its file")
    return check({"name": path.stem, **values}, Recipe, path, what=what, advice=advice)


def _check_options(where: str, given: dict[str, Any], reader: Callable[..., Any]) -> None:
    """Refuse options that a reader has not, or has of another type."""
    from ..typed import check

    known, kinds = inspect.signature(reader).parameters, get_type_hints(reader)
    options = [n for n, one in known.items() if one.kind is one.KEYWORD_ONLY]
    for name, value in given.items():
        if name in options:
            check(value, kinds[name], f"{where}: {name}")
        elif name not in ("layout", "id"):
            raise UsageError(f"{where} has no option {name}; it has {', '.join(options) or 'none'}")


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe, to read or to copy."""
    if name not in recipe_names():
        load_recipe(name)  # says what is wrong with a file of the user
    return _path(name).read_text(encoding="utf-8")


def _path(name: str) -> Path:
    return DIRECTORY / f"{name}.yaml" if name in recipe_names() else Path(name)


def recipe_table() -> str:
    """Return all recipes that come with `sounding`, as Markdown."""
    lines = ["| recipe | corpus | backbone | metric | measured |", "|---|---|---|---|---|"]
    for name in recipe_names():
        recipe = _read(name)  # the tests hold that the readers know its options
        trained = f"runs of {recipe.trained_by}" if recipe.trained_by else ""
        backbone = recipe.settings.get("backbone") or trained
        lines.append(
            f"| `{name}` | {recipe.title} | {backbone} | {recipe.metric} | {recipe.measured} |"
        )
    return "\n".join(lines) + "\n"
