"""Several masks for all inputs of a batch: a tree, in which each shared prefix runs once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .call import Call, Tree
from .layer import run_layer


def groups_of(masks: Tensor, *, apart: bool) -> list[list[int]]:
    """Return the indexes of masks that may share layers.

    Args:
        apart: whether full depth shares none, since its layers have other weights.

    Shape: masks [masks, layers] bool.
    """
    whole = masks.all(1) & apart
    groups = [(~whole).nonzero().squeeze(1).tolist(), whole.nonzero().squeeze(1).tolist()]
    return [group for group in groups if group]


def run_tree(
    call: Call, tree: Tree, hidden: Tensor, kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    """Run the members of the tree depth first, each shared prefix once.

    Return what the last leaf returns.
    """
    layers = call.stack.layers
    extra: tuple[Any, ...] = ()
    last = hidden

    def walk(index: int, state: Tensor, members: list[int]) -> None:
        nonlocal extra, last
        if index == tree.after and bool(tree.masks[members[0], :index].all()):
            tree.features = state
        if index == len(layers):
            last = state
            tree.leaf(members[0], state)
            return
        running = [m for m in members if tree.masks[m, index]]
        skipping = [m for m in members if not tree.masks[m, index]]
        if running:
            ran, extra = run_layer(call, index, state, None, kwargs)
            walk(index + 1, ran, running)
        if skipping:
            walk(index + 1, call.skip(index, layers[index], state), skipping)

    walk(0, hidden, list(tree.members))
    return last, extra
