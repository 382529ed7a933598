"""A whole study: every method on every data set with every seed, measured and put in a report.

OUT/DATA/VARIANT-SEED/   a run, and its measured.json
OUT/DATA/start/          where all runs of a data set begin, if the study has such a thing
OUT/DATA/search/         what values of settings came to, if the study looks for the best; see there
OUT/report.html          with verdict.json and table.md beside it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from rich.console import Console
from rich.markup import escape

from ..data.corpora import open_corpus
from ..data.features import read_clips
from ..data.folder import SPLITS, AudioFolder
from ..errors import UsageError
from ..evaluation.plots import need_matplotlib
from ..evaluation.shown import one_line
from ..files import locked, write_text
from ..methods import FULL_DEPTH
from ..progress import progress, say
from ..registry import unknown_name
from ..runs.config import TrainConfig
from ..runs.device import find_device
from ..runs.settings import check_settings
from ..runs.validations import read_validations
from ..tasks import find_task
from ..training.fitting import check_words
from ..training.loop import train
from ..typed import named, read_yaml
from .html import write_report
from .measure_run import measure_run
from .measured import FILE, Search
from .search import SEARCH, combinations, hand_over, search
from .variants import bases, teacher_of, variants

START = "start"
MOST_DRAWS = 10_000
CLOSE = 0.85  # names of data sets, by difflib, of which one may be a slip for the other
RATE = 16000  # at which test clips are tried

Cell: TypeAlias = tuple[AudioFolder, str, int]  # variant and seed of a run


@dataclass(frozen=True)
class StudyConfig:
    """What a study runs; loads from YAML.

    Attributes:
        settings: of `TrainConfig`, for every run.
        start: further settings of a training at full depth that comes first; the runs of all
            methods and seeds go on from its weights. Empty: they begin with the backbone's own.
        data: name of a data set -> settings that differ for it.
        search: setting -> values to try it with. All combinations are trained of each variant, with
            the first of the seeds, and the best on validation clips is taken for all seeds.
        variants: names of `variants`.
        ablation_seeds: how many of the seeds an ablation gets.
        seeds: of the trainings.
        snr_db: name of a data set -> noise at which its test clips are measured again.
        ceilings: whether the test clips are answered under every mask too, for the oracle and the
            ceiling of the methods whose input chooses: with many clips or layers that takes longer
            than the training.
        draws: random masks of each size under which the test clips are answered, of methods that
            drop at random.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    search: dict[str, list[Any]] = field(default_factory=dict)
    variants: tuple[str, ...] = field(default_factory=lambda: tuple(bases()))
    ablation_seeds: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    snr_db: dict[str, list[float]] = field(default_factory=dict)
    ceilings: bool = True
    draws: int = 6

    def __post_init__(self) -> None:
        known = variants()
        for variant in self.variants:
            if variant not in known:
                raise UsageError(unknown_name("method", variant, known))
        if not self.variants or not self.seeds:
            raise UsageError("a study needs one method and one seed at least")
        for variant in self.variants:
            teacher = teacher_of(variant)
            if teacher and teacher not in self.variants:
                raise UsageError(
                    f"{variant} learns from the run of method {teacher}: add {teacher}"
                )
        if not 1 <= self.draws <= MOST_DRAWS:
            raise UsageError(f"draws is a number of masks from 1 on; got {self.draws!r}")
        if self.ablation_seeds < 0:
            raise UsageError(f"ablation_seeds must be 0 or more; got {self.ablation_seeds!r}")
        check_settings(self.settings, "settings")
        check_settings(self.start, "start")
        for name, values in self.data.items():
            check_settings(values, f"data.{named(name)}")
        for name, tried in self.search.items():
            if not tried:
                raise UsageError(f"search.{named(name)} has no values to try")
            for value in tried:
                check_settings({name: value}, "search")

    @classmethod
    def from_yaml(cls, path: Path | str) -> StudyConfig:
        """Read a study from YAML.

        Raises:
            UsageError: a file that is none, or an unknown name or a value of another type in it.
        """
        return read_yaml(path, cls, what="is not the YAML of a study")

    def train_config(
        self, data: str, variant: str, seed: int, out: Path, found: dict[str, Any] | None = None
    ) -> TrainConfig:
        """Return the configuration of one run, or for the variant `START` of the start of all.

        Args:
            found: settings that a search has chosen for it, or tries.
        """
        values = {**self.settings, **self.data.get(data, {}), "seed": seed}
        if variant == START:
            return TrainConfig.from_values({**values, "method": FULL_DEPTH, **self.start})
        values |= {**(found or {}), **variants()[variant]}
        if self.start:
            values["backbone"] = str(out / data / START / "model")
        if teacher := teacher_of(variant):
            values["teacher"] = str(place(out, data, teacher, seed))
        return TrainConfig.from_values(values)


