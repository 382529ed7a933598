"""What goes wrong with audio files and corpora, below all that reads them."""

from __future__ import annotations

from pathlib import Path

from ..errors import SoundingError

FORMATS = "wav, flac, ogg, opus or mp3"  # the best known of them


class AudioError(SoundingError, ValueError):
    """An audio file or signal that cannot be used; the text says why and what to do."""


class DataError(SoundingError, ValueError):
    """A folder of clips or a corpus that cannot be used; the text says why and what to do."""


class AudioWarning(UserWarning):
    """Something in an audio file that a listener should know of; it can be used nevertheless."""


class SilentAudioWarning(AudioWarning):
    """The audio is valid, but holds nothing above a peak of 1e-5."""


class CancellingChannelsWarning(AudioWarning):
    """The channels cancel one another in their mean; the loudest is used in its place."""


class IncompleteAudioWarning(AudioWarning):
    """Audio may be missing: a stream without its end, or a gap in its time stamps."""


def undecodable(path: Path | str, reason: object) -> AudioError:
    """Make the error for a file that is there and cannot be decoded."""
    return AudioError(
        f"{path}: cannot be decoded ({str(reason).rstrip('.')}), expected intact audio "
        f"({FORMATS}): copy or convert it again, or leave it out"
    )


def missing_reason(seconds: float) -> str:
    """Say why a file cannot be used that ends too early."""
    return f"{seconds:.2f} s of what the header announces are missing"
