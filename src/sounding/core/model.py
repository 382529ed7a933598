"""`wrap`, `unwrap`, `load` and the `DynamicModel` between them."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import atomic_directory, recover, sha256, write_json
from .backbones import Backbone, find_backbone
from .budget import Budget, kept_layers, mean_layers, threshold_for
from .decoder import DecoderStack, Decoding, asked_layers, find_decoder, untimed
from .executor import Call, LayerStack, Tree, activate, active_call, plain
from .exits import ExitHeads
from .heads import HEADS
from .plan import LocalGates, Plan, Progressive, UpFront, check_mask, gates_above
from .selector import (
    Gates,
    GateSelector,
    InputSelector,
    Selector,
    StaticSelector,
    selector_from_config,
)
from .skip import SkipPath

CONFIG = "sounding.json"
SELECTOR = "selector.safetensors"
SKIP = "skip.safetensors"  # of the adapters
EXITS = "exits.safetensors"
DECODER_SELECTOR = "decoder_selector.safetensors"
CLASSIFIERS = ("ForAudioClassification", "ForSequenceClassification")
CTC = "ForCTC"
FORMAT = 2


class Answers(NamedTuple):
    """What `DynamicModel.forward_masks` returns.

    Shape:
        logits: [masks, batch, ...].
        features: [batch, frames, width]: what a selector reads, the state after its first `after`
            layers.
        frame_mask: [batch, frames] bool, or None without padding.
    """

    logits: Tensor
    features: Tensor
    frame_mask: Tensor | None


class DynamicModel(nn.Module):
    """A `transformers` model whose encoder runs only the layers that a selector keeps.

    Made by `wrap`; holds the model itself, not a copy. Attributes that it lacks are those of the
    model (`config`, `device`, `main_input_name`, ...).

    Attributes:
        model: the wrapped model.
        selector: called with (features, frame mask, k), returns `Gates`.
        skip: what passes a skipped layer, a `SkipPath`.
        mean_budgets: thresholds for mean budgets, as [mean, threshold] with rising means; empty
            until they are calibrated. For a `GateSelector` of its gates, otherwise of the
            confidence at which an input stops.
        exits: heads of their own for budgets below full depth, or None.
        decoder_selector: reads the encoder's output and chooses decoder layers for `generate`;
            called as `selector` is. None for the first k.
    """

    def __init__(
        self,
        model: Any,
        selector: nn.Module,
        backbone: Backbone,
        base: nn.Module,
        skip: SkipPath,
        exits: ExitHeads | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.selector = selector
        self.backbone = backbone
        self.skip = skip
        self.exits = exits
        self.decoder_selector: nn.Module | None = None
        self.mean_budgets: list[tuple[float, float]] = []
        self.training = model.training
        selector.train(model.training)
        skip.train(model.training)
        if exits is not None:
            exits.train(model.training)
        object.__setattr__(self, "base", base)  # a part of `model`: not registered twice
        owner = backbone.owner(base)
        self._plain_layers = [owner.layers]  # in a list: not registered as a submodule
        owner.layers = LayerStack(owner.layers)  # type: ignore[arg-type]
        owner.layers.training = self._plain_layers[0].training  # type: ignore[union-attr]
        decoder = find_decoder(model, backbone.decoder)
        object.__setattr__(self, "_decoder", decoder)
        if decoder is not None:
            self._plain_layers.append(decoder.layers)
            decoder.layers = DecoderStack(decoder.layers)
            decoder.layers.training = decoder.training
        self._handles = backbone.install(base)
        self._handles.append(base.register_forward_hook(_full_hidden_states))
        self._handles.append(_Answering(base))
        self._layerdrop = _set_layerdrop(owner, 0.0)

    @property
    def stack(self) -> LayerStack:
        """The encoder's layers, under their own names."""
        return self.backbone.owner(self.base).layers  # type: ignore[return-value]

    @property
    def decoder_stack(self) -> DecoderStack | None:
        """The decoder's layers, under their own names; None without a decoder that drops layers."""
        decoder: Any = self.__dict__["_decoder"]
        return None if decoder is None else decoder.layers

    @property
    def num_layers(self) -> int:
        """L, the number of layers to choose from."""
        return len(self.stack)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicModel:
        raise TypeError("copy a dynamic model with save_pretrained and load, or unwrap it first")

    def forward(
        self, *args: Any, budget: Budget = None, mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The model's own forward pass with k layers per input.

        Args:
            budget: kept layers: an int, a fraction, a percentage, a list with one entry per
                input, or None for full depth. "mean:3" runs fewer layers for easy inputs and more
                for hard ones, about 3 in the mean, once `mean_budgets` are calibrated.
            mask: the layers to run, in place of a budget.
                Shape: [layers] or [batch, layers], bool, at least one True per input.
            attention_mask: as the model takes it; padding is on the right. For Whisper, over mel
                frames. Shape: [batch, samples or frames].
            args, kwargs: the rest of what the model takes.

        Returns:
            The model's output with `executed_layers`, bool [batch, layers]: what really ran.

        Raises:
            ValueError: a budget or a mask that is not allowed, padding on the left, or an option
                that needs every layer (`output_attentions`, `return_dict=False`).
        """
        kwargs = _by_name(self.model.forward, args, kwargs)
        if kwargs.keys() & {"decoder_budget", "decoder_mask"}:
            raise ValueError("decoder_budget and decoder_mask are options of generate")
        self._refuse(kwargs)
        inputs = kwargs.get(self.model.main_input_name)
        if inputs is None:
            raise ValueError(f"the model's input {self.model.main_input_name!r} is missing")
        call = self._call(inputs, budget, mask, kwargs)
        self._refuse_padding(call, inputs)
        call.keep_hidden_states = self._wants_hidden_states(kwargs) or bool(
            getattr(self.model.config, "use_weighted_layer_sum", False)
        )
        with activate(call):
            out = self.model(**kwargs)
        out["executed_layers"] = call.executed[-1] if call.executed else None
        if self.exits is not None and call.state is not None:
            frame_mask = call.frame_mask(call.state.shape[1])
            out["logits"] = self.exits.answer(
                call.state, frame_mask, out["executed_layers"], out["logits"]
            )
        return out

    def generate(
        self,
        *args: Any,
        budget: Budget = None,
        mask: Tensor | None = None,
        decoder_budget: Budget = None,
        decoder_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own `generate` with k encoder layers per input, and k of the decoder.

        With `return_dict_in_generate=True` the result has `executed_layers`, bool
        [batch, layers], or a list of these where the encoder ran more than once; and
        `executed_decoder_layers`, bool [batch, decoder layers]. Where inputs keep different
        decoder layers, it lacks the cache and `decoder_hidden_states`; otherwise these states are
        those of the layers that ran. Below full depth, and for a clip that is shorter than its
        window, Whisper writes no time stamps unless they are asked for.

        Args:
            budget, mask: as for a call.
            decoder_budget: kept layers of the decoder, for the whole generation of an input; as
                `budget`, but for a mean. `decoder_selector` chooses which, by default the first k.
            decoder_mask: the decoder's layers to run, in place of a budget.
                Shape: [decoder layers] or [batch, decoder layers], bool.
            args, kwargs: the rest of what `generate` takes.

        Raises:
            ValueError: as for a call; for Whisper also clips of mixed lengths below 30 s, and
                budgets per input where its encoder runs more than once (above 30 s); an option
                that needs every layer of the decoder, or the same ones for all inputs.
        """
        kwargs = _by_name(self.model.generate, args, kwargs)
        settings = kwargs.get("generation_config") or self.model.generation_config
        self._refuse({"output_attentions": settings.output_attentions, **kwargs})
        inputs = kwargs.get(self.model.main_input_name, kwargs.get("inputs"))
        if inputs is None:
            raise ValueError(f"the model's input {self.model.main_input_name!r} is missing")
        call = self._call(inputs, budget, mask, kwargs)
        self._refuse_padding(call, inputs)
        window = self.backbone.window(self.base)
        if window is not None and inputs.shape[-1] > window:
            call.lengths = None  # the model cuts it into pieces, each a full window
        call.keep_hidden_states = self._wants_hidden_states(
            {"output_hidden_states": settings.output_hidden_states, **kwargs}
        )
        stack = self.decoder_stack
        if stack is None:
            if decoder_budget is not None or decoder_mask is not None:
                raise ValueError(f"a {type(self.model).__name__} has no decoder that drops layers")
            with activate(call):
                out, ran = self.model.generate(**kwargs), None
        else:
            asked = asked_layers(decoder_budget, decoder_mask, layers=len(stack), batch=len(inputs))
            selector = None if decoder_mask is not None else self.decoder_selector
            short = window is not None and inputs.shape[-1] < window
            if short or not (asked.all() and self._keeps_all(budget, mask, len(inputs))):
                kwargs = untimed(self.model, kwargs)
            decoding = Decoding(self.model, stack, partial(self._encode, call), selector, short)
            with activate(call):
                out, ran = decoding(asked, kwargs)
        if isinstance(out, dict) and call.executed:
            out["executed_layers"] = call.executed[0] if len(call.executed) == 1 else call.executed
        if isinstance(out, dict) and ran is not None:
            out["executed_decoder_layers"] = ran
        return out

    def layer_outputs(
        self, batch: dict[str, Tensor], k: int | None = None, budget: Budget = None
    ) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Run the first `k` layers of the encoder (or those of a budget), and no head.

        Returns:
            What each of them puts out, [batch, frames, width], with the mask of its valid frames,
            bool [batch, frames] (None without padding); and `executed_layers`, bool
            [batch, layers].
        """
        inputs = batch[self.base.main_input_name]
        k = self.num_layers if k is None else k
        mask = torch.arange(self.num_layers) < k if budget is None else None
        call = self._call(inputs, budget, mask, batch)
        call.keep_hidden_states = True
        with activate(call):
            out = self.base(**batch)
        states = out.hidden_states[1 : k + 1]
        return [(state, call.frame_mask(state.shape[1])) for state in states], call.executed[-1]

    def forward_masks(self, batch: dict[str, Tensor], masks: Tensor) -> Answers:
        """The answers under each of several masks; layers of shared prefixes run once.

        With 6 layers all 63 masks take 63 layer runs in place of 192.

        Args:
            batch: as the model takes it; what follows the encoder must return `logits`.
            masks: no two alike. Shape: [masks, layers] bool.

        Raises:
            ValueError: masks that are not allowed, or of which none runs what the selector reads
                after; a model that has no logits, or needs all hidden states for them.
        """
        tree_masks = torch.stack(
            [check_mask(mask, layers=self.num_layers, batch=1)[0] for mask in masks]
        )
        if len(torch.unique(tree_masks, dim=0)) < len(tree_masks):
            raise ValueError("the masks must differ from one another")
        logits: list[Tensor | None] = [None] * len(tree_masks)

        def leaf(index: int, state: Tensor) -> None:
            logits[index] = self.exit_logits(batch, state, int(tree_masks[index].sum()))

        inputs = batch[self.model.main_input_name]
        call = self._call(inputs, None, None, batch)
        self._refuse_padding(call, inputs)
        call.tree = Tree(tree_masks, leaf, getattr(self.selector, "after", 0))
        with activate(call):
            self.base(**{n: v for n, v in batch.items() if n in self._base_inputs()})
        if call.tree.features is None:
            raise ValueError("some mask must run the layers before the selector")
        features = call.tree.features
        return Answers(torch.stack(logits), features, call.frame_mask(features.shape[1]))  # type: ignore[arg-type]

    def frame_mask(self, batch: dict[str, Tensor], frames: int) -> Tensor | None:
        """Which of the encoder's frames are no padding.

        Shape: -> [batch, frames] bool; None where all are valid.
        """
        call = self._call(batch[self.model.main_input_name], None, None, batch)
        return call.frame_mask(frames)

    def forward_plan(self, batch: dict[str, Tensor], plan: Plan) -> Any:
        """The model's own forward pass with a plan of yours, for training methods.

        Args:
            plan: see `core.plan`.
        """
        call = self._call(batch[self.model.main_input_name], None, None, batch)
        call.plan = lambda: plan
        with activate(call):
            return self.model(**batch)

    def exit_logits(
        self, batch: dict[str, Tensor], state: Tensor, k: int, rows: Tensor | None = None
    ) -> Tensor:
        """What a head answers to the final state of an encoder in progress.

        Args:
            batch: of the call in progress.
            state: behind the last layer, of k layers that ran and others that were skipped.
                Shape: [batch, frames, width], or [len(rows), ...] for the inputs `rows`.
        """
        call = active_call()
        assert call is not None  # only called by plans and trees
        if getattr(self.model.config, "use_weighted_layer_sum", False):
            raise ValueError(
                "use_weighted_layer_sum answers from all hidden states: give a budget or a mask"
            )
        frame_mask = call.frame_mask(state.shape[1])
        if rows is not None:
            size = len(batch[self.model.main_input_name])
            frame_mask = None if frame_mask is None else frame_mask[rows]
            batch = {n: v[rows] if len(v) == size else v for n, v in batch.items()}
        if self.exits is not None and k < self.num_layers:
            return self.exits(state, frame_mask, k)
        call.answer = self.backbone.answer(self.base, state, frame_mask)
        try:
            out = self.model(**batch)
        finally:
            call.answer = None
        if "logits" not in out:
            raise ValueError(f"a {type(self.model).__name__} has no head that answers with logits")
        return out.logits

    def _base_inputs(self) -> set[str]:
        return set(inspect.signature(type(self.base).forward).parameters)

    def _encode(self, call: Call, kwargs: dict[str, Any]) -> tuple[Any, Tensor | None]:
        """What the encoder makes of the inputs of `generate`, and the mask of its valid frames."""
        main = self.model.main_input_name
        inputs: Any = kwargs.get(main, kwargs.get("inputs"))
        window = self.backbone.window(self.base)
        if window is not None and inputs.shape[-1] > window:
            raise ValueError(
                f"above {window / 100:g} s the encoder runs more than once: give one decoder_mask, "
                "or one decoder_budget without a decoder_selector, for all inputs"
            )
        needs_window = {  # Whisper then comes back to the audio, which is encoded once here
            "several temperatures": isinstance(kwargs.get("temperature"), (list, tuple)),
            "num_return_sequences": (kwargs.get("num_return_sequences") or 1) > 1,
            "return_timestamps": bool(kwargs.get("return_timestamps")),
        }
        refused = [name for name, asked in needs_window.items() if asked]
        if window is not None and refused:
            raise ValueError(
                f"{' and '.join(refused)} need clips that are padded to the 30 s window, and the "
                "same decoder layers for all"
            )
        batch = {main: inputs, "attention_mask": kwargs.get("attention_mask")}
        with torch.no_grad():
            encoded = self.base(**{name: v for name, v in batch.items() if v is not None})
        return encoded, call.frame_mask(encoded.last_hidden_state.shape[1])

    def _has_decoder(self) -> bool:
        return any(name.endswith("decoder") for name, _ in self.model.named_modules())

    def _wants_hidden_states(self, kwargs: dict[str, Any]) -> bool:
        return bool(kwargs.get("output_hidden_states", self.model.config.output_hidden_states))

    def _refuse_padding(self, call: Call, inputs: Tensor) -> None:
        """Whisper's decoder attends to padding: an answer would depend on its neighbours."""
        window = self.backbone.window(self.base)
        if window is None or call.lengths is None or inputs.shape[-1] >= window:
            return
        if self._has_decoder() and bool((call.lengths < inputs.shape[-1]).any()):
            raise ValueError(
                "Whisper's decoder cannot leave padding out: give it clips of one length, or all "
                "padded to the 30 s window"
            )

    def save_pretrained(self, directory: str | Path, *, companions: Sequence[Any] = ()) -> None:
        """Save the model (as `transformers` does) and the selector, all or nothing.

        The directory also loads with the plain `from_pretrained` of the model. Other files in it
        are kept.

        Args:
            companions: more to `save_pretrained` beside the model: a processor, a tokenizer.

        Raises:
            ValueError: a model or a selector that `load` could not build again.
        """
        if _model_class(type(self.model).__name__) is not type(self.model):
            raise ValueError(
                f"load cannot build a {type(self.model).__name__} again, as transformers has none: "
                "save dynamic.model by its own means, and the state_dict of dynamic.selector"
            )
        selector: Any = self.selector
        chooser: Any = self.decoder_selector
        for part in (selector, chooser):
            if not isinstance(part, Selector | None):
                raise ValueError(
                    f"load cannot build a {type(part).__name__} again: save the parts with "
                    "dynamic.model.save_pretrained(...) and the state_dict of the selectors"
                )
        with atomic_directory(directory, keep_others=True) as temporary:
            with _layerdrop_restored(self):
                self.model.save_pretrained(temporary)
            for companion in companions:
                companion.save_pretrained(temporary)
            parts = {
                SELECTOR: self.selector,
                SKIP: self.skip,
                EXITS: self.exits,
                DECODER_SELECTOR: chooser,
            }
            for name, module in parts.items():
                values = {} if module is None else module.state_dict()
                state = {key: value.contiguous() for key, value in values.items()}
                if state or name == SELECTOR:
                    save_file(state, temporary / name)
            weights = sorted(temporary.glob("*.safetensors"))
            write_json(
                temporary / CONFIG,
                {
                    "format": FORMAT,
                    "model": type(self.model).__name__,
                    "selector": selector.config(),
                    "skip": self.skip.kind,
                    "exits": None if self.exits is None else self.exits.config(),
                    "decoder_selector": None if chooser is None else chooser.config(),
                    "mean_budgets": [list(pair) for pair in self.mean_budgets],
                    "layers": self.num_layers,
                    "sha256": {path.name: sha256(path) for path in weights},
                    "versions": {name: version(name) for name in ("torch", "transformers")},
                },
            )

    def _call(
        self, inputs: Tensor, budget: Budget, mask: Tensor | None, batch: dict[str, Any]
    ) -> Call:
        if mask is not None and budget is not None:
            raise ValueError("give a budget or a mask, not both")
        mean = mean_layers(budget, layers=self.num_layers)
        if mean is not None:
            plan = self._mean_plan(self._threshold(mean), batch)
        else:
            plan = self._exact_plan(inputs.shape[0], budget, mask)
        return Call(
            stack=self.stack,
            base=self.base,
            backbone=self.backbone,
            plan=plan,
            skip=self.skip,
            lengths=_lengths(
                batch.get("attention_mask"), inputs.shape[0], inputs.shape[self.backbone.time]
            ),
        )

    def _keeps_all(self, budget: Budget, mask: Tensor | None, batch: int) -> bool:
        if mask is not None:
            return bool(mask.all())
        if mean_layers(budget, layers=self.num_layers) is not None:
            return False
        return min(kept_layers(budget, layers=self.num_layers, batch=batch)) == self.num_layers

    def _exact_plan(self, batch: int, budget: Budget, mask: Tensor | None) -> Callable[[], Plan]:
        if mask is None:
            wanted = torch.tensor(kept_layers(budget, layers=self.num_layers, batch=batch))
        else:
            wanted = check_mask(mask, layers=self.num_layers, batch=batch)

        def choose(features: Tensor, frame_mask: Tensor | None) -> Gates:
            rows = features.shape[0]
            asked = wanted
            if rows != batch:  # Whisper runs its encoder again on a part of a batch
                if not bool((asked == asked[0]).all()):
                    raise ValueError(
                        "budgets and masks per input need an encoder that runs once per input: "
                        "give one for all"
                    )
                asked = asked[:1].expand(rows, *asked.shape[1:])
            if mask is not None:
                return Gates(asked)
            if bool((asked == self.num_layers).all()):  # full depth: there is nothing to choose
                return Gates(torch.ones(rows, self.num_layers, dtype=torch.bool))
            return self.selector(features, frame_mask, asked.to(features.device))

        if mask is not None or bool((wanted == self.num_layers).all()):
            return lambda: UpFront(choose)
        selector = self.selector
        if isinstance(selector, GateSelector) and selector.scope == "local":
            return lambda: LocalGates(selector, wanted)
        return lambda: UpFront(choose, getattr(selector, "after", 0), wanted)

    def _mean_plan(self, threshold: float, batch: dict[str, Any]) -> Callable[[], Plan]:
        selector = self.selector
        if isinstance(selector, GateSelector):
            return lambda: gates_above(selector, threshold)
        if self._has_decoder():
            raise ValueError(
                "a mean budget stops by the answer after each layer, which a decoder does not give "
                "there: give a budget of kept layers"
            )
        tensors = {n: v for n, v in batch.items() if isinstance(v, Tensor) and n != "labels"}

        def readout(depth: int, rows: Tensor, state: Tensor) -> Tensor:
            for index in range(depth, self.num_layers):  # what stands in for the others
                state = self.skip(index, self.stack.layers[index], state)
            return self.exit_logits(tensors, state, depth, rows)

        return lambda: Progressive(readout, threshold)

    def _threshold(self, mean: float) -> float:
        if not self.mean_budgets:
            raise ValueError(
                "this model has no calibrated mean budgets: train it with validation clips, or "
                "set dynamic.mean_budgets"
            )
        return threshold_for(mean, self.mean_budgets)

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        config = self.model.config
        if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
            raise ValueError(
                "output_attentions needs every layer: unwrap the model, or call dynamic.model"
            )
        if kwargs.get("return_dict", getattr(config, "return_dict", True)) is False:
            raise ValueError("return_dict=False has no place for executed_layers: leave it out")
        wanted = kwargs.get("output_hidden_states")
        if wanted is not None and not isinstance(wanted, bool):
            raise ValueError(f"output_hidden_states is True or False here, not {wanted!r}")


def wrap(
    model: Any,
    selector: str | nn.Module = "input",
    *,
    skip: str = "identity",
    exits: bool = False,
) -> DynamicModel:
    """Make a `transformers` speech model choose its own layers; `unwrap` undoes it.

    The dynamic model is in training or evaluation mode as `model` is.

    Args:
        model: any supported model, with or without a task head.
        selector: "input" (IDLD-style: reads what enters layer 0), "first" (the first k layers),
            or a module called as `InputSelector` is.
        skip: "identity"; "norm": a skipped layer still applies its final norm (LDASR), for
            backbones whose layers end in one; or "adapter": a small learned map in its place.

        exits: give a classifier or a CTC model a new head for each number of kept layers below
            full depth, as early exit has; to be trained.

    Raises:
        ValueError: an unsupported model (the text lists the supported ones), one that is wrapped
            already, a skip path that its layers do not have, or exits for another kind of model.
    """
    if isinstance(model, DynamicModel) or _has_stack(model):
        raise ValueError("the model is wrapped already: unwrap it first")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise ValueError(
            "wrap the model first and compile its layers after: "
            "for layer in dynamic.stack.layers: layer.compile()"
        )
    backbone, found = find_backbone(model)
    base: Any = found
    layers: Any = backbone.owner(base).layers
    width = base.config.hidden_size
    path = SkipPath(skip, backbone, [plain(layer) for layer in layers], width)
    if isinstance(selector, str):
        selector = _new_selector(selector, width, len(layers))
    needed = exits and len(layers) > 1  # one layer has no budget below full depth
    heads = _new_exits(model, len(layers), width) if needed else None
    device = next(model.parameters()).device
    for part in (selector, path, heads):
        if part is not None:
            part.to(device)
    return DynamicModel(model, selector, backbone, base, path, heads)


def unwrap(dynamic: DynamicModel) -> Any:
    """The original model back, as it was before `wrap`; the dynamic model is of no more use."""
    if not isinstance(dynamic, DynamicModel):
        raise TypeError(f"unwrap takes a DynamicModel, not {type(dynamic).__name__}")
    owner = dynamic.backbone.owner(dynamic.base)
    if not isinstance(owner.layers, LayerStack):
        raise ValueError("this model is unwrapped already")
    for handle in reversed(dynamic._handles):
        handle.remove()
    owner.layers = dynamic._plain_layers[0]
    if dynamic.decoder_stack is not None:
        dynamic._decoder.layers = dynamic._plain_layers[1]
    _set_layerdrop(owner, dynamic._layerdrop)
    return dynamic.model


def load(directory: str | Path, **kwargs: Any) -> DynamicModel:
    """Load what `save_pretrained` saved; `kwargs` go to the model's `from_pretrained`.

    Raises:
        ValueError: not such a directory, a truncated or changed file, or an unknown model class.
    """
    directory = Path(directory)
    recover(directory)
    config = _read_config(directory)
    for name, expected in config["sha256"].items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{directory}: {name} is missing")
        if sha256(path) != expected:
            raise ValueError(
                f"{path} is not the file that was saved (its sha256 differs): it is damaged or "
                "was changed; restore it, or train again"
            )
    model_class: Any = _model_class(str(config["model"]))
    known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not known:
        raise ValueError(f"{directory / CONFIG}: {config['model']!r} is not a transformers model")
    try:
        model, info = model_class.from_pretrained(
            directory, **{**kwargs, "use_safetensors": True, "output_loading_info": True}
        )
        selector = selector_from_config(config["selector"])
        selector.load_state_dict(load_file(directory / SELECTOR))
        dynamic = wrap(model, selector, skip=config["skip"], exits=bool(config["exits"])).eval()
        if dynamic.exits is not None:
            dynamic.exits.load_state_dict(load_file(directory / EXITS))
        if dynamic.skip.state_dict():
            dynamic.skip.load_state_dict(load_file(directory / SKIP))
        if config.get("decoder_selector") is not None:  # directories of before have none
            chooser = selector_from_config(config["decoder_selector"])
            chooser.load_state_dict(load_file(directory / DECODER_SELECTOR))
            dynamic.decoder_selector = chooser.to(model.device).eval()
        dynamic.mean_budgets = _mean_budgets(config["mean_budgets"])
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{directory} cannot be loaded: {error}") from None
    if info["missing_keys"] or dynamic.num_layers != config["layers"]:
        raise ValueError(
            f"{directory}: config.json does not fit the weights: it is damaged or was changed"
        )
    return dynamic


def _model_class(name: str) -> Any:
    """Of `transformers`, or ours; None where there is none."""
    return HEADS.get(name) or getattr(transformers, name, None)


def _read_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).is_file():
        raise ValueError(
            f"{directory} has no {CONFIG}: it was not made by save_pretrained of a dynamic model"
        )
    config = _read_object(directory / CONFIG)
    _read_object(directory / "config.json")  # without it, transformers would take a default one
    needed = {"format", "model", "selector", "skip", "exits", "mean_budgets", "layers", "sha256"}
    if not needed <= config.keys():
        raise ValueError(f"{directory / CONFIG} lacks some of {sorted(needed)}: it is damaged")
    if not isinstance(config["sha256"], dict) or SELECTOR not in config["sha256"]:
        raise ValueError(f"{directory / CONFIG} does not list its weight files: it is damaged")
    if config["skip"] == "adapter" and SKIP not in config["sha256"]:
        raise ValueError(f"{directory / CONFIG} does not list {SKIP}: it is damaged")
    chooser = config.get("decoder_selector")
    if not isinstance(config["selector"], dict) or not isinstance(chooser, dict | None):
        raise ValueError(f"{directory / CONFIG} does not describe a selector: it is damaged")
    if chooser is not None and DECODER_SELECTOR not in config["sha256"]:
        raise ValueError(f"{directory / CONFIG} does not list {DECODER_SELECTOR}: it is damaged")
    if config["format"] != FORMAT:
        raise ValueError(f"{directory / CONFIG} has format {config['format']}, not {FORMAT}")
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:  # broken UTF-8 or JSON is a ValueError
        raise ValueError(f"{path} cannot be read: {error}") from None
    return value


