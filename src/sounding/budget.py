"""How much may run: kept layers, a share of them, a mean over inputs, a time, multiply-accumulates.

A budget is parsed once, where a caller gives it, and passed on as a value.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from .errors import UsageError

Kind: TypeAlias = Literal[
    "full", "layers", "share", "mean", "mean-share", "ms", "rtf", "gmac", "each"
]

ALLOWED = (
    'a number of kept layers (3), a percentage of them ("50%"), a mean over inputs ("mean:3" or '
    '"mean:50%"), a list of these with one entry per input, or None for full depth; of an exported '
    'model also a time or operations ("40ms", "rtf:0.1", "1.5gmac")'
)
LARGEST = 10**12  # of anything; NaN and infinity are no budgets either
LIMITS = {"ms": "{:g}ms", "rtf": "rtf:{:g}", "gmac": "{:g}gmac"}  # how each is written
NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
FORMS: tuple[tuple[str, Kind], ...] = (
    (rf"mean:\s*{NUMBER}\s*%", "mean-share"),
    (rf"mean:\s*{NUMBER}", "mean"),
    (rf"{NUMBER}\s*%", "share"),
    (rf"{NUMBER}\s*ms", "ms"),
    (rf"{NUMBER}\s*gmac", "gmac"),
    (rf"rtf:\s*{NUMBER}", "rtf"),
    (r"([+-]?\d+)", "layers"),
)


class BudgetError(UsageError):
    """A budget that is not allowed; the text says which ones are."""


@dataclass(frozen=True)
class Budget:
    """How much of a model may run for an input.

    It is made by `parse`, or by `full`, `layers`, `share`, `mean` and `each`.

    Attributes:
        kind: what `value` is: kept layers; a share of them, from 0 to 1; the mean of kept layers
            over inputs, or its share; milliseconds for an input ("ms"), seconds for a second of it
            ("rtf"), billions of multiply-accumulates ("gmac"). "each" has `entries` instead.
        entries: a budget for each input of a batch.

    >>> Budget.parse("50%"), str(Budget.parse("mean: 3"))
    (Budget.share(0.5), 'mean:3')
    >>> Budget.parse([1, "50%", None]).kept_layers(layers=6, batch=3)
    [1, 3, 6]
    """

    kind: Kind
    value: float = 0.0
    entries: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        share = self.kind in ("share", "mean-share")
        fits = 0 < self.value <= LARGEST and (not share or self.value <= 1)
        if self.kind not in ("full", "each") and not fits:  # false for NaN too
            raise _not_allowed(self)
        if any(not one.is_exact or one.kind == "each" for one in self.entries):
            raise BudgetError(
                "a list of budgets has a number of kept layers, a percentage or None for each input"
            )

    @classmethod
    def parse(cls, value: Any) -> Budget:
        """Make a budget of what a caller gives.

        Args:
            value: a budget; None for full depth; kept layers as an int; a text: "3", "50%",
                "mean:3", "mean:50%", "40ms", "rtf:0.1", "1.5gmac" or "full"; a list of these with
                one entry for each input, also as a tensor or an array of int.

        Raises:
            BudgetError: anything else. A bare float is refused: 1 is one layer, 1.0 all of them.
        """
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, Budget):
            return value
        if value is None:
            return cls.full()
        if isinstance(value, str):
            return cls._of_text(value)
        if isinstance(value, (list, tuple)):
            return cls.each(value)
        if isinstance(value, float):
            raise _ambiguous(value)
        if not isinstance(value, bool):
            try:
                count = operator.index(value)
                if abs(count) <= LARGEST:
                    return cls.layers(count)
            except TypeError:
                pass
        raise _not_allowed(value)

    @classmethod
    def _of_text(cls, given: str) -> Budget:
        text = given.strip().lower()
        if text == "full":
            return cls.full()
        for form, kind in FORMS:
            if match := re.fullmatch(form, text):
                number = float(match[1]) / (100 if kind in ("share", "mean-share") else 1)
                return cls(kind, number)
        if re.fullmatch(NUMBER, text):
            return cls.parse(float(text))  # refused, with what to write
        raise _not_allowed(given)

    @classmethod
    def full(cls) -> Budget:
        """Return the budget of all layers."""
        return cls("full")

    @classmethod
    def layers(cls, count: int) -> Budget:
        """Return the budget of so many kept layers, for each input."""
        return cls("layers", count)

    @classmethod
    def share(cls, share: float) -> Budget:
        """Return the budget of the most layers that are at most that share of all, one at least."""
        return cls("share", share)

    @classmethod
    def mean(cls, layers: float) -> Budget:
        """Return a budget of that many layers in the mean, fewer for easy inputs than hard ones."""
        return cls("mean", layers)

    @classmethod
    def each(cls, budgets: Sequence[Any]) -> Budget:
        """Return a budget for each input of a batch."""
        return cls("each", entries=tuple(map(cls.parse, budgets)))

    @property
    def is_exact(self) -> bool:
        """Whether the budget says how many layers each input keeps."""
        return self.kind in ("full", "layers", "share", "each")

    @property
    def is_mean(self) -> bool:
        """Whether the budget says how many layers inputs keep in the mean."""
        return self.kind in ("mean", "mean-share")

    @property
    def is_limit(self) -> bool:
        """Whether the budget says what an input may cost; a profile turns that into layers."""
        return self.kind in LIMITS

    def kept_layers(self, *, layers: int, batch: int = 1) -> list[int]:
        """Return how many layers each of the `batch` inputs keeps.

        Args:
            layers: L, of which these are.

        Raises:
            BudgetError: not an exact budget, more than L, or another number of entries.
        """
        if not self.is_exact:
            raise _not_allowed(self)
        if self.kind != "each":
            return [self._kept(layers)] * batch
        if len(self.entries) != batch:
            raise BudgetError(
                f"the budget has {len(self.entries)} entries for a batch of {batch} inputs: give "
                "one entry per input, or a single budget for all"
            )
        return [one._kept(layers) for one in self.entries]

    def _kept(self, layers: int) -> int:
        if self.kind == "full":
            return layers
        if self.kind == "share":  # 0.1 * 3 / 3 style rounding must not lose a layer
            return max(1, math.floor(self.value * layers + 1e-9))
        if self.value > layers:
            raise BudgetError(
                f"budget {str(self)!r} is not allowed: there are {layers} layers; "
                f"give 1 to {layers}"
            )
        return int(self.value)

    def keeps_all(self, *, layers: int) -> bool:
        """Return whether every input keeps all layers."""
        return self.is_exact and all(
            one._kept(layers) == layers for one in (self.entries if self.kind == "each" else [self])
        )

    def mean_layers(self, *, layers: int) -> float:
        """Return how many layers inputs keep in the mean.

        Raises:
            BudgetError: not a mean budget, or one that is not from 1 to L.
        """
        mean = self.value * (layers if self.kind == "mean-share" else 1)
        if not self.is_mean or not 1 <= mean <= layers:
            raise BudgetError(
                f'budget {str(self)!r} is not allowed: a mean budget is "mean:M" with M from 1 to '
                f"{layers} kept layers, or a percentage of {layers}"
            )
        return mean

    def fitting_layers(
        self, cost: Callable[[int], float], seconds: float, *, layers: int
    ) -> tuple[int, float]:
        """Return how many layers a limit allows an input.

        Args:
            cost: of so many layers, in milliseconds or in billions of multiply-accumulates.
            seconds: length of the input.

        Returns:
            The most layers that fit, or 0 where not even one does; and what was allowed, in the
            unit of `cost`.
        """
        if not self.is_limit:
            raise BudgetError(f"budget {str(self)!r} is no time and no number of operations")
        allowed = 1000 * self.value * seconds if self.kind == "rtf" else self.value
        return max((k for k in range(1, layers + 1) if cost(k) <= allowed), default=0), allowed

    def __str__(self) -> str:
        """Return the budget as text that `parse` reads."""
        if self.kind in LIMITS:
            return LIMITS[self.kind].format(self.value)
        written = {
            "full": "full",
            "layers": f"{self.value:g}",
            "share": f"{100 * self.value:g}%",
            "mean": f"mean:{self.value:g}",
            "mean-share": f"mean:{100 * self.value:g}%",
        }
        return written.get(self.kind) or "[" + ", ".join(map(str, self.entries)) + "]"

    def __repr__(self) -> str:
        """Return the budget as an expression."""
        makers = {"layers": "layers", "share": "share", "mean": "mean"}
        if self.kind in makers:
            return f"Budget.{makers[self.kind]}({self.value:g})"
        return f"Budget.parse({str(self)!r})" if self.kind != "full" else "Budget.full()"


def _ambiguous(value: float) -> BudgetError:
    shares = f': a share is "{100 * value:g}%" or Budget.share({value!r})' if 0 < value <= 1 else ""
    return BudgetError(
        f"budget {value!r} is not allowed, since 1 would be one layer and 1.0 all of them{shares}; "
        f"give {ALLOWED}"
    )


def _not_allowed(given: Any) -> BudgetError:
    shown = str(given) if isinstance(given, Budget) else given
    return BudgetError(f"budget {shown!r} is not allowed: give {ALLOWED}")


def threshold_for(mean: float, table: Sequence[tuple[float, float]]) -> float:
    """Find the threshold of a mean budget, between the calibrated ones.

    Args:
        table: [mean, threshold] by rising mean.

    >>> threshold_for(2.5, [(1.0, 0.0), (2.0, 0.5), (3.0, 0.7)])
    0.6
    """
    means, thresholds = np.array(table, dtype=float).T
    return float(np.interp(mean, means, thresholds))
