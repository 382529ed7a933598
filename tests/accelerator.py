"""An accelerator that is not there: its tensors compute on the processor, and keep to themselves.

In `with accelerator():` a tensor that is made on the device "lazy", of which PyTorch has the name
and no backend, holds a tensor of the processor. An operation that mixes both kinds fails, as it
does on CUDA; what crosses over by `.cpu()`, `.item()` or `.tolist()` is counted.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sounding.training import workers

NAME = "lazy"
CROSSING = ("copy_", "_to_copy", "_local_scalar_dense")
CROSSING += ("_ctc_loss", "_ctc_loss_backward")  # whose lengths may be anywhere
MAKERS = (torch.tensor, torch.as_tensor)
INDEXING = ("__getitem__", "__setitem__")


class Held(torch.Tensor):
    """A tensor of the accelerator."""

    @staticmethod
    def __new__(cls, held):
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=torch.device(NAME, 0),
            )
        made.held = held
        return made

    def __repr__(self):
        return f"Held({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs, crossed=None):
    """Run an operation on what is held; fail where it mixes devices."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    ours = [one for one in given if isinstance(one, Held)]
    name = func.__name__.split(".")[0]
    strangers = [one for one in given if not isinstance(one, Held) and one.dim()]
    if ours and strangers and name not in CROSSING:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found one of the "
            f"processor, {list(strangers[0].shape)}, beside one of the accelerator"
        )
    here, device = bool(ours), kwargs.get("device")
    if device is not None:
        here = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif name == "copy_":
        here = isinstance(args[0], Held)
    if crossed is not None and ours and (name == "_local_scalar_dense" or not here):
        crossed[name] += 1
    plain, named = tree_map(lambda one: one.held if isinstance(one, Held) else one, (args, kwargs))
    out = func(*plain, **named)
    if plain and out is plain[0]:  # in place
        return args[0]

    def held(one):
        new = isinstance(one, torch.Tensor) and not isinstance(one, Held)
        return Held(one) if here and new else one

    return tree_map(held, out)


class Dispatch(TorchDispatchMode):
    """Sees every operation, also those that make a tensor of none."""

    def __init__(self, crossed):
        super().__init__()
        self.crossed = crossed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._can_decompose():  # in inference mode
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return compute(func, args, kwargs or {}, self.crossed)


class Functions(TorchFunctionMode):
    """Sees what no operation is dispatched for: `torch.tensor`, lists as indexes, NumPy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in MAKERS and kwargs.get("device") is not None:
            device = kwargs["device"]
            return func(*args, **{**kwargs, "device": None}).to(device)
        if getattr(func, "__name__", "") in INDEXING and isinstance(args[0], Held):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            at = tuple(torch.tensor(one).to(NAME) if type(one) is list else one for one in at)
            return func(args[0], at, *args[2:])
        if func is torch.Tensor.tolist and isinstance(args[0], Held):
            return args[0].cpu().tolist()
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(args[0], Held):
            raise TypeError("can't convert a tensor of the accelerator to numpy: use .cpu() first")
        return func(*args, **kwargs)


@contextmanager
def accelerator(count=1):
    """Have some in a `with` block; it yields how often values crossed over, by operation."""
    crossed = Counter()
    there = mock.patch.multiple(
        torch.accelerator,
        is_available=lambda: True,
        current_accelerator=lambda check_available=False: torch.device(NAME),
        device_count=lambda: count,
    )
    unpinned = mock.patch.object(workers, "UNPINNED", (*workers.UNPINNED, NAME))
    with there, unpinned, Functions(), Dispatch(crossed):
        yield crossed