def _mean_budgets(pairs: Any) -> list[tuple[float, float]]:
    """The thresholds of a description that was saved, or a `ValueError`."""
    made = [(float(mean), float(threshold)) for mean, threshold in pairs]
    means = [mean for mean, _ in made]
    finite = all(math.isfinite(value) for pair in pairs for value in pair)  # and no text
    if not finite or means != sorted(set(means)):
        raise ValueError("its mean budgets are not [mean, threshold] by rising mean")
    return made


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    if not args:
        return kwargs
    names = list(inspect.signature(function).parameters)
    named = dict(zip(names, args, strict=False))
    if len(args) > len(names) or named.keys() & kwargs.keys():
        raise TypeError(f"too many or repeated arguments; the model takes {', '.join(names)}")
    return named | kwargs


class _Answering:
    """Makes an encoder return the `answer` of the call in progress, if it has one."""

    def __init__(self, base: Any) -> None:
        self.base, self.before = base, base.__dict__.get("forward")
        plain_forward = base.forward

        @wraps(plain_forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = active_call()
            if call is not None and call.base is base and call.answer is not None:
                return call.answer
            return plain_forward(*args, **kwargs)

        base.forward = forward

    def remove(self) -> None:
        """Give the encoder the `forward` back that it had."""
        del self.base.forward
        if self.before is not None:
            self.base.forward = self.before


def _new_exits(model: Any, layers: int, width: int) -> ExitHeads:
    name = type(model).__name__
    if name.endswith(CLASSIFIERS):
        return ExitHeads(layers, width, model.config.num_labels)
    if name.endswith(CTC):
        return ExitHeads(layers, width, model.config.vocab_size, pooled=False)
    raise ValueError(f"exits are heads of a classifier or for CTC, not of a {name}")


def _new_selector(kind: str, width: int, layers: int) -> nn.Module:
    if kind == "input":
        return InputSelector(width, layers, hidden=selector_width(width))
    if kind == "first":
        return StaticSelector.first(layers)
    raise ValueError(f'selector is "input", "first" or a module, not {kind!r}')


def selector_width(width: int) -> int:
    """Of a selector's hidden layer: far below 0.5 % of the MACs of one second, for any encoder."""
    return max(4, min(64, width // 8))


def _has_stack(model: nn.Module) -> bool:
    return any(isinstance(module, LayerStack) for module in model.modules())


def _full_hidden_states(base: nn.Module, args: Any, out: Any) -> Any:
    """Give `hidden_states` its fixed length: a skipped layer has what passed it."""
    call = active_call()
    if call is None or call.base is not base or not call.hidden_states:
        return out
    states = list(call.hidden_states)
    if call.backbone.ties_last:
        states[-1] = out.last_hidden_state
    out["hidden_states"] = tuple(states)
    return out


def _lengths(attention_mask: Tensor | None, batch: int, positions: int) -> Tensor | None:
    """Valid positions per input. Shape: [batch, positions] -> [batch]; None without padding."""
    if attention_mask is None:
        return None
    if list(attention_mask.shape) != [batch, positions]:
        raise ValueError(
            f"the attention mask is [batch, positions] of the input, {[batch, positions]}; got "
            f"{list(attention_mask.shape)}"
        )
    lengths = attention_mask.long().sum(-1)
    right = torch.arange(attention_mask.shape[-1], device=lengths.device) < lengths[:, None]
    if not torch.equal(right, attention_mask.bool()):
        raise ValueError("the attention mask must mark padding on the right, with 1 for valid")
    if bool((lengths == 0).any()):
        raise ValueError("an input of the batch has no valid position in its attention mask")
    return lengths


def _set_layerdrop(owner: Any, rate: float | None) -> float | None:
    """Turn the encoder's own random dropping off (or back on): two would drop layers at once."""
    holder = owner if hasattr(owner, "layerdrop") else getattr(owner, "config", owner)
    before = getattr(holder, "layerdrop", None)
    if before is not None and rate is not None:
        holder.layerdrop = rate
    return before


@contextmanager
def _layerdrop_restored(dynamic: DynamicModel) -> Iterator[None]:
    owner = dynamic.backbone.owner(dynamic.base)
    _set_layerdrop(owner, dynamic._layerdrop)
    try:
        yield
    finally:
        _set_layerdrop(owner, 0.0)
