"""The same search of settings for every variant of a study, judged by validation clips.

OUT/DATA/search/VARIANT.json   what each of the settings came to, and which were the best
OUT/DATA/search/VARIANT-1/     the training with the first of them, until all are done
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

from ..data.folder import AudioFolder
from ..errors import UsageError
from ..files import write_text
from ..runs.config import TrainConfig
from ..runs.validations import best_of, read_validations
from ..training.loop import train
from ..typed import read_json
from .measured import Search, Trial

SEARCH = "search"
WHAT = "is no search of a study"


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the values of settings; one without any where there are none."""
    return [dict(zip(values, some, strict=True)) for some in product(*values.values())]


def search(
    file: Path,
    tried: Sequence[dict[str, Any]],
    folder: AudioFolder,
    config_of: Callable[[dict[str, Any]], TrainConfig],
) -> Search:
    """Train a variant with each of the settings, or read what that came to before.

    Args:
        file: OUT/DATA/search/VARIANT.json; the trainings go beside it.
        config_of: makes the configuration of a training.

    Raises:
        UsageError: other settings were tried there, or as `train`.
        Interrupted: on SIGINT or SIGTERM, after saving a checkpoint.
    """
    if not file.exists():
        trials = []
        for settings, directory in zip(tried, _directories(file, len(tried)), strict=True):
            start = monotonic()
            train(config_of(settings), folder, directory)
            best = best_of(read_validations(directory))
            trials.append(Trial(settings, *best, seconds=monotonic() - start))
        chosen = min(range(len(trials)), key=lambda i: (trials[i].error, trials[i].loss))
        write_text(file, json.dumps(dataclasses.asdict(Search(trials, chosen))) + "\n")
    found = read_search(file)
    if [trial.settings for trial in found.trials] != list(tried):
        raise UsageError(f"{file} is of a search of other values: remove it, or give another --out")
    return found


def read_search(file: Path) -> Search:
    """Read what a search came to.

    Raises:
        UsageError: a file that is none.
    """
    found = read_json(file, Search, what=WHAT)
    if not 0 <= found.chosen < len(found.trials):
        raise UsageError(f"{file} {WHAT}: trial {found.chosen} of {len(found.trials)} is chosen")
    return found


def hand_over(file: Path, found: Search, run: Path) -> None:
    """Make the training with the chosen settings that of `run`, and remove the others."""
    for number, directory in enumerate(_directories(file, len(found.trials))):
        if directory.is_dir() and number == found.chosen and not run.exists():
            shutil.move(directory, run)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _directories(file: Path, count: int) -> list[Path]:
    return [file.with_name(f"{file.stem}-{number}") for number in range(1, count + 1)]
