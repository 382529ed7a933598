"""The clips and texts that do not fit the model, told before the first step.

By CTC a text that is too long for its clip teaches nothing, and one that is longer than the decoder
ends a training in the middle. Such clips are left out of a training, but never in silence.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.audio import AudioError
from ..data.features import FeatureSet, clip_seconds
from ..data.folder import METADATA, AudioFolder, Clip, DataError
from ..data.names import SHOWN
from ..data.text import normalize_text
from ..errors import UsageError
from ..progress import say
from ..runs.config import TrainConfig
from ..runs.run import Run
from ..tasks.base import Target, Targets

CUT_SECONDS = 1e-3  # less is rounding
SPECTROGRAM_SHIFT = 0.01  # seconds from frame to frame, where a model takes a fixed number (AST)
ADJECTIVES = {"train": "training"}


class Frames:
    """How many frames the model makes of clips, found out for as few of them as it takes.

    Args:
        sizes: of each clip in samples, or in the unit of its features: a longer clip has no fewer
            frames than a shorter one.
        length: of the features of the clip with an index.
    """

    def __init__(
        self, run: Run, sizes: Sequence[int] | NDArray[np.int64], length: Callable[[int], int]
    ) -> None:
        self.run, self.sizes, self.length = run, sizes, length
        self._known: list[tuple[int, int]] = []  # size, frames

    @classmethod
    def of(cls, run: Run, features: FeatureSet) -> Frames:
        """Make the frames of clips whose features are there."""
        sizes = [len(one) for one in features]
        return cls(run, sizes, sizes.__getitem__)

    def reach(self, index: int, needed: int) -> bool:
        """Return whether a clip has so many frames."""
        place = bisect_right(self._known, (self.sizes[index], math.inf))
        size, frames = self._known[place - 1] if place else (-1, 0)
        if frames < needed and size != self.sizes[index]:
            frames = frames_of(self.run, self.length(index))
            insort(self._known, (self.sizes[index], frames))
        return frames >= needed

    def check(self, folder: AudioFolder, clips: Sequence[Clip], *, cuts: bool = False) -> None:
        """Refuse clips of which the model makes no frame, or that are longer than its window.

        Args:
            cuts: whether the model cuts what is longer by itself, as Whisper's `generate` does.

        Raises:
            UsageError: there are such clips; the text names some.
        """
        order = sorted(range(len(clips)), key=self.sizes.__getitem__)
        short = _first(order, lambda index: not self.reach(index, 1))
        if short:
            raise UsageError(
                f"{_named(folder, clips, short)} are too short for a single frame of the model: "
                "leave them out, or join them to their neighbours"
            )
        window = None if cuts else self.run.dynamic.backbone.window(self.run.dynamic.base)
        long = _first(order[::-1], lambda i: window is not None and self.length(i) > window)
        if long:
            raise UsageError(
                f"{_named(folder, clips, long)} are longer than the window of the model: cut them "
                "into pieces, or lower --max-seconds"
            )


def frames_of(run: Run, length: int) -> int:
    """Return how many frames enter layer 0 for features of that length."""
    found = run.dynamic.backbone.frame_lengths(run.dynamic.base, torch.tensor([length]))
    return length if found is None else int(found)


def least_length(run: Run) -> int:
    """Return the least length of features of which the model makes a frame."""
    most = 1
    while frames_of(run, most) < 1:
        most *= 2
    return bisect_left(range(most), True, lo=1, key=lambda length: frames_of(run, length) > 0)


def uncut(config: TrainConfig, folder: AudioFolder, split: str) -> list[Clip]:
    """Return the clips of a split that are whole.

    Clips of which `max_seconds` cuts the audio, and not the text, are left out.

    Raises:
        DataError: no such split.
        UsageError: none is left.
    """
    clips = folder.split(split)
    cut = _leave_out(
        folder,
        clips,
        _cut(config, folder, clips),
        f"are longer than --max-seconds {config.max_seconds}, which cuts the audio and not the "
        "text",
        "raise --max-seconds, or cut each clip and its text in two",
    )
    return [clip for index, clip in enumerate(clips) if index not in cut]


def fitting(
    run: Run, folder: AudioFolder, clips: Sequence[Clip], targets: Targets, frames: Frames
) -> list[int]:
    """Return the indexes of those clips of a split that can be trained on.

    Raises:
        UsageError: clips without a frame or beyond the window, or none is left.
    """
    frames.check(folder, clips)
    _tell_start_only(run, folder, clips)
    left_out = _leave_out(
        folder,
        clips,
        _beyond_decoder(run, targets),
        f"have texts of more than the {run.task.room(run.dynamic.model)} tokens that the decoder "
        "takes, with prompt and end",
        "cut each clip and its text in two",
    )
    left_out |= _leave_out(
        folder,
        clips,
        _beyond_frames(run, targets, frames),
        run.task.too_short,
        run.task.too_short_advice,
    )
    kept = [index for index in range(len(clips)) if index not in left_out]
    faster = run.config.speed_change
    tight = set(_beyond_frames(run, targets, frames, faster) if faster else ()) & set(kept)
    if tight:
        say(
            f"{_named(folder, clips, list(tight))} are too short for their texts where they are "
            f"played {faster:.0%} faster: such a step teaches nothing of them"
        )
    silent = _wordless(targets)
    if silent:
        say(f"{_named(folder, clips, silent)} have a text without a word: nothing is said there")
    return kept


def tell_test(
    run: Run, folder: AudioFolder, clips: Sequence[Clip], targets: Targets, features: FeatureSet
) -> None:
    """Say which clips that are to be measured do not fit; all of them count.

    Raises:
        UsageError: clips without a frame, or beyond the window.
    """
    frames = Frames.of(run, features)
    frames.check(folder, clips, cuts=run.task.cuts)
    _tell_start_only(run, folder, clips)
    told = (
        (
            _cut(run.config, folder, clips),
            f"are longer than max_seconds ({run.config.max_seconds}), with which the run was "
            "trained: their audio is cut and their text is not",
        ),
        (
            _beyond_decoder(run, targets),
            f"have texts of more than the {run.task.room(run.dynamic.model)} tokens that the "
            "decoder writes",
        ),
        (_beyond_frames(run, targets, frames), run.task.too_short),
        (_wordless(targets), "have a text without a word: what is heard there counts as added"),
    )
    for rows, what in told:
        if rows:
            say(f"{_named(folder, clips, rows)} {what}")


def check_words(folder: AudioFolder, split: str) -> None:
    """Refuse a split of texts without a single word.

    Raises:
        DataError: there is none; the text shows some of the texts.
    """
    if folder.task != "text":
        return
    clips = folder.split(split)
    if not any(normalize_text(clip.target) for clip in clips):
        shown = ", ".join(repr(text) for text in dict.fromkeys(c.target for c in clips[:SHOWN]))
        raise DataError(
            f"{folder.root}: none of the {len(clips)} texts of the split {split!r} has a word "
            f"({shown}): write what is said into the column 'text' of {METADATA}"
        )


def writes(run: Run, target: Target) -> bool:
    """Return whether the decoder has room for the answer to a clip; always so without one."""
    return run.task.positions(target) <= run.task.room(run.dynamic.model)


def _beyond_decoder(run: Run, targets: Targets) -> list[int]:
    return [index for index, target in enumerate(targets) if not writes(run, target)]


def _beyond_frames(run: Run, targets: Targets, frames: Frames, faster: float = 0.0) -> list[int]:
    """Return the clips whose text takes more frames than there are."""
    needed = [math.ceil((1 + faster) * run.task.frames(target)) for target in targets]
    order = sorted(range(len(targets)), key=frames.sizes.__getitem__)
    return sorted(index for index in order if not frames.reach(index, needed[index]))


def _cut(config: TrainConfig, folder: AudioFolder, clips: Sequence[Clip]) -> list[int]:
    if folder.task != "text" or config.max_seconds is None:
        return []
    most = config.max_seconds + CUT_SECONDS
    return [index for index, clip in enumerate(clips) if _seconds(clip) > most]


def _seconds(clip: Clip) -> float:
    """Return the length of a clip; 0 for one that cannot be read.

    That is told with all such clips when they are read.
    """
    try:
        return clip_seconds(clip)
    except AudioError:
        return 0.0


def _wordless(targets: Targets) -> list[int]:
    return [index for index, target in enumerate(targets) if not target.text]


def _tell_start_only(run: Run, folder: AudioFolder, clips: Sequence[Clip]) -> None:
    """Say which clips are used in their first seconds only.

    A model whose input has one length (AST) drops the rest of a longer clip by itself.
    """
    fixed = run.dynamic.backbone.frame_lengths(run.dynamic.base, torch.tensor([1])) is None
    frames = getattr(run.extractor, "max_length", None)
    if not fixed or frames is None:
        return
    most = SPECTROGRAM_SHIFT * frames
    if run.config.max_seconds is not None and run.config.max_seconds <= most + CUT_SECONDS:
        return  # asked for
    longer = [i for i, clip in enumerate(clips) if _seconds(clip) > most + CUT_SECONDS]
    if longer:
        say(
            f"{_named(folder, clips, longer)} are longer than the {most:g} s that the model takes: "
            "only their start is used"
        )


def _leave_out(
    folder: AudioFolder, clips: Sequence[Clip], rows: list[int], why: str, advice: str
) -> set[int]:
    """Say which clips are left out, and return their indexes; refuse where none would be left."""
    if rows and len(rows) == len(clips):
        raise UsageError(f"{_named(folder, clips, rows)} {why}: {advice}")
    if rows:
        say(f"{_named(folder, clips, rows)} {why}: they are left out")
    return set(rows)


def _named(folder: AudioFolder, clips: Sequence[Clip], rows: Sequence[int]) -> str:
    """Return the number of such clips of a split, with the first names."""
    split = ADJECTIVES.get(clips[0].split, clips[0].split)
    names = ", ".join(folder.name(clips[index]) for index in sorted(rows)[:SHOWN])
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    count = f"all {len(clips)}" if len(rows) == len(clips) else f"{len(rows)} of {len(clips)}"
    return f"{count} {split} clips ({names}{more})"


def _first(order: Sequence[int], holds: Callable[[int], bool]) -> list[int]:
    """Return those at the start of an order for which something holds, up to one where it fails."""
    for place, index in enumerate(order):
        if not holds(index):
            return list(order[:place])
    return list(order)
