"""Parts joined into one graph, in which each layer sits in an `If`.

Weights are initializers of the main graph, shared by all branches that need them. Names of nodes
begin with their part ("layer_3/", "head_2/"), so that a profile of ONNX Runtime says what ran.

In the one-file graph, with `run_i` whether layer i runs:

  mask      = If(k < layers) selector else all      (none, while a mean budget is on)
  run_i     = mask_i, or going_i under a mean budget
  going_i   = If(going_{i-1}) confidence of the answer after i layers < threshold else False
  state_i+1 = If(run_i) layer_i(state_i) else skip_i(state_i)
  logits    = a nested If over the number of layers that ran, one head in each branch
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .parts import OPSET, Parts

IR_VERSION = 10
FEATURES, BUDGET, THRESHOLD = "features", "k", "threshold"
LOGITS, EXECUTED = "logits", "executed_layers"


class Graph:
    """Nodes in order, and the weights that they need."""

    def __init__(self) -> None:
        self.weights: dict[str, TensorProto] = {}
        self.opsets: dict[str, int] = {"": OPSET}

    def constant(self, name: str, value: object, dtype: type = np.int64) -> str:
        """Add a constant to the main graph, and return its name."""
        self.weights[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def part(
        self,
        model: onnx.ModelProto,
        name: str,
        inputs: dict[str, str],
        outputs: dict[str, str],
        scope: str = "",
    ) -> list[NodeProto]:
        """Return the nodes of a part, with its inputs and outputs under the names of this graph.

        Args:
            name: of the part, before the names of its weights.
            scope: before the names of its values, where the part stands more than once.
        """
        own = {one.name for one in model.graph.initializer}
        renamed = {"": ""} | inputs | outputs
        passed = [o.name for o in model.graph.output if o.name in own or o.name in inputs]
        for initializer in model.graph.initializer:
            key = renamed[initializer.name] = f"{name}/{initializer.name}"
            if key not in self.weights:
                self.weights[key] = TensorProto()
                self.weights[key].CopyFrom(initializer)
                self.weights[key].name = key
        for opset in model.opset_import:
            self.opsets[opset.domain] = max(self.opsets.get(opset.domain, 0), opset.version)
        prefix = f"{scope}{name}/"
        made = []
        for original in model.graph.node:
            node = NodeProto()
            node.CopyFrom(original)
            node.name = prefix + (original.name or original.output[0])
            node.input[:] = [renamed.get(i, prefix + i) for i in original.input]
            node.output[:] = [renamed.get(o, prefix + o) for o in original.output]
            made.append(node)
        for output in passed:  # an output that no node makes
            source = inputs.get(output, renamed[output])
            made.append(helper.make_node("Identity", [source], [outputs[output]]))
        return made

    def model(
        self,
        nodes: Sequence[NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Return the graph as a model."""
        graph = helper.make_graph(
            list(nodes), "sounding", list(inputs), list(outputs), list(self.weights.values())
        )
        opsets = [helper.make_opsetid(*one) for one in self.opsets.items()]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="sounding"
        )


def choose(condition: str, output: str, then: list[NodeProto], other: list[NodeProto]) -> NodeProto:
    """Make an `If`; both branches make `output` under the names that `branch_output` gives."""
    branches = {
        name: helper.make_graph(
            nodes, f"{output}/{name}", [], [onnx.ValueInfoProto(name=branch_output(output, name))]
        )
        for name, nodes in (("then", then), ("else", other))
    }
    return helper.make_node(
        "If",
        [condition],
        [output],
        name=f"if/{output}",
        then_branch=branches["then"],
        else_branch=branches["else"],
    )


def branch_output(output: str, branch: str) -> str:
    """Return what a branch ("then" or "else") of an `If` calls its output."""
    return f"{output}/{branch}/out"


def dynamic_graph(parts: Parts, *, mean: bool, several: bool = False) -> onnx.ModelProto:
    """Make the graph that chooses its own layers.

    Args:
        mean: whether it has an input `threshold` for mean budgets; infinite means off.
        several: whether an input may have several classes, each a yes or no by itself.
    """
    graph, layers = Graph(), len(parts.layers)
    stops = (
        mean and not parts.reads_threshold
    )  # by the confidence of its answers, without the selector
    nodes = _front(graph, parts) + _modes(graph, layers, mean=mean, stops=stops)
    for index in range(layers):
        if index == parts.after:
            nodes.append(_mask(graph, parts, mean=mean, stops=stops))
        nodes += _whether(graph, parts, index, stops=stops, several=several)
        nodes.append(_layer(graph, parts, index))
    nodes += _executed(graph, layers)
    nodes += _heads(graph, parts, f"state_{layers}")
    inputs = [_features(parts), helper.make_tensor_value_info(BUDGET, TensorProto.INT64, [])]
    if mean:
        inputs.append(helper.make_tensor_value_info(THRESHOLD, TensorProto.FLOAT, []))
    return graph.model(nodes, inputs, _outputs(parts))