def place(out: Path, data: str, variant: str, seed: int) -> Path:
    """Return the directory of one run."""
    return out / data / f"{variant}-{seed}"


def compare(
    config: StudyConfig, folders: Sequence[Path | str], out: Path, *, keep_models: bool = True
) -> list[str]:
    """Train, measure and report. What is measured is not done again, so a killed study goes on.

    Args:
        keep_models: False removes a model once nothing needs it any more.

    Returns:
        The verdict lines.

    Raises:
        DataError, AudioError: a split that is missing, or clips that cannot be used: before the
            first training.
        ModuleNotFoundError: matplotlib is not installed, likewise.
        UsageError: as `train` and `write_report`; two folders of one name; `out` is in use.
        Interrupted: on SIGINT or SIGTERM, in a training, after saving a checkpoint.
    """
    loaded = [open_corpus(folder) for folder in folders]
    names = [folder.root.name for folder in loaded]
    if len(set(names)) < len(names):
        raise UsageError(f"two data sets of one name ({', '.join(names)}): rename a folder")
    _check_names(config, names)
    cells = list(_cells(config, loaded))
    for folder, variant, seed in cells:  # wrong settings fail before hours of work
        for tried in combinations(config.search):
            settings = config.train_config(folder.root.name, variant, seed, out, tried)
        if config.search and not settings.validate_epochs:
            raise UsageError(
                "search is judged by validation clips: set validate_epochs in the settings, such "
                "as 1"
            )
        if not find_task(settings.task, folder.task).by_mask:
            raise UsageError(
                f"compare needs logits under every mask, which task {settings.task!r} does not "
                "give: leave the task out of the settings, for CTC"
            )
    need_matplotlib()
    for folder in loaded:
        if any(not _measured(out, cell) for cell in cells if cell[0] is folder):
            _check_data(config, folder, out)
    with locked(out):
        _run(config, cells, out, keep_models=keep_models)
        return report(out)


def _check_names(config: StudyConfig, names: Sequence[str]) -> None:
    """Refuse the name of a data set that is nearly one of `names`, which has no settings else."""
    for where, known in (("data", config.data), ("snr_db", config.snr_db)):
        bare = [name for name in names if name not in known]
        for name in known:
            if name in names:
                continue
            if close := get_close_matches(name, bare, n=1, cutoff=CLOSE):
                raise UsageError(
                    f"{where}.{named(name)} is none of the data sets: did you mean {close[0]}? (If "
                    f"{close[0]} is to have nothing of its own, give it an empty entry.)"
                )
            say(f"{where}.{named(name)} is not used: the data sets are {', '.join(names)}")


