"""Answers to clips one by one, with what is said of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..runtime import Answer


class Failure(NamedTuple):
    """A clip to which there is no answer, and why."""

    file: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """Return the failure as JSON values."""
        from ..data.text import printable

        return {"file": printable(self.file), "error": printable(self.error)}


def each_answer(
    model: Any,
    answer: Callable[[Any], Answer],
    clips: Iterator[Path | str],
    window: float | None,
) -> Iterator[Answer | Failure]:
    """Yield an answer to each clip, or to each window of it, or why there is none.

    Args:
        model: an exported one.
        answer: of it, to a file or samples.
        window: in seconds; None for whole clips.
    """
    for clip in clips:
        if window is not None:
            yield from answers_or_why(clip, _windows(model, answer, clip, window))
        else:
            yield from answers_or_why(clip, map(answer, [clip]))


def answers_or_why(clip: Path | str, answers: Iterator[Answer]) -> Iterator[Answer | Failure]:
    """Yield the answers to a clip, and why there are no more where it cannot be used."""
    from ..data.audio import AudioError

    try:
        yield from answers
    except (AudioError, OSError) as error:  # OSError: it is gone, or there is no microphone
        name, text = str(clip), str(error)
        yield Failure(name, text if name in text else f"{name}: {text}")


def _windows(
    model: Any, answer: Callable[[Any], Answer], clip: Path | str, window: float
) -> Iterator[Answer]:
    from dataclasses import replace

    from ..data.audio import AudioError, audio_blocks
    from ..runtime.stream import Stream, microphone

    rate = model.meta.rate
    blocks = microphone(model) if str(clip) == "mic" else audio_blocks(clip, rate=rate)
    stream = Stream(answer, rate, window=window, hop=window / 2)
    heard = None
    for block in blocks:
        for heard in stream.feed(block):
            name = f"{clip} {heard.start:.1f}-{heard.end:.1f} s"
            yield replace(heard.answer, file=name, label=heard.label)
    if heard is None:
        raise AudioError(f"{clip}: shorter than a window of {window:g} s: give a shorter one")
