"""The parts of a dynamic model as ONNX graphs: front end, selector, layers, skip paths, heads.

Each part is exported by itself and later joined with the others (`graph`), or saved as it is
(split export). All take a batch of any size and clips of any length, without padding.

| part | inputs | outputs |
|---|---|---|
| front | features [batch, time, bins] or [batch, samples] | state, extra_0, ... |
| selector | state, k [batch] int64, for gates threshold [] | mask [batch, layers] bool |
| layer, skip | state, a layer also extra_0, ... | out, a state |
| head | state | logits [batch, labels], or [batch, frames, vocabulary] |

A state is [batch, frames, width].
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn

from ..errors import SoundingError
from ..model.call import Call, activate
from ..model.dynamic import DynamicModel
from ..model.layer import uncompiled
from ..policies import Policy

OPSET = 20
EXAMPLES = ((2, 0.7), (3, 1.0))  # (batch, seconds): what differs between the two is dynamic
DYNAMIC = torch.export.Dim.DYNAMIC


class ExportError(SoundingError, ValueError):
    """A run that cannot be exported; the text says why and what to do."""


@dataclass
class Parts:
    """All graphs of a model.

    Attributes:
        heads: by number of kept layers; the model's own at full depth, and where there is no
            other.
        skips: empty where a skipped layer is the identity.
        after: layers that run before the selector reads.
        reads_threshold: whether the selector reads the threshold of mean budgets.
        extras: number of further inputs of a layer.
        batches: whether a part of the inputs can be taken out of a batch: the first dimension of
            each extra is the batch, or none.
        per_input: of each extra, whether its first dimension is the batch.
    """

    front: onnx.ModelProto
    selector: onnx.ModelProto
    layers: list[onnx.ModelProto]
    skips: list[onnx.ModelProto]
    heads: dict[int, onnx.ModelProto]
    after: int
    reads_threshold: bool
    extras: int
    batches: bool
    per_input: list[bool]

    @property
    def own_head(self) -> onnx.ModelProto:
        """The head at full depth."""
        return self.heads[len(self.layers)]

    def head(self, k: int) -> onnx.ModelProto:
        """Return the head that answers after `k` layers."""
        return self.heads.get(k, self.own_head)


@torch.no_grad()
def export_parts(dynamic: DynamicModel) -> Parts:
    """Export every part of a model.

    Raises:
        ExportError: a model or a selector that has no export.
    """
    check(dynamic)
    name = dynamic.base.main_input_name
    examples = [dynamic.backbone.example(dynamic.base, *one)[name] for one in EXAMPLES]
    if dynamic.backbone.time == 2:
        examples = [one.transpose(1, 2) for one in examples]
    (state, kwargs), (other_state, other_kwargs) = (_entered(dynamic, one) for one in examples)
    given = [key for key, value in kwargs.items() if _tensors({key: value})]
    extras, other_extras = _tensors(kwargs), _tensors(other_kwargs)
    names = [f"extra_{index}" for index in range(len(extras))]
    varies = [_dynamic(*pair) for pair in zip(extras, other_extras, strict=True)]
    batch = [len(one) for one in examples]
    per_input = [
        0 in dims and [len(a), len(b)] == batch
        for dims, a, b in zip(varies, extras, other_extras, strict=True)
    ]
    front = to_onnx(
        Front(dynamic, given),
        {"features": (examples[0], _dynamic(*examples))},
        ["state", *names],
    )
    state_input = {"state": (state, _dynamic(state, other_state))}
    layer_inputs = state_input | dict(zip(names, zip(extras, varies, strict=True), strict=True))
    plain_layers = [uncompiled(layer) for layer in dynamic.stack.layers]
    layers = _alike([Layer(layer, kwargs) for layer in plain_layers], layer_inputs, ["out"])
    skips: list[onnx.ModelProto] = []
    if dynamic.skip.kind != "identity":
        skips = _alike([Skip(dynamic, i) for i in range(len(layers))], state_input, ["out"])
    heads = {}
    if dynamic.exits is not None:
        below = range(1, len(layers))
        exits = [ExitHead(dynamic.exits, k) for k in below]
        heads = dict(zip(below, _alike(exits, state_input, ["logits"]), strict=True))
    heads[len(layers)] = to_onnx(OwnHead(dynamic), state_input, ["logits"])
    return Parts(
        front=front,
        selector=export_policy(dynamic.policy, state_input),
        layers=layers,
        skips=skips,
        heads=heads,
        after=dynamic.policy.after,
        reads_threshold=dynamic.policy.reads_threshold,
        extras=len(extras),
        batches=all(own or 0 not in dims for own, dims in zip(per_input, varies, strict=True)),
        per_input=per_input,
    )


def check(dynamic: DynamicModel) -> None:
    """Check that a model and its selector have an export.

    Raises:
        ExportError: they have none.
    """
    kind = type(dynamic.model).__name__
    if dynamic.model.dtype != torch.float32:
        raise ExportError(f"the weights are {dynamic.model.dtype}: load the model in float32")
    if dynamic.has_decoder:
        raise ExportError(f"a {kind} has a decoder: only encoders with a head can be exported")
    if getattr(dynamic.model.config, "use_weighted_layer_sum", False):
        raise ExportError("use_weighted_layer_sum answers from all hidden states: no export")
    if dynamic.policy.graph() is None:
        raise ExportError(
            f"a policy {dynamic.policy.kind!r} as this one has no export (as gates of scope "
            '"local", which are read before each layer): train with --set gates=global, or export '
            "one fixed mask with --mask"
        )


def _entered(dynamic: DynamicModel, features: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return what enters layer 0, and the arguments of the layers; none of them runs.

    Shape: features [batch, time, bins] or [batch, samples].
    """
    if dynamic.backbone.time == 2:
        features = features.transpose(1, 2)
    found: list[Any] = []
    call = Call(
        stack=dynamic.stack,
        base=dynamic.base,
        backbone=_AnyLength(dynamic.backbone),
        plan=lambda: lambda *_: (torch.empty(0), None),  # never asked
        skip=dynamic.skip,
        entered=lambda *given: found.extend(given),
    )
    with activate(call):
        dynamic.base(**{dynamic.base.main_input_name: features})
    return found[0], found[1]