def _run(config: StudyConfig, cells: Sequence[Cell], out: Path, *, keep_models: bool) -> None:
    """Train and measure what is not measured yet."""
    console = Console(stderr=True)
    started, worked = monotonic(), 0
    for done, (folder, variant, seed) in enumerate(cells):
        if _measured(out, (folder, variant, seed)):
            continue
        left = (monotonic() - started) / worked * (len(cells) - done) / 60 if worked else None
        name = escape(one_line(folder.root.name))
        console.rule(
            f"{name}: {variant}, seed {seed} ({done + 1} of {len(cells)}"
            + (f", about {left:.0f} min left)" if left is not None else ")")
        )
        _one(config, folder, variant, seed, out)
        worked += 1
        if not keep_models:  # the start stays: a later study of more seeds goes on from it
            _drop_models(config, folder.root.name, variant, seed, out)


def _measured(out: Path, cell: Cell) -> bool:
    folder, variant, seed = cell
    return (place(out, folder.root.name, variant, seed) / FILE).exists()


def _check_data(config: StudyConfig, folder: AudioFolder, out: Path) -> None:
    """Refuse data now that would stop the study after hours of training."""
    for split in SPLITS:
        folder.split(split)
        check_words(folder, split)
    settings = config.train_config(folder.root.name, config.variants[0], config.seeds[0], out)
    clips = folder.split("test")  # the others are read before a training
    with progress(f"check {folder.root.name}", len(clips)) as show:
        for done, _ in enumerate(read_clips(clips, RATE, settings.max_seconds), start=1):
            show(done, "")


def report(out: Path) -> list[str]:
    """Write the report of what is measured so far to OUT, and return the verdict lines."""
    return write_report(
        [out], out / "report.html", verdict=out / "verdict.json", table=out / "table.md"
    )


def _cells(config: StudyConfig, folders: Iterable[AudioFolder]) -> Iterable[Cell]:
    """Return all runs, one seed after the other: a part of a study is a study of fewer seeds."""
    folders = list(folders)
    for turn, seed in enumerate(config.seeds):
        for folder in folders:
            for variant in (v for v in variants() if v in config.variants):
                if variant in bases() or turn < config.ablation_seeds:
                    yield folder, variant, seed


def _one(config: StudyConfig, folder: AudioFolder, variant: str, seed: int, out: Path) -> None:
    name = folder.root.name
    directory = place(out, name, variant, seed)
    if config.start:
        train(config.train_config(name, START, 0, out), folder, out / name / START)
    found = _search(config, folder, variant, out) if config.search else None
    best = found.trials[found.chosen] if found else None
    settings = config.train_config(name, variant, seed, out, best.settings if best else None)
    start = monotonic()
    run = train(settings, folder, directory)
    trained = monotonic() - start
    if best and seed == config.seeds[0]:
        trained = best.seconds
    run.dynamic.to(find_device(run.config.device))
    measured = measure_run(
        run,
        folder,
        variant,
        snr_db=config.snr_db.get(name, ()),
        trained_seconds=trained,
        ceilings=config.ceilings and variant in bases(),
        draws=config.draws,
        validations=read_validations(directory),
        found=found,
    )
    write_text(directory / FILE, json.dumps(measured, ensure_ascii=False) + "\n")


def _search(config: StudyConfig, folder: AudioFolder, variant: str, out: Path) -> Search:
    """Find the settings of a variant; the training with them is that of the first seed."""
    name, seed = folder.root.name, config.seeds[0]
    file = out / name / SEARCH / f"{variant}.json"
    found = search(
        file,
        combinations(config.search),
        folder,
        lambda settings: config.train_config(name, variant, seed, out, settings),
    )
    hand_over(file, found, place(out, name, variant, seed))
    return found


def _drop_models(config: StudyConfig, data: str, variant: str, seed: int, out: Path) -> None:
    """Remove the model of a run, and that of its teacher once both are measured."""
    measured = {v for v in config.variants if (place(out, data, v, seed) / FILE).exists()}
    for name in measured:
        if any(teacher_of(v) == name and v not in measured for v in config.variants):
            continue
        shutil.rmtree(place(out, data, name, seed) / "model", ignore_errors=True)
