"""Measures one run for a study: every rule of its method at every budget, clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic

import numpy as np

from ..data.features import Change, FeatureSet, clip_seconds
from ..data.folder import AudioFolder, Clip
from ..data.noise import noise_for
from ..policies.masks import every_mask
from ..runs.mask_outputs import mask_outputs
from ..runs.precision import precision_on
from ..runs.run import Run, provenance
from ..runs.validations import Validation
from ..training.fitting import check_words, tell_test
from .arms import Arms, Json, MaskTable, check
from .measured import FORMAT, Search

CEILING_CLIPS = 240  # at most, for the ceiling
CEILING_SNR_DB = 20.0  # of its two copies


def measure_run(
    run: Run,
    folder: AudioFolder,
    variant: str,
    *,
    snr_db: Sequence[float] = (),
    seed: int = 0,
    trained_seconds: float | None = None,
    ceilings: bool = True,
    draws: int = 6,
    validations: Sequence[Validation] = (),
    found: Search | None = None,
) -> Json:
    """Measure all rows of a run on validation and test clips, as a `measured.json`; see `study`.

    Args:
        variant: its name in the comparison.
        snr_db: the test clips are measured again with noise at each of these ratios.
        seed: of the noise, the random masks and the shuffling; the same for all runs of a study.
        ceilings: whether to look for the best mask of each test clip (where the input chooses).
        draws: random masks of each size (methods that drop at random).
        validations: how good it was meanwhile, on validation clips.
        found: what a search of its settings came to.

    Raises:
        DataError, AudioError, ValueError: clips that cannot be used.
        RuntimeError: what ran for real is not what was looked up.
    """
    start = monotonic()
    validation, features = _read(run, folder, "validation")
    clips, test = _read(run, folder, "test")  # now, so that what is wrong with it is said now
    targets = run.task.targets(folder, validation)
    arms = Arms.learn(run, features, targets, seed=seed, draws=draws)
    sets = {"validation": _set(arms, folder, validation, features, arms.known.under)}
    masks = every_mask(run.dynamic.num_layers)
    under = None
    if run.method.arms == "choices" and ceilings and masks is not None:
        targets = run.task.targets(folder, clips)
        under = MaskTable(masks, mask_outputs(run, test, masks, targets))
    sets["test"] = _set(arms, folder, clips, test, under)
    checked = check(run, test, sets["test"]["rows"])
    if under is not None:
        sets["test"]["rows"] += _ceiling(arms, folder, clips)
    for ratio in snr_db:
        noisy = run.read(clips, f"read test at {ratio:g} dB", _noise(arms, ratio))
        name = f"test at {ratio:g} dB"
        sets[name] = _set(arms, folder, clips, noisy)
    return {
        "format": FORMAT,
        "method": run.config.method,
        "variant": variant,
        "seed": run.config.seed,
        "layers": run.dynamic.num_layers,
        "data": {"name": folder.root.name, "digest": folder.digest},
        "labels": run.labels,
        "metric": run.task.metric,
        "config": asdict(run.config),
        "steps": run.info.get("steps"),
        "validations": [list(one) for one in validations],
        "search": found and asdict(found),
        "seconds": {"train": trained_seconds, "measure": monotonic() - start},
        "precision": precision_on(run.dynamic.device, run.config.precision),
        "checked": checked,
        "macs": {"full": arms.cost.macs.full},
        **provenance(),
        "sets": sets,
    }


def _read(run: Run, folder: AudioFolder, split: str) -> tuple[list[Clip], FeatureSet]:
    """Read the clips of a split and their features; what does not fit is said."""
    check_words(folder, split)
    clips = folder.split(split)
    features = run.read(clips, f"read {split}")
    tell_test(run, folder, clips, run.task.targets(folder, clips), features)
    return clips, features


def _noise(arms: Arms, snr_db: float, copy: int = 0) -> Change:
    return noise_for(snr_db, arms.run.extractor.sampling_rate, arms.seed, copy)


def _set(
    arms: Arms,
    folder: AudioFolder,
    clips: Sequence[Clip],
    features: FeatureSet,
    under: MaskTable | None = None,
) -> Json:
    """Measure the clips of a set, and return them with their rows."""
    run = arms.run
    targets = run.task.targets(folder, clips)
    seconds = run.config.max_seconds or np.inf
    described = {
        "file": [folder.name(clip) for clip in clips],
        "label": [clip.target if folder.labels else "" for clip in clips],
        "speaker": [clip.speaker for clip in clips],
        "seconds": [round(min(clip_seconds(clip), seconds), 3) for clip in clips],
    }
    weight = [run.task.weight(target) for target in targets]
    if set(weight) != {1}:  # which is what a file without weights says
        described["weight"] = weight
    return {"clips": described, "rows": arms.rows(features, targets, under)}


def _ceiling(arms: Arms, folder: AudioFolder, clips: Sequence[Clip]) -> list[Json]:
    """Measure the ceiling of some clips, on two noisy copies."""
    run, masks = arms.run, every_mask(arms.layers)
    if masks is None:
        return []
    count = min(CEILING_CLIPS, len(clips))
    index = np.linspace(0, len(clips) - 1, count).round().astype(int).tolist()
    some = [clips[i] for i in index]
    targets = run.task.targets(folder, some)
    copies = []
    for copy in (1, 2):
        noisy = run.read(some, f"copy {copy}", _noise(arms, CEILING_SNR_DB, copy))
        copies.append(MaskTable(masks, mask_outputs(run, noisy, masks, targets)))
    return [{**row, "clips": index} for row in arms.ceiling(*copies)]
