"""A training that is interrupted."""

from __future__ import annotations

from unittest import mock

import pytest

from sounding.training import loop, steps


def train_until(stop, config, folder, out):
    """Train into `out`, interrupted before the step `stop`."""
    step, calls = steps.one_step, []

    def stopping(*args):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(0)
        return step(*args)

    with mock.patch.object(steps, "one_step", stopping), pytest.raises(KeyboardInterrupt):
        loop.train(config, folder, out)


def stop_and_go_on(config, folder, out, stop):
    """Train into `out`, interrupted once before the step `stop`."""
    train_until(stop, config, folder, out)
    loop.train(config, folder, out)


def weights(run_directory):
    """The bytes of all that was trained."""
    names = ("model/model.safetensors", "model/selector.safetensors", "model/exits.safetensors")
    return {
        name: (run_directory / name).read_bytes()
        for name in names
        if (run_directory / name).exists()
    }
