"""Who chooses the layers of an input: one file a policy. To add one: docs/add-a-policy.md."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..registry import POLICIES
from .base import Context, Policy
from .confidence import Confidence
from .gates import GateSelector
from .input import InputSelector
from .plans import Gates
from .predicted import PredictedDepth
from .static import StaticScores

__all__ = [
    "Confidence",
    "Context",
    "GateSelector",
    "Gates",
    "InputSelector",
    "Policy",
    "PredictedDepth",
    "StaticScores",
    "new_policy",
    "policy_from_config",
    "register_policy",
]

FIRST = "first"  # another name of `StaticScores` as it is before any training
FORMER = {"library": "is no more, since a study found no use in it: train again by method input"}
MOST = 4096  # of the widths of a policy that a file may ask for


def register_policy(policy: type[Policy]) -> type[Policy]:
    """Make a policy known by its `kind`; may be used as a decorator.

    Raises:
        UsageError: the kind is taken.
    """
    kind = getattr(policy, "kind", None)
    if kind is None:
        raise UsageError(f"{policy.__name__} has no kind: give the class one, as its name in files")
    POLICIES.add(kind, policy)
    return policy


for known in (InputSelector, StaticScores, GateSelector, Confidence, PredictedDepth):
    register_policy(known)
POLICIES.add(FIRST, StaticScores)


def new_policy(kind: str, *, width: int, layers: int) -> Policy:
    """Make a policy for an encoder of that width and number of layers, to be trained.

    Args:
        kind: of a registered policy; "first" keeps the first k layers.

    Raises:
        UsageError: an unknown kind.
    """
    made: Policy = POLICIES[kind].for_encoder(width=width, layers=layers)
    return made


def policy_from_config(config: dict[str, Any], *, width: int, layers: int) -> Policy:
    """Build a policy from its `config()`, with fresh weights.

    Args:
        width, layers: of the encoder (or decoder) that it is for.

    Raises:
        UsageError: an unknown kind, or settings that are damaged or do not fit.
    """
    values = dict(config)
    kind = values.pop("kind", None)
    if values.get("layers", layers) != layers or values.get("width", width) != width:
        raise UsageError(f"the settings of the selector are not for {layers} layers of {width}")
    if any(type(v) is int and not 0 <= v <= MOST for n, v in values.items() if n != "width"):
        raise UsageError("the settings of the selector are damaged: a number out of range")
    if kind in FORMER:
        raise UsageError(f"a policy of kind {kind!r} {FORMER[kind]}")
    known: type[Policy] = POLICIES[kind]
    try:
        return known.from_config(values)
    except (TypeError, KeyError, RuntimeError) as error:
        raise UsageError(f"the settings of the selector are damaged: {error}") from None
