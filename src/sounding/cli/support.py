"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..budget import Budget

RECIPE = "a name of `sounding recipes`, or a YAML file like one"


def budget_option(text: str | None) -> Budget:
    """Return the budget that an option names; full depth where it is left out."""
    from ..budget import Budget

    return Budget.parse(text)


def settings_option(given: Sequence[str]) -> dict[str, str]:
    """Return the settings that `--set NAME=VALUE` names, as texts.

    Raises:
        UsageError: there is no = in one.
    """
    found = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, not {setting!r}")
        found[name.strip()] = value.strip()
    return found


OF_TRAINING = ("epochs", "batch_size", "seed", "max_seconds", "device")


def add_device(parser: Any, default: str | None = "auto") -> None:
    """Add the option of where to compute, by default an accelerator where there is one."""
    parser.add_argument(
        "--device",
        default=default,
        help="auto (default: an accelerator where there is one), cpu, cuda:1, mps, ...",
    )


def add_training(parser: Any) -> None:
    """Add the options of every training, which `training_options` reads."""
    parser.add_argument("--epochs", help="passes over the training clips")
    parser.add_argument("--batch-size", help="clips a step")
    parser.add_argument("--seed", help="of everything random")
    parser.add_argument("--max-seconds", help="use only the start of longer clips")
    add_device(parser, None)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; may repeat"
    )


def training_options(arguments: argparse.Namespace, *more: str) -> dict[str, str]:
    """Return the settings that options name, as texts; those of `--set` come last.

    A command need not have every option of a training.

    Args:
        more: further options that are settings.
    """
    named = {name: getattr(arguments, name, None) for name in (*more, *OF_TRAINING)}
    given = {name: value for name, value in named.items() if value is not None}
    return given | settings_option(arguments.set)


def add_replay(parser: Any) -> None:
    """Add the option of audio beside that of `--data`, which `replay_option` reads."""
    parser.add_argument(
        "--replay",
        action="append",
        default=[],
        metavar="DIR:SHARE",
        help="further audio, with its share of the training clips; may repeat",
    )


def replay_option(given: Sequence[str]) -> dict[str, float]:
    """Return the shares that `--replay DIR:SHARE` names, by directory.

    Raises:
        UsageError: a share is missing, or no number.
    """
    shares = {}
    for one in given:
        directory, _, share = one.rpartition(":")
        try:
            shares[directory] = float(share)
        except ValueError:
            directory = ""
        if not directory:
            raise UsageError(f"--replay takes DIR:SHARE, such as speech/:0.3; got {one!r}")
    return shares


def numbers_option(text: str | None, name: str, kind: type) -> list[Any]:
    """Return numbers above 0 that stand with commas between them; none for no text.

    Args:
        name: of the option.
        kind: int or float.

    Raises:
        UsageError: something else.
    """
    try:
        numbers = [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0]
    if any(not number > 0 for number in numbers):
        raise UsageError(f"{name} takes numbers above 0 with commas between them, not {text!r}")
    return numbers


def add_beam(parser: Any) -> None:
    """Add the options of a beam search."""
    parser.add_argument("--beam", type=int, help="texts kept by a beam search (recognition by CTC)")
    parser.add_argument("--lm", help="ARPA language model of words, for the beam search")


def beam_option(arguments: argparse.Namespace, run: Any) -> Any:
    """Return the beam search that was asked for; None is greedy.

    Raises:
        UsageError: the run does not recognize by CTC.
    """
    if arguments.beam is None and arguments.lm is None:
        return None
    if not run.task.takes_beam:
        raise UsageError("--beam and --lm are for runs that recognize texts by CTC")
    from ..evaluation.beam import BeamDecoder

    beam = 25 if arguments.beam is None else arguments.beam
    return BeamDecoder(run.labels, beam, lm=arguments.lm)
