"""The clips of a training, in files; in memory is an index of them alone.

All are decoded once before the first step. As far as there is room what comes of it is kept in
files of the run; other clips are decoded anew for each batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset

from ..data.augment import SPAN_SECONDS, change_speed, mask_spans
from ..data.features import FeatureSet, extract, load_audio, refuse
from ..data.folder import Clip
from ..data.noise import add_noise
from ..errors import SoundingError
from ..progress import progress, say
from ..runs.run import Run
from ..tasks.base import Batch
from .distributed import ALONE, Processes
from .fitting import Frames, least_length
from .workers import in_order

SNR_DB = (0.0, 20.0)  # of the noise in training
GB = 10**9
IN_ONE = 1000  # files in a directory: file systems are slow with very many
SAMPLES, VALUES = "samples", "values"  # of a file


class Source:
    """The training clips, and the batches that are made of them, by any process.

    The batch of some clips in an epoch follows from the seed, the epoch and the clips alone. No
    model is held, but what has to be known of it.

    Args:
        run: that is trained.
        clips: all are read, so that those that cannot be used are told of before the first step
            and not after hours.
        kept: a directory for what is decoded; None keeps nothing.
        title: of the clips, in the progress.
        group: the processes that share this reading.

    Attributes:
        samples: of each clip. Shape: [clips] int64.

    Raises:
        AudioError: clips that cannot be used; the text names them, all in one.
    """

    def __init__(
        self,
        run: Run,
        clips: Sequence[Clip],
        kept: Path | None = None,
        *,
        title: str = "clips",
        group: Processes = ALONE,
    ) -> None:
        self.config, self.extractor, self.task = run.config, run.extractor, run.task
        self.rate: int = run.extractor.sampling_rate
        self.window = run.dynamic.backbone.window(run.dynamic.base)
        self.least = least_length(run) if run.config.speed_change else 1
        self.numbers = np.arange(len(clips))  # of their files
        self.clips, self.kept = list(clips), kept
        self.samples = self._read_all(title, group)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """The length of each clip. Shape: [clips]."""
        lengths: NDArray[np.float64] = self.samples / self.rate
        return lengths

    def features(self) -> FeatureSet:
        """Return the features of the clips as they are, each read when it is asked for."""
        return _Features(self)

    def frames(self, run: Run) -> Frames:
        """Return how many frames the clips have as they are."""
        return Frames(run, self.samples, lambda row: len(self._as_they_are(row)))

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
        if noisy or config.speed_change:
            audio = self._decoded(row)
            if noisy:
                audio = add_noise(audio, rng.uniform(*SNR_DB), self.rate, rng)
            samples, features = self._played(audio, rng)
        else:
            samples, features = int(self.samples[row]), self._as_they_are(row)
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
            features = self._extract(changed)
            if self.least <= len(features) <= (self.window or len(features)):
                return len(changed), features
        return len(audio), self._extract(audio)

    def _as_they_are(self, row: int) -> np.ndarray:
        """Return the features of a clip, without noise or another speed."""
        found = self._decoded(row)
        return self._extract(found) if self._keeps_audio else found

    def _decoded(self, row: int) -> np.ndarray:
        """Return what is kept of a clip: its features, or its audio where that is changed."""
        found = self._stored(int(self.numbers[row]))
        return self._made(self.clips[row])[1] if found is None else found[1]

    @property
    def _keeps_audio(self) -> bool:
        """Whether audio is kept and not features, which then differ from epoch to epoch."""
        return bool(self.config.noise_share or self.config.speed_change)

    def _made(self, clip: Clip) -> tuple[int, np.ndarray]:
        """Decode a clip, and return its samples and what is kept of it."""
        audio = load_audio(clip, self.rate, self.config.max_seconds)
        return len(audio), audio if self._keeps_audio else self._extract(audio)

    def _extract(self, audio: np.ndarray) -> np.ndarray:
        """Return features in fp32, also where they are asked for in the middle of a measurement."""
        with torch.autocast("cpu", enabled=False):
            return extract(audio, self.extractor)

    def _path(self, number: int) -> Path:
        assert self.kept is not None
        return self.kept / str(number // IN_ONE) / f"{number}.safetensors"

    def _stored(self, number: int) -> tuple[int, np.ndarray] | None:
        """Return what the file of a clip holds; None without one, or where it was cut off."""
        if self.kept is None:
            return None
        with suppress(OSError, SafetensorError, KeyError):
            found = load_file(self._path(number))
            return int(found[SAMPLES]), found[VALUES]
        return None

    def _read_all(self, title: str, group: Processes) -> np.ndarray:
        """Read each clip, and return how many samples it has. Shape: -> [clips] int64.

        What is kept depends on how many processes read; what comes of it does not.
        """
        samples, bad = np.zeros(len(self.clips), np.int64), {}
        own = range(group.rank, len(self.clips), group.count)
        with progress(f"read {title}", len(own)) as show:
            found = in_order(_Reading(self, group.count), own, self.config.workers)
            for done, (index, (count, wrong)) in enumerate(zip(own, found, strict=True), start=1):
                samples[index] = count
                if wrong:
                    bad[index] = wrong
                show(done, "")
        wrongs = {index: wrong for part in group.every(bad) for index, wrong in part.items()}
        refuse([wrongs[index] for index in sorted(wrongs)], len(self.clips))
        return np.asarray(group.total_of(torch.from_numpy(samples)))


class _Features(Sequence[np.ndarray]):
    """The features of a source, in files and not in memory."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.clips)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, row: slice) -> list[np.ndarray]: ...

    def __getitem__(self, row: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        return self.source._as_they_are(range(len(self))[row])


class _Reading(Dataset[tuple[int, str]]):
    """How many samples each clip has, or what is wrong with it; what there is room for is kept."""

    def __init__(self, source: Source, processes: int) -> None:
        self.source = source
        self.room = source.config.cache_gb * GB / processes / max(1, source.config.workers)

    def __len__(self) -> int:
        return len(self.source.clips)

    def __getitem__(self, index: int) -> tuple[int, str]:
        source = self.source
        stored = source._stored(index)
        try:
            samples, values = stored or source._made(source.clips[index])
        except SoundingError as error:
            return 0, str(error)
        self.room -= values.nbytes
        if self.room >= 0 and source.kept is not None and stored is None:
            self._keep(source._path(index), samples, values)
        return samples, ""

    def _keep(self, path: Path, samples: int, values: np.ndarray) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({SAMPLES: np.array(samples), VALUES: np.ascontiguousarray(values)}, path)
        except (OSError, SafetensorError) as error:
            say(f"no more is kept of what is decoded: {error}")
            self.room = 0