def static_graph(parts: Parts, mask: Sequence[bool]) -> onnx.ModelProto:
    """Make the plain graph of one mask: no `If`, and no layer or head that it does not need."""
    graph = Graph()
    nodes = _front(graph, parts)
    for index, kept in enumerate(mask):
        nodes += (_run if kept else _pass)(graph, parts, index, f"state_{index + 1}")
    head = parts.head(sum(mask))
    name = head_name(parts, sum(mask))
    nodes += graph.part(head, name, {"state": f"state_{len(mask)}"}, {"logits": LOGITS})
    executed = graph.constant("executed", list(mask), bool)
    nodes.append(helper.make_node("Identity", [executed], [EXECUTED], name=EXECUTED))
    return graph.model(nodes, [_features(parts)], _outputs(parts))


def head_name(parts: Parts, k: int) -> str:
    """Return the name of the head after `k` layers: "head_2", or "head" for the model's own."""
    return f"head_{k}" if k in parts.heads and k < len(parts.layers) else "head"


def _front(graph: Graph, parts: Parts) -> list[NodeProto]:
    names = {f"extra_{index}": f"extra_{index}" for index in range(parts.extras)}
    return graph.part(parts.front, "front", {"features": FEATURES}, {"state": "state_0"} | names)


def _modes(graph: Graph, layers: int, *, mean: bool, stops: bool) -> list[NodeProto]:
    """Compute whether the selector runs ("chooses"), and which kind of budget there is."""
    full = graph.constant("layers", layers)
    if not mean:
        return [helper.make_node("Less", [BUDGET, full], ["chooses"], name="chooses")]
    infinity = graph.constant("infinity", math.inf, np.float32)
    nodes = [
        helper.make_node("Less", [BUDGET, full], ["below_full"], name="below_full"),
        helper.make_node("Less", [THRESHOLD, infinity], ["mean"], name="mean"),
        helper.make_node("Not", ["mean"], ["exact"], name="exact"),
    ]
    both = ("And", "exact") if stops else ("Or", "mean")  # gates read the threshold in place of k
    nodes.append(helper.make_node(both[0], ["below_full", both[1]], ["chooses"], name="chooses"))
    return nodes


def _mask(graph: Graph, parts: Parts, *, mean: bool, stops: bool) -> NodeProto:
    """Compute the layers to keep.

    They are those of the selector, or all of them, or none of them while answers decide.
    """
    infinity = graph.constant("infinity", math.inf, np.float32)
    inputs = {
        "state": f"state_{parts.after}",
        "k": "selector/k",
        "threshold": THRESHOLD if mean else infinity,  # read by gates only
    }
    one = graph.constant("one", [1])
    shape = graph.constant("mask/shape", [len(parts.layers)])
    chosen, otherwise = branch_output("mask", "then"), branch_output("mask", "else")
    then = [
        helper.make_node("Reshape", [BUDGET, one], ["selector/k"], name="selector/k"),
        *graph.part(parts.selector, "selector", inputs, {"mask": "selector/mask"}),
        helper.make_node("Reshape", ["selector/mask", shape], [chosen], name="selector/shape"),
    ]
    rest = "exact" if stops else graph.constant("true", True, bool)
    other = [helper.make_node("Expand", [rest, shape], [otherwise], name="mask/rest")]
    return choose("chooses", "mask", then, other)


def _whether(
    graph: Graph, parts: Parts, index: int, *, stops: bool, several: bool
) -> list[NodeProto]:
    """Compute whether layer `index` runs: by the mask, before the mask by k, by earlier answers."""
    run = f"run_{index}"
    exact = f"{run}/exact" if stops else run
    at = graph.constant(f"index_{index}", index)
    if index >= parts.after:
        nodes = [helper.make_node("Gather", ["mask", at], [exact], name=exact, axis=0)]
    elif stops:
        asked = f"{run}/asked"
        nodes = [
            helper.make_node("Greater", [BUDGET, at], [asked], name=asked),
            helper.make_node("And", [asked, "exact"], [exact], name=exact),
        ]
    else:
        nodes = [helper.make_node("Greater", [BUDGET, at], [exact], name=exact)]
    if not stops:
        return nodes
    if index > 0:
        before = "mean" if index == 1 else f"going_{index - 1}"
        nodes.append(_going(graph, parts, index, before, several))
    going = "mean" if index == 0 else f"going_{index}"
    return [*nodes, helper.make_node("Or", [exact, going], [run], name=run)]


def _layer(graph: Graph, parts: Parts, index: int) -> NodeProto:
    output = f"state_{index + 1}"
    return choose(
        f"run_{index}",
        output,
        _run(graph, parts, index, branch_output(output, "then")),
        _pass(graph, parts, index, branch_output(output, "else")),
    )


