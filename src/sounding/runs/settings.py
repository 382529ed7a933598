"""Settings that wait for a training, in a study or a recipe: checked where they are read."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import UsageError
from ..typed import named, nearest
from .config import FORMER_NAMES, TrainConfig

TOGETHER = ("method", "teacher")  # which say only together whether they are right
COMPANY = {"patience": {"validate_epochs": 1.0}}  # without which a setting is refused


def check_settings(values: dict[str, Any], where: str) -> None:
    """Refuse a setting that no training has, or a value that it does not take, each by itself.

    Args:
        where: "settings" or "data.NAME"; begins the text of an error.

    Raises:
        ValueError: names the setting, and the one that was meant, or what it takes.
    """
    known = [*(field.name for field in dataclasses.fields(TrainConfig)), *FORMER_NAMES]
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{where}.{named(name)} is not known{nearest(name, known)}")
        if name in TOGETHER and isinstance(value, str):
            continue
        try:
            TrainConfig.from_values({**COMPANY.get(name, {}), name: value})
        except ValueError as error:
            raise UsageError(f"{where}.{error}") from None
