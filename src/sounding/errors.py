"""The errors that are for people: their text says what was given, what is expected, what to do.

Each part of the package has its own (`AudioError`, `ModelError`, ...), and all are `SoundingError`.
They keep the built-in class that a caller would expect of them too, such as ValueError or OSError.
"""

from __future__ import annotations

from typing import ClassVar


class SoundingError(Exception):
    """Something that the user can mend, or has asked for; the text is meant to be read alone.

    Attributes:
        exit_code: what the command line ends with.
    """

    exit_code: ClassVar[int] = 2


class UsageError(SoundingError, ValueError):
    """A setting, an option, a budget or a file that cannot be used as it was given."""