def _run(graph: Graph, parts: Parts, index: int, output: str) -> list[NodeProto]:
    inputs = {f"extra_{i}": f"extra_{i}" for i in range(parts.extras)}
    inputs["state"] = f"state_{index}"
    return graph.part(parts.layers[index], f"layer_{index}", inputs, {"out": output})


def _pass(
    graph: Graph, parts: Parts, index: int, output: str, state: str = "", scope: str = ""
) -> list[NodeProto]:
    """Compute what comes out where layer `index` would have been."""
    state = state or f"state_{index}"
    if not parts.skips:
        return [helper.make_node("Identity", [state], [output], name=f"{scope}skip_{index}")]
    return graph.part(parts.skips[index], f"skip_{index}", {"state": state}, {"out": output}, scope)


def _going(graph: Graph, parts: Parts, index: int, before: str, several: bool) -> NodeProto:
    """Compute whether an input goes on after `index` layers, under a mean budget."""
    output, scope = f"going_{index}", f"stop_{index}/"
    nodes: list[NodeProto] = []
    state = f"state_{index}"
    for later in range(index, len(parts.layers) if parts.skips else index):
        nodes += _pass(graph, parts, later, f"{scope}state_{later + 1}", state, scope)
        state = f"{scope}state_{later + 1}"
    head, name = parts.head(index), head_name(parts, index)
    logits = f"{scope}logits"
    nodes += graph.part(head, name, {"state": state}, {"logits": logits}, scope)
    probabilities, highest, sure = (f"{scope}{n}" for n in ("probabilities", "highest", "sure"))
    last = graph.constant("last_axis", [-1])
    axis: dict[str, Any] = {} if several else {"axis": -1}
    kind = "Sigmoid" if several else "Softmax"
    nodes += [
        helper.make_node(kind, [logits], [probabilities], name=probabilities, **axis),
        helper.make_node("ReduceMax", [probabilities, last], [highest], name=highest, keepdims=0),
        # over the frames, where there is an answer a frame
        helper.make_node("ReduceMean", [highest], [sure], name=sure, keepdims=0),
        helper.make_node(
            "Less", [sure, THRESHOLD], [branch_output(output, "then")], name=f"{scope}goes_on"
        ),
    ]
    false = graph.constant("false", False, bool)
    stopped = helper.make_node(
        "Identity", [false], [branch_output(output, "else")], name=f"{scope}stopped"
    )
    return choose(before, output, nodes, [stopped])


def _executed(graph: Graph, layers: int) -> list[NodeProto]:
    """Compute which layers ran, [layers], and how many."""
    zero = graph.constant("zero", [0])
    runs = [f"run_{index}" for index in range(layers)]
    vectors = [f"{run}/vector" for run in runs]
    nodes = [
        helper.make_node("Unsqueeze", [run, zero], [vector], name=vector)
        for run, vector in zip(runs, vectors, strict=True)
    ]
    return [
        *nodes,
        helper.make_node("Concat", vectors, [EXECUTED], name=EXECUTED, axis=0),
        helper.make_node("Cast", [EXECUTED], ["ran"], name="ran", to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ran"], ["kept"], name="kept", keepdims=0),
    ]


def _heads(graph: Graph, parts: Parts, state: str) -> list[NodeProto]:
    """Compute the answer by the head of as many layers as ran."""
    layers = len(parts.layers)
    own = [k for k in range(1, layers) if k in parts.heads]

    def nodes(k: int, output: str) -> list[NodeProto]:
        return graph.part(parts.head(k), head_name(parts, k), {"state": state}, {"logits": output})

    def nested(left: list[int], output: str) -> list[NodeProto]:
        if not left:
            return nodes(layers, output)
        k, *rest = left
        asked = f"{output}/is_{k}"
        at = graph.constant(f"index_{k}", k)
        then = nodes(k, branch_output(output, "then"))
        other = nested(rest, branch_output(output, "else"))
        return [
            helper.make_node("Equal", ["kept", at], [asked], name=asked),
            choose(asked, output, then, other),
        ]

    return nested(own, LOGITS)


def _features(parts: Parts) -> onnx.ValueInfoProto:
    """Describe the features of one clip: the batch is 1."""
    made = onnx.ValueInfoProto()
    made.CopyFrom(parts.front.graph.input[0])
    made.name = FEATURES
    dims = made.type.tensor_type.shape.dim
    dims[0].ClearField("dim_param")
    dims[0].dim_value = 1
    for dim in dims[1:]:
        if dim.dim_param:
            dim.dim_param = "time"
    return made


def _outputs(parts: Parts) -> list[onnx.ValueInfoProto]:
    logits = onnx.ValueInfoProto()
    logits.CopyFrom(parts.own_head.graph.output[0])
    logits.name = LOGITS
    dims = logits.type.tensor_type.shape.dim
    dims[0].ClearField("dim_param")
    dims[0].dim_value = 1
    if len(dims) == 3:
        dims[1].dim_param = "frames"
    executed = helper.make_tensor_value_info(EXECUTED, TensorProto.BOOL, [len(parts.layers)])
    return [logits, executed]
