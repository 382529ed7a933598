"""The machine that a number comes from."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """Return the name of the processor, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [
        line.split(":", 1)[1].strip()
        for line in lines
        if line.lower().startswith(("model name", "hardware")) and ":" in line
    ]
    return names[0] if names else platform.processor() or platform.machine()
