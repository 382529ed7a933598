"""A training that is interrupted."""

from __future__ import annotations

from unittest import mock

import pytest

from sounding.training import loop


def train_until(stop, config, folder, out):
    """Train into `out`, interrupted before the step `stop`."""
    step, calls = loop._one_step, []

    def stopping(*args):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(0)
        return step(*args)

    with mock.patch.object(loop, "_one_step", stopping), pytest.raises(KeyboardInterrupt):
        loop.train(config, folder, out)
