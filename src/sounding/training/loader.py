"""The batches of a training: the clips of each step, and their features as they are in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..data.augment import SPAN_SECONDS, change_speed, mask_spans
from ..data.features import batches, clip_seconds, extract, read_clips
from ..data.folder import Clip
from ..data.noise import add_noise
from ..progress import progress
from ..runs.config import TrainConfig
from ..runs.run import Run
from .fitting import Frames, takes

SNR_DB = (0.0, 20.0)  # of the noise in training


def lengths_of(config: TrainConfig, source: Source, clips: Sequence[Clip]) -> Sequence[float]:
    """Return the lengths of the training clips.

    They are in seconds where these count, else in the unit of the features.
    """
    if config.batch_seconds is None:
        return source.lengths()
    longest = config.max_seconds or math.inf
    return [min(clip_seconds(clip), longest) for clip in clips]


class Source:
    """Features of the training clips: made once, or in each step where the clips are changed."""

    def __init__(self, run: Run, clips: list[Clip]) -> None:
        self.run, self.config = run, run.config
        self.rate = run.extractor.sampling_rate
        self.features, self.audio = [], []
        if not self.config.augments:
            self.features = run.read(clips, "features")
            return
        with progress("read audio", len(clips)) as show:
            for audio in read_clips(clips, self.rate, self.config.max_seconds):
                self.audio.append(audio)
                show(len(self.audio), "")

    def lengths(self) -> list[int]:
        """Return the length of each clip, in the unit of its features or in samples."""
        return [len(clip) for clip in self.features or self.audio]

    def frames(self) -> Frames:
        """Return how many frames the clips have as they are."""
        if self.features:
            return Frames.of(self.run, self.features)
        audio, extractor = self.audio, self.run.extractor
        return Frames(self.run, self.lengths(), lambda row: len(extract(audio[row], extractor)))

    def keep(self, rows: list[int]) -> None:
        """Forget all clips but these."""
        for kept in (self.features, self.audio):
            kept[:] = [kept[row] for row in rows] if kept else []

    def batch(self, rows: list[int], step: int) -> dict[str, Tensor]:
        """Return the batch of these clips in a step. Shape: as the model takes it."""
        if self.features:
            return self.run.collate([self.features[row] for row in rows])
        return self.run.collate([self._changed(row, step) for row in rows])

    def _changed(self, row: int, step: int) -> np.ndarray:
        """Return the features of a clip as it is in this step."""
        config, audio = self.config, self.audio[row]
        rng = np.random.default_rng([config.seed, step, 1, row])
        if rng.random() < config.noise_share:
            audio = add_noise(audio, rng.uniform(*SNR_DB), self.rate, rng)
        audio, features = self._played(audio, rng)
        if config.mask_share:
            span = round(SPAN_SECONDS * self.rate * len(features) / len(audio))
            features = mask_spans(features, config.mask_share, span, rng)
        return features

    def _played(self, audio: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a clip at a random speed, and its features.

        The clip stays as it is where the model would not take it.
        """
        most, extractor = self.config.speed_change, self.run.extractor
        if most:
            changed = change_speed(audio, 1 + rng.uniform(-most, most), self.rate)
            features = extract(changed, extractor)
            if takes(self.run, len(features)):
                return changed, features
        return audio, extract(audio, extractor)


class Order:
    """The clips of each step: a function of the step, so that a resumed training needs no state."""

    def __init__(self, lengths: Sequence[float], config: TrainConfig) -> None:
        self.lengths, self.config = lengths, config
        self._made: tuple[int, list[list[int]]] = (-1, [])
        part = config.epochs % 1
        counts = [len(self._epoch(epoch)) for epoch in range(math.ceil(config.epochs))]
        if part:
            counts[-1] = max(1, math.ceil(round(part * counts[-1], 9)))
        self.ends = np.cumsum(counts)  # of each epoch, in steps

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return int(self.ends[-1])

    def __getitem__(self, step: int) -> list[int]:
        epoch = int(np.searchsorted(self.ends, step, side="right"))
        return self._epoch(epoch)[step - (int(self.ends[epoch - 1]) if epoch else 0)]

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch; those of the last one that was asked for are kept."""
        if self._made[0] != epoch:
            config = self.config
            made = batches(
                self.lengths,
                config.batch_size,
                seed=config.seed,
                epoch=epoch,
                shuffle=True,
                most=config.batch_seconds or math.inf,
            )
            self._made = (epoch, made)
        return self._made[1]
