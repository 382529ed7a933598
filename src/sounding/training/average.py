"""The exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A moving average of parameters; without a decay there is none.

    Args:
        decay: of the average; in the first steps it is lower, at most (1 + step) / (10 + step).

    Attributes:
        values: the averages, by the names of the parameters; empty without a decay.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters) if decay else {}, decay
        self.values: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters of now, after so many steps."""
        if self.values:
            decay = min(self.decay, (1 + step) / (10 + step))
            now = [parameter.data for parameter in self.parameters.values()]
            torch._foreach_lerp_(list(self.values.values()), now, 1 - decay)

    def exchange(self) -> None:
        """Put the averages in the place of the parameters, and these in theirs."""
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages in the place of the parameters meanwhile."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()
