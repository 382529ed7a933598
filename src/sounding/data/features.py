"""Features of clips, each by itself, and the batches that are made of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .audio import (
    AudioError,
    Seconds,
    as_float,
    check_length,
    check_samples,
    check_segment,
    duration,
    read_audio,
    segment_name,
)
from .folder import Clip
from .names import SHOWN

if TYPE_CHECKING:
    from torch import Tensor

Layout: TypeAlias = Literal["time_first", "bins_first"]
Progress: TypeAlias = Callable[[int, int], None]
Change: TypeAlias = Callable[[int, np.ndarray], np.ndarray]
Lengths: TypeAlias = "Sequence[float] | NDArray[np.float64] | NDArray[np.int64]"
FeatureSet: TypeAlias = Sequence[np.ndarray]  # float32, [frames, bins] or [samples] of a clip

LIMIT_SECONDS: Seconds = 30.0  # of a clip, unless cut by max_seconds: the window of Whisper
PADDING_SECONDS: Seconds = 0.1
KEEP_BYTES = 4 << 30  # of features in memory; those of the clips after it lie in a file
CHUNK = 50  # batches among which clips of similar length are put together


def extractor_layout(extractor: Any) -> tuple[str, Layout]:
    """Return the model's main input name, and whether time or bins come first in its tensor.

    Time or mel bins, that is: it is made for `collate(features, *extractor_layout(extractor))`.
    """
    whisper = any("Whisper" in cls.__name__ for cls in type(extractor).__mro__)
    return extractor.model_input_names[0], "bins_first" if whisper else "time_first"


def extract(audio: np.ndarray, extractor: Any) -> np.ndarray:
    """Return the features of one clip at its own length, so that no neighbour changes them.

    AST alone has one fixed length: its extractor pads, or cuts after 10.24 s.

    Args:
        audio: at the extractor's sampling rate; integer PCM is scaled, as by `as_float`.
        extractor: a feature extractor of `transformers`.

    Shape: audio [samples] -> [frames, bins] float32; [samples] where the model takes a waveform.

    Raises:
        AudioError: audio that is too short, not one channel, or not finite.
    """
    rate = extractor.sampling_rate
    audio = as_float(audio)
    check_samples(audio, rate, "the audio")
    name, layout = extractor_layout(extractor)
    made = extractor(audio, sampling_rate=rate, padding=False, truncation=False)
    features = np.asarray(made[name][0], dtype=np.float32)
    if layout == "bins_first":
        features = features.T
    if "attention_mask" in made:  # Parakeet adds one frame behind the end
        features = features[: int(np.asarray(made["attention_mask"][0]).sum())]
    return np.ascontiguousarray(features)


def load_features(
    clips: Sequence[Clip],
    extractor: Any,
    *,
    max_seconds: Seconds | None,
    rate: int | None = None,
    change: Change | None = None,
    progress: Progress | None = None,
) -> FeatureSet:
    """Read clips and extract the features of each by itself.

    What is more than 4 GB is kept in a temporary file (in `TMPDIR`) in place of the memory.

    Args:
        max_seconds: use only the start of longer clips; None refuses clips over 30 s, as Whisper
            does in any case.
        rate: of the audio, in Hz; by default that of the extractor.
        change: of the audio before the features, called with (index of the clip, audio).
        progress: called with (clips done, all clips).

    Shape: of each clip as `extract` returns it, in the order of `clips`.

    Raises:
        AudioError: clips that cannot be used; the text names them, all in one.
        OSError: no room for the temporary file.
        UsageError: `rate` is not what the extractor was made for.
    """
    rate = extractor.sampling_rate if rate is None else rate
    if rate != extractor.sampling_rate:
        raise UsageError(
            f"rate is {rate} Hz, but {type(extractor).__name__} takes {extractor.sampling_rate} "
            "Hz: leave `rate` out"
        )
    limit = None  # Whisper takes no more, whatever `max_seconds` says
    if max_seconds is not None and extractor_layout(extractor)[1] == "bins_first":
        limit = float(extractor.chunk_length)
    kept = _Kept()
    for index, audio in enumerate(read_clips(clips, rate, max_seconds, limit)):
        if change is not None:
            audio = change(index, audio)
        kept.add(extract(audio, extractor))
        if progress is not None:
            progress(index + 1, len(clips))
    return kept.features()


class _Kept:
    """Features in memory, and in a file without a name where they are too many for it."""

    def __init__(self) -> None:
        self.bytes, self.inside = 0, list[np.ndarray]()
        self.file: Any = None
        self.shapes: list[tuple[int, ...]] = []

    def add(self, features: np.ndarray) -> None:
        self.bytes += features.nbytes
        if self.bytes <= KEEP_BYTES and self.file is None:
            self.inside.append(features)
            return
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile(prefix="sounding-")  # noqa: SIM115
            self.file.write(features.data)
        except OSError as error:
            raise OSError(
                f"features beyond {self.bytes >> 20} MB cannot be kept in {tempfile.gettempdir()} "
                f"({error.strerror}): set TMPDIR to a directory with more room"
            ) from None
        self.shapes.append(features.shape)

    def features(self) -> FeatureSet:
        if self.file is None:
            return self.inside
        self.file.flush()
        stored = np.asarray(np.memmap(self.file, dtype=np.float32, mode="c"))
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        parts = zip(np.split(stored, ends), self.shapes, strict=True)
        return self.inside + [part.reshape(shape) for part, shape in parts]


def read_clips(
    clips: Sequence[Clip], rate: int, max_seconds: Seconds | None, limit: Seconds | None = None
) -> Iterator[np.ndarray]:
    """Yield the audio of each clip as `load_audio` returns it, in order.

    After a clip that cannot be used the others are only tried, so that one error tells of all.

    Raises:
        AudioError: clips that cannot be used; the text names up to five, and says how many.
    """
    bad: list[str] = []
    for clip in clips:
        try:
            audio = load_audio(clip, rate, max_seconds, limit)
        except AudioError as error:
            bad.append(str(error))
            continue
        if not bad:
            yield audio
    refuse(bad, len(clips))


def refuse(bad: Sequence[str], clips: int) -> None:
    """Tell of clips that cannot be used, all in one error; of none it tells nothing.

    Args:
        bad: what is wrong with each of them.
        clips: how many there are in all.

    Raises:
        AudioError: there are some; the text names up to five, and says how many.
    """
    if len(bad) == 1:
        raise AudioError(bad[0])
    if bad:
        more = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise AudioError(
            "\n  ".join([f"{len(bad)} of {clips} clips cannot be used:", *bad[:SHOWN], *more])
        )


def load_audio(
    clip: Clip, rate: int, max_seconds: Seconds | None, limit: Seconds | None = None
) -> np.ndarray:
    """Read the audio of a clip, unless it is too long: hours are not decoded to be refused.

    Args:
        rate: of the result, in Hz.
        max_seconds: use only the start of a longer clip.
        limit: of a clip, once it is cut; by default 30 s, or `max_seconds` where that is given.

    Shape: [samples] float32.

    Raises:
        AudioError: as `read_audio`, or a clip that is too long.
    """
    segment = {"start": clip.start, "end": clip.end}
    if limit is None:
        limit = LIMIT_SECONDS if max_seconds is None else max_seconds
    if max_seconds is not None and max_seconds <= limit:
        return read_audio(clip.path, rate=rate, max_seconds=max_seconds, **segment)
    name = segment_name(clip.path, clip.start, clip.end)
    check_length(round(clip_seconds(clip) * rate), rate, limit, name)
    # what encoders add at the end is not in every header; anything longer belies the header
    audio = read_audio(clip.path, rate=rate, max_seconds=limit + 2 * PADDING_SECONDS, **segment)
    if len(audio) > (limit + PADDING_SECONDS) * rate:
        check_length(audio, rate, limit, name)
    return audio[: math.ceil(limit * rate)]


def clip_seconds(clip: Clip) -> Seconds:
    """Return the length of a clip, by the header of its file where it does not say its end.

    Raises:
        AudioError: as `duration`, or a segment that cannot be one.
    """
    check_segment(clip.path, clip.start, clip.end)
    end = duration(clip.path) if clip.end is None else clip.end
    return end - (clip.start or 0.0)


def collate(
    features: Sequence[np.ndarray], main_input_name: str, layout: Layout
) -> dict[str, Tensor]:
    """Pad the features of a batch with zeros on the right.

    Shape: [frames, bins] each -> [batch, frames, bins], or [batch, bins, frames] for
    "bins_first"; [samples] each -> [batch, samples]. `attention_mask`: [batch, frames or samples]
    int64, 1 where the features are real.

    Raises:
        UsageError: no features.
    """
    import torch  # here, since a folder can be read and checked without it

    if not features:
        raise UsageError("no features to collate: give at least one clip")
    longest = max(len(one) for one in features)
    padded = torch.zeros(len(features), longest, *features[0].shape[1:])
    attention_mask = torch.zeros(len(features), longest, dtype=torch.long)
    for index, one in enumerate(features):
        padded[index, : len(one)] = torch.from_numpy(one)
        attention_mask[index, : len(one)] = 1
    if layout == "bins_first":
        padded = padded.transpose(1, 2).contiguous()
    return {main_input_name: padded, "attention_mask": attention_mask}


def batches(
    lengths: Lengths,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    most: float = math.inf,
) -> list[list[int]]:
    """Return the indexes of the clips of each batch.

    Args:
        batch_size: clips in a batch; only the last one made may be smaller.
        most: the longest clip of a batch times their number, at most: further batches are smaller
            too. A clip that is longer makes a batch by itself.

    When shuffling, clips of similar length share a batch: random chunks of 50 batches are sorted
    by length, and their batches put in random order. All of it follows from (seed, epoch).

    Raises:
        UsageError: a batch size below 1.
    """
    if batch_size < 1:
        raise UsageError(f"a batch size of {batch_size}: give at least 1")
    if not shuffle:
        return _cut(list(range(len(lengths))), batch_size, lengths, most)
    rng = np.random.default_rng([seed, epoch])
    made: list[list[int]] = []
    for chunk in _cut(rng.permutation(len(lengths)).tolist(), CHUNK * batch_size):
        made += _cut(sorted(chunk, key=lengths.__getitem__), batch_size, lengths, most)
    return [made[index] for index in rng.permutation(len(made))]


def _cut(
    indexes: list[int], size: int, lengths: Lengths = (), most: float = math.inf
) -> list[list[int]]:
    if most == math.inf:
        return [indexes[start : start + size] for start in range(0, len(indexes), size)]
    made: list[list[int]] = []
    longest = 0.0
    for index in indexes:
        longest = max(longest, lengths[index])
        if not made or len(made[-1]) == size or longest * (len(made[-1]) + 1) > most:
            made.append([])
            longest = lengths[index]
        made[-1].append(index)
    return made
