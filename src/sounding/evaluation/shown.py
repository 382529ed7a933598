"""Names that others chose (labels, folders, speakers), made safe for pages and plots."""

from __future__ import annotations

import re
import unicodedata
from html import escape

LONGEST = 40  # characters of a name in a plot
BREAKS = {"Cc", "Zl", "Zp", "Cs"}  # control characters, line ends, halves of characters


def one_line(text: str) -> str:
    r"""Return a text without line ends and control characters, which become spaces.

    >>> one_line("a\n# b")
    'a # b'
    """
    return "".join(" " if unicodedata.category(c) in BREAKS else c for c in text)


def in_markdown(text: str) -> str:
    r"""Escape a text so that Markdown shows it as it is: no markup, HTML, link or table cell.

    >>> in_markdown("<b>*a*|b</b>")
    '&lt;b&gt;\\*a\\*\\|b&lt;/b&gt;'
    """
    marked = re.sub(r"([\\`*_\[\]|#~$!:@]|(?<=www)\.)", r"\\\1", one_line(text))
    return escape(marked, quote=False)


def in_plot(text: str) -> str:
    """Shorten a text for a plot.

    >>> in_plot("a" * 50) == "a" * 39 + "…"
    True
    """
    line = one_line(text)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