class _AnyLength:
    """A backbone without a window, which would be a case of its own in the graph."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def window(self, base: nn.Module) -> None:
        """Return None: there is no window."""
        return None


def _tensors(kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among a layer's arguments, those within tuples too, in order."""
    values = [v for value in kwargs.values() for v in (value if _is_tuple(value) else (value,))]
    return [value for value in values if isinstance(value, Tensor)]


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, Tensor) for one in value)


def _dynamic(one: Tensor, other: Tensor) -> dict[int, Any]:
    return {d: DYNAMIC for d in range(one.ndim) if one.shape[d] != other.shape[d]}


class Front(nn.Module):
    """All that comes before layer 0."""

    def __init__(self, dynamic: DynamicModel, given: list[str]) -> None:
        super().__init__()
        self.base, self._dynamic, self.given = dynamic.base, [dynamic], given

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return what enters layer 0, and what the layers take besides.

        Shape: [batch, time, ...] -> [batch, frames, width], and that of each argument.
        """
        state, kwargs = _entered(self._dynamic[0], features)
        # While it is traced, transformers makes a mask of ones where otherwise it makes none.
        return state, *_tensors({name: kwargs[name] for name in self.given})


class Layer(nn.Module):
    """One layer with the arguments that it gets without padding."""

    def __init__(self, layer: nn.Module, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.layer, self.kwargs = layer, kwargs

    def forward(self, state: Tensor, *extras: Tensor) -> Tensor:
        """Run the layer. Shape: [batch, frames, width] -> the same."""
        left = iter(extras)
        kwargs = {
            name: tuple(next(left) for _ in value)
            if _is_tuple(value)
            else next(left)
            if isinstance(value, Tensor)
            else value
            for name, value in self.kwargs.items()
        }
        out = self.layer(state, **kwargs)
        return out[0] if isinstance(out, tuple) else out


class Skip(nn.Module):
    """What passes one layer that is not run."""

    index: Tensor

    def __init__(self, dynamic: DynamicModel, index: int) -> None:
        super().__init__()
        self.skip, self.layer = dynamic.skip, uncompiled(dynamic.stack.layers[index])
        self.register_buffer("index", torch.tensor(index))

    def forward(self, state: Tensor) -> Tensor:
        """Pass a state by the layer. Shape: [batch, frames, width] -> the same."""
        return self.skip(self.index, self.layer, state)


class OwnHead(nn.Module):
    """All that follows the last layer."""

    def __init__(self, dynamic: DynamicModel) -> None:
        super().__init__()
        self.model, self._dynamic = dynamic.model, [dynamic]

    def forward(self, state: Tensor) -> Tensor:
        """Return the logits as the model does. Shape: state [batch, frames, width]."""
        dynamic = self._dynamic[0]
        base, backbone = dynamic.base, dynamic.backbone
        call = Call(
            stack=dynamic.stack,
            base=base,
            backbone=backbone,
            plan=lambda: lambda *_: (torch.empty(0), None),  # never asked
            skip=dynamic.skip,
            answer=backbone.answer(base, state, None),
        )
        with activate(call):  # the encoder returns the answer and reads no input
            return self.model(**{self.model.main_input_name: state}).logits


class ExitHead(nn.Module):
    """The head of `k` kept layers, as the only one, so that all have the same names."""

    def __init__(self, exits: Any, k: int) -> None:
        super().__init__()
        self.exits: Any = copy.copy(exits)
        self.exits._modules = exits._modules | {"heads": nn.ModuleList([exits.heads[k - 1]])}

    def forward(self, state: Tensor) -> Tensor:
        """Return the logits. Shape: state [batch, frames, width]."""
        return self.exits(state, None, 1)


def export_policy(policy: Policy, state: dict[str, Any]) -> onnx.ModelProto:
    """Trace the choice of a policy, from an example of a state (as `to_onnx`)."""
    inputs = state | {"k": (torch.tensor([1, 2]), {0: DYNAMIC})}
    if policy.reads_threshold:
        inputs |= {"threshold": (torch.tensor(0.5), {})}
    graph = policy.graph()
    assert graph is not None  # refused by `check`
    return to_onnx(graph, inputs, ["mask"])


def _alike(
    modules: Iterable[nn.Module], inputs: dict[str, Any], outputs: Sequence[str]
) -> list[onnx.ModelProto]:
    """Trace modules that differ in their weights only, once, and put in the weights of each.

    Tracing takes a second or more, and a deep model has many layers.
    """
    made, traced = [], {}
    for module in modules:
        shapes = tuple((name, tuple(v.shape)) for name, v in module.state_dict().items())
        if shapes not in traced:
            traced[shapes] = to_onnx(module, inputs, outputs, optimize=False)
        model = copy.deepcopy(traced[shapes])
        values = module.state_dict()
        for initializer in model.graph.initializer:
            if initializer.name in values:
                value = values[initializer.name].detach().numpy()
                initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
        made.append(_optimized(model))
    return made


def to_onnx(
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, Any]]],
    outputs: Sequence[str],
    *,
    optimize: bool = True,
) -> onnx.ModelProto:
    """Trace a module.

    Args:
        inputs: by name, an example and its dynamic dimensions.
    """
    examples = tuple(example for example, _ in inputs.values())
    shapes: tuple[Any, ...] = tuple(dims for _, dims in inputs.values())
    if isinstance(module, Layer):  # *extras is one argument
        shapes = (shapes[0], shapes[1:]) if len(shapes) > 1 else shapes[:1]
    with _silence():
        program: Any = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    model = program.model_proto
    return _optimized(model) if optimize else model


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants, so that each weight is an initializer that a quantizer finds."""
    model = optimizer.optimize(model, input_size_limit=2**40, output_size_limit=2**40)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Silence what the exporter tells its developers, and no user can act on."""
    log = logging.getLogger("torch.onnx._internal.exporter")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
