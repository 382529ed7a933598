"""The clips of a training, read anew for each batch, so that memory does not grow with the corpus.

What has to be decoded is kept in files of the run, as far as there is room, for the next epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset

from ..data.augment import SPAN_SECONDS, change_speed, mask_spans
from ..data.features import extract, load_audio, refuse
from ..data.folder import Clip
from ..data.noise import add_noise
from ..errors import SoundingError
from ..progress import progress, say
from ..runs.config import TrainConfig
from ..runs.run import Run
from ..tasks.base import Batch
from .fitting import Frames, least_length
from .workers import in_order

SNR_DB = (0.0, 20.0)  # of the noise in training
GB = 10**9
VALUES = "values"  # of a file: its only tensor


class Source:
    """The training clips, and the batches that are made of them, by any process.

    The batch of some clips in an epoch follows from the seed, the epoch and the clips alone. No
    model is held, but what has to be known of it.

    Args:
        run: that is trained.
        clips: all are read once, so that those that cannot be used are told of before the first
            step and not after hours.
        kept: a directory for what was decoded; None keeps nothing.

    Attributes:
        samples: of each clip. Shape: [clips] int64.

    Raises:
        AudioError: clips that cannot be used; the text names them, all in one.
    """

    def __init__(self, run: Run, clips: Sequence[Clip], kept: Path | None = None) -> None:
        self.config, self.extractor, self.task = run.config, run.extractor, run.task
        self.rate: int = run.extractor.sampling_rate
        self.window = run.dynamic.backbone.window(run.dynamic.base)
        self.least = least_length(run) if run.config.speed_change else 1
        self.numbers = np.arange(len(clips))  # of the files in `kept`
        self.clips, self.kept = list(clips), kept
        self.samples = _samples(self.clips, self.rate, run.config)

    @property
    def seconds(self) -> list[float]:
        """The length of each clip."""
        lengths: list[float] = (self.samples / self.rate).tolist()
        return lengths

    def frames(self, run: Run) -> Frames:
        """Return how many frames the clips have as they are."""
        return Frames(run, self.samples.tolist(), lambda row: len(self._as_they_are(row)))

    def keep(self, rows: list[int]) -> None:
        """Forget all clips but these."""
        self.clips = [self.clips[row] for row in rows]
        self.numbers, self.samples = self.numbers[rows], self.samples[rows]

    def batch(self, rows: list[int], epoch: int) -> Batch:
        """Return the batch of these clips in an epoch, on the processor. Shape: as the model's."""
        features = [self._changed(row, epoch) for row in rows]
        return self.task.collate(features, self.extractor, self.window)

    def _changed(self, row: int, epoch: int) -> np.ndarray:
        """Return the features of a clip as it is in this epoch."""
        config = self.config
        rng = np.random.default_rng([config.seed, epoch, 1, int(self.numbers[row])])
        noisy = rng.random() < config.noise_share
        samples, features = int(self.samples[row]), None
        if noisy or config.speed_change:
            audio = self._decoded(row)
            if noisy:
                audio = add_noise(audio, rng.uniform(*SNR_DB), self.rate, rng)
            samples, features = self._played(audio, rng)
        if features is None:
            features = self._as_they_are(row)
        if config.mask_share:
            span = round(SPAN_SECONDS * self.rate * len(features) / samples)
            features = mask_spans(features, config.mask_share, span, rng)
        return features

    def _played(self, audio: np.ndarray, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """Return the samples and the features of a clip at a random speed.

        The clip stays as it is where the model would not take it.
        """
        most = self.config.speed_change
        if most:
            changed = change_speed(audio, 1 + rng.uniform(-most, most), self.rate)
            features = extract(changed, self.extractor)
            if self.least <= len(features) <= (self.window or len(features)):
                return len(changed), features
        return len(audio), extract(audio, self.extractor)

    def _as_they_are(self, row: int) -> np.ndarray:
        """Return the features of a clip, without noise or another speed."""
        if self._keeps_audio:
            return extract(self._decoded(row), self.extractor)
        return self._remembered(row, lambda: extract(self._read(row), self.extractor))

    def _decoded(self, row: int) -> np.ndarray:
        """Return the audio of a clip. Shape: -> [samples]."""
        return self._remembered(row, lambda: self._read(row))

    def _read(self, row: int) -> np.ndarray:
        return load_audio(self.clips[row], self.rate, self.config.max_seconds)

    @property
    def _keeps_audio(self) -> bool:
        """Whether audio is kept and not features, which then differ from epoch to epoch."""
        return bool(self.config.noise_share or self.config.speed_change)

    def _remembered(self, row: int, make: Any) -> np.ndarray:
        """Return what is in the file of a clip, or make and write it where it is to be kept."""
        if self.kept is None or row >= self._room:
            made: np.ndarray = make()
            return made
        path = self.kept / f"{int(self.numbers[row])}.safetensors"
        with suppress(OSError, SafetensorError, KeyError):  # none, or one that was cut off
            found: np.ndarray = load_file(path)[VALUES]
            return found
        made = make()
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({VALUES: np.ascontiguousarray(made)}, path)
        except (OSError, SafetensorError) as error:
            say(f"what is decoded is not kept for the next epochs: {error}")
            self.kept = None
        return made

    @cached_property
    def _room(self) -> int:
        """How many of the clips, from the first one on, `cache_gb` has room for."""
        if not len(self.samples) or self.config.epochs <= 1:
            return 0  # nothing is read twice
        first = self._read(0)
        kept = first if self._keeps_audio else extract(first, self.extractor)
        sizes = np.cumsum(self.samples) * (kept.nbytes / len(first))
        return int(np.searchsorted(sizes, self.config.cache_gb * GB, side="right"))


class _Lengths(Dataset[tuple[int, str]]):
    """How many samples each clip has, or what is wrong with it."""

    def __init__(self, clips: Sequence[Clip], rate: int, config: TrainConfig) -> None:
        self.clips, self.rate, self.config = clips, rate, config

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, str]:
        try:
            return len(load_audio(self.clips[index], self.rate, self.config.max_seconds)), ""
        except SoundingError as error:
            return 0, str(error)


def _samples(clips: Sequence[Clip], rate: int, config: TrainConfig) -> np.ndarray:
    """Read each clip once, and return how many samples it has. Shape: -> [clips] int64."""
    samples, bad = np.zeros(len(clips), np.int64), []
    with progress("read clips", len(clips)) as show:
        lengths = in_order(_Lengths(clips, rate, config), range(len(clips)), config.workers)
        for index, (count, wrong) in enumerate(lengths):
            samples[index] = count
            bad += [wrong] if wrong else []
            show(index + 1, "")
    refuse(bad, len(clips))
    return samples
