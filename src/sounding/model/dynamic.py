"""`wrap`, `unwrap`, `load` and the `DynamicModel` between them."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from ..budget import Budget, kept_layers, mean_layers, threshold_for
from ..files import atomic_directory
from ..policies.plans import (
    LocalGates,
    Plan,
    Progressive,
    UpFront,
    check_mask,
    confidence,
    gates_above,
)
from ..policies.selectors import (
    Gates,
    GateSelector,
    InputSelector,
    Selector,
    StaticSelector,
    selector_from_config,
)
from .backbones import Backbone, find_backbone
from .derive import Override, original_class, why_unpicklable
from .executor import Call, EncoderInCall, LayerStack, Tree, activate, active_call, uncompiled
from .exits import ExitHeads
from .generate import DecoderStack, Decoding, asked_layers, find_decoder, untimed
from .heads import HEADS
from .io import (
    CONFIG,
    DECODER_SELECTOR,
    EXITS,
    SELECTOR,
    SKIP,
    Description,
    load_part,
    read_description,
    write_parts,
)
from .losses import classification_loss, ctc_loss
from .outputs import FIELDS, add_layers
from .padding import valid_frames
from .skip import SkipPath

CLASSIFIERS = ("ForAudioClassification", "ForSequenceClassification")
CTC = "ForCTC"
IGNORED = "keys_to_ignore_at_inference"  # of a configuration, by `transformers.Trainer`


class UntrainedWarning(UserWarning):
    """A model that was never trained below full depth is asked to leave layers out."""


class MaskLogits(NamedTuple):
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
        trained: whether the model has ever been trained below full depth; set by the first such
            step, and saved. Without it, a budget below full depth warns once.
        decoder_trained: the same of the decoder's layers; for you to set.
    """

    trained = False
    decoder_trained = False

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
        self._handles = [*backbone.install(base), Override(base, EncoderInCall)]
        self._not_predicted = _NotPredicted(getattr(model, "config", base.config))
        self._layerdrop = _set_layerdrop(owner, 0.0)
        self._warned = False

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

    @property
    def several(self) -> bool:
        """Whether an input may have several classes, each a yes or no by itself."""
        kind = getattr(_head_of(self.model).config, "problem_type", None)
        return kind == "multi_label_classification"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicModel:
        twin = memo[id(self)] = _new_dynamic(_takes_from(self.model))
        twin.__setstate__(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle, which does not find a class that is made at run time by its name."""
        if reason := why_unpicklable(self):
            raise TypeError(
                f"this dynamic model cannot be pickled: {reason}. Use save_pretrained, and "
                "sounding.load where it is needed; copy.deepcopy works"
            )
        return _new_dynamic, (_takes_from(self.model),), vars(self)

    def _replicate_for_data_parallel(self) -> Any:
        raise TypeError(
            "nn.DataParallel copies a model in a way in which its replicas would run the layers of "
            "the original: use DistributedDataParallel, or transformers.Trainer with torchrun"
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the model's own `push_to_hub` would upload the plain model without a word.

        Raises:
            NotImplementedError: always; the text says what to do.
        """
        raise NotImplementedError(
            "push_to_hub would upload the plain model only, without selector and exits: "
            "save_pretrained(DIR), then huggingface_hub.upload_folder(repo_id=..., folder_path=DIR)"
        )

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
            The model's output with `executed_layers`, bool [batch, layers]: what really ran. With
            `labels`, the loss is that of the head that answers: of an exit below full depth.

        Raises:
            ValueError: a budget or a mask that is not allowed, padding on the left, an input
                shorter than a frame, or an option that needs every layer (`output_attentions`,
                `return_dict=False`).

        Warns:
            UntrainedWarning: once, below full depth of a model that was not trained for it.
        """
        kwargs = _by_name(type(self).forward, args, kwargs)
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
        full = self._keeps_all(budget, mask, len(inputs))
        self._note_depth(full)
        labels = None if self.exits is None or full else kwargs.pop("labels", None)
        with activate(call):
            out = self.model(**kwargs)
        add_layers(out, executed_layers=call.executed[-1] if call.executed else None)
        if self.exits is not None and call.state is not None:
            frame_mask = call.frame_mask(call.state.shape[1])
            out["logits"] = self.exits.answer(
                call.state, frame_mask, call.executed[-1], out["logits"]
            )
            if labels is not None:
                out["loss"] = self._loss(out["logits"], labels, frame_mask)
        return out

    def _loss(self, logits: Tensor, labels: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Of what the exits and the model's own head answer, as the model's own loss."""
        assert self.exits is not None
        config = _head_of(self.model).config
        if self.exits.pooled:
            return classification_loss(logits, labels, config)
        return ctc_loss(logits, labels, None if frame_mask is None else frame_mask.sum(1), config)

    def _note_depth(self, full: bool) -> None:
        """Note that training reaches a depth below full; warn, once, where it never has."""
        if full or self.trained:
            return
        if self.training and torch.is_grad_enabled():
            self.trained = True
        elif not self.training:
            self._warn(
                "this model was never trained with layers left out: below full depth it answers "
                "with noise. Train it (`sounding train`, or with budgets in a loop of yours), load "
                "one that is trained, or set dynamic.trained"
            )

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(text, UntrainedWarning, stacklevel=3)

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
        kwargs = _by_name(type(self.model).generate, args, kwargs)
        settings = kwargs.get("generation_config") or self.model.generation_config
        self._refuse({"output_attentions": settings.output_attentions, **kwargs})
        inputs = kwargs.get(self.model.main_input_name, kwargs.get("inputs"))
        if inputs is None:
            raise ValueError(f"the model's input {self.model.main_input_name!r} is missing")
        call = self._call(inputs, budget, mask, kwargs)
        full = self._keeps_all(budget, mask, len(inputs))
        self._note_depth(full)
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
            if not asked.all() and not self.decoder_trained:
                self._warn(
                    "the decoder of this model was never trained with layers left out: it answers "
                    "with noise. Leave decoder_budget out, or train it and set "
                    "dynamic.decoder_trained"
                )
            short = window is not None and inputs.shape[-1] < window
            if short or not (asked.all() and full):
                kwargs = untimed(self.model, kwargs)
            decoding = Decoding(self.model, stack, partial(self._encode, call), selector, short)
            with activate(call):
                out, ran = decoding(asked, kwargs)
        executed = call.executed[0] if len(call.executed) == 1 else call.executed or None
        add_layers(out, executed_layers=executed, executed_decoder_layers=ran)
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

    def forward_masks(self, batch: dict[str, Tensor], masks: Tensor) -> MaskLogits:
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
        self.trained |= self.training and torch.is_grad_enabled()
        call.tree = Tree(tree_masks, leaf, getattr(self.selector, "after", 0))
        with activate(call):
            self.base(**{n: v for n, v in batch.items() if n in self._base_inputs()})
        if call.tree.features is None:
            raise ValueError("some mask must run the layers before the selector")
        features = call.tree.features
        return MaskLogits(torch.stack(logits), features, call.frame_mask(features.shape[1]))  # type: ignore[arg-type]

    def frame_mask(self, batch: dict[str, Tensor], frames: int) -> Tensor | None:
        """Which of the encoder's frames are no padding.

        Shape: -> [batch, frames] bool; None where all are valid.
        """
        call = self._call(batch[self.model.main_input_name], None, None, batch)
        return call.frame_mask(frames)

    def forward_plan(self, batch: dict[str, Tensor], plan: Plan) -> Any:
        """The model's own forward pass with a plan of yours, for training methods.

        Args:
            plan: see `policies.plans`.
        """
        call = self._call(batch[self.model.main_input_name], None, None, batch)
        self.trained |= self.training and torch.is_grad_enabled()
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
        kind = original_class(self.model)
        if _model_class(kind.__name__) is not kind:
            raise ValueError(
                f"load cannot build a {kind.__name__} again, as transformers has none: "
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
        parts = {SELECTOR: selector, SKIP: self.skip, EXITS: self.exits, DECODER_SELECTOR: chooser}
        with atomic_directory(directory, keep_others=True) as temporary:
            with _settings_restored(self):
                self.model.save_pretrained(temporary)
            for companion in companions:
                companion.save_pretrained(temporary)
            write_parts(
                temporary,
                parts,
                model=kind.__name__,
                selector=selector.config(),
                skip=self.skip.kind,
                exits=None if self.exits is None else self.exits.config(),
                decoder_selector=None if chooser is None else chooser.config(),
                mean_budgets=list(self.mean_budgets),
                layers=self.num_layers,
                trained=self.trained,
                decoder_trained=self.decoder_trained,
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
        positions = inputs.shape[self.backbone.time]
        lengths = _lengths(batch.get("attention_mask"), inputs.shape[0], positions)
        given = torch.full((inputs.shape[0],), positions) if lengths is None else lengths
        valid_frames(self.backbone, self.base, given)
        return Call(
            stack=self.stack,
            base=self.base,
            backbone=self.backbone,
            plan=plan,
            skip=self.skip,
            lengths=lengths,
        )

    def _keeps_all(self, budget: Budget, mask: Tensor | None, batch: int) -> bool:
        if mask is not None:
            return bool(torch.as_tensor(mask).all())
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

        sure = partial(confidence, several=self.several)
        return lambda: Progressive(readout, threshold, sure)

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
    path = SkipPath(skip, backbone, [uncompiled(layer) for layer in layers], width)
    if isinstance(selector, str):
        selector = _new_selector(selector, width, len(layers))
    needed = exits and len(layers) > 1  # one layer has no budget below full depth
    heads = _new_exits(model, len(layers), width) if needed else None
    device = next(model.parameters()).device
    for part in (selector, path, heads):
        if part is not None:
            part.to(device)
    return _dynamic_class(_takes_from(model))(model, selector, backbone, base, path, heads)


def _takes_from(model: Any) -> Any:
    """The class whose `forward` says what a model takes; PEFT puts its own before that."""
    inner = getattr(model, "get_base_model", None)
    return original_class(inner() if callable(inner) else model)


@cache
def _dynamic_class(owner: type) -> type[DynamicModel]:
    """`DynamicModel` with a `forward` that says by its signature what that of `owner` takes, too.

    `transformers.Trainer` finds the columns of a data set, and the labels, by these names, of the
    instance and of its class.
    """
    theirs = inspect.signature(owner.forward)  # type: ignore[attr-defined]
    ours = inspect.signature(DynamicModel.forward).parameters
    own = [ours["budget"], ours["mask"]]
    kept = [one for name, one in theirs.parameters.items() if name not in ("budget", "mask")]
    last = len(kept) - bool(kept and kept[-1].kind is inspect.Parameter.VAR_KEYWORD)

    def forward(self: DynamicModel, *args: Any, **kwargs: Any) -> Any:
        return DynamicModel.forward(self, *args, **kwargs)

    forward.__doc__ = DynamicModel.forward.__doc__
    forward.__signature__ = theirs.replace(  # type: ignore[attr-defined]
        parameters=[*kept[:last], *own, *kept[last:]], return_annotation=inspect.Signature.empty
    )
    body = {"__module__": __name__, "__doc__": DynamicModel.__doc__, "forward": forward}
    return type("DynamicModel", (DynamicModel,), body)


def _new_dynamic(owner: type) -> DynamicModel:
    """An empty instance, whose state pickle fills in."""
    made = _dynamic_class(owner)
    return made.__new__(made)


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
    dynamic._not_predicted.remove()
    return dynamic.model


def load(directory: str | Path, **kwargs: Any) -> DynamicModel:
    """Load what `save_pretrained` saved; `kwargs` go to the model's `from_pretrained`.

    No code of the directory is run, and nothing in it is unpickled.

    Raises:
        ValueError: not such a directory, a truncated or changed file, or an unknown model class.
    """
    directory = Path(directory)
    description = read_description(directory)
    model_class: Any = _model_class(description.model)
    known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not known:
        raise ValueError(f"{directory / CONFIG}: {description.model!r} is not a transformers model")
    settings = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, info = model_class.from_pretrained(directory, **{**kwargs, **settings})
        dynamic = _with_parts(model, description, directory)
    except Exception as error:  # transformers has a class for each reason and no common one
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{directory} cannot be loaded: {reason}") from error
    if info["missing_keys"] or dynamic.num_layers != description.layers:
        raise ValueError(
            f"{directory}: config.json does not fit the weights: it is damaged or was changed"
        )
    return dynamic


def _with_parts(model: Any, description: Description, directory: Path) -> DynamicModel:
    """The plain model of a directory with its parts."""
    said, base = description, find_backbone(model)[1]
    width: Any = base.config.hidden_size  # type: ignore[union-attr]
    selector = selector_from_config(said.selector, width=width, layers=said.layers)
    load_part(selector, directory, SELECTOR)
    dynamic = wrap(model, selector, skip=said.skip, exits=said.exits is not None).eval()
    if dynamic.exits is not None:
        load_part(dynamic.exits, directory, EXITS)
    if dynamic.skip.state_dict():
        load_part(dynamic.skip, directory, SKIP)
    if said.decoder_selector is not None:
        stack = dynamic.decoder_stack
        if stack is None:
            raise ValueError("it has a selector of decoder layers, but no decoder that drops some")
        chooser = selector_from_config(said.decoder_selector, width=width, layers=len(stack))
        load_part(chooser, directory, DECODER_SELECTOR)
        dynamic.decoder_selector = chooser.to(model.device).eval()
    dynamic.mean_budgets = list(said.mean_budgets)
    if dynamic.several and said.trained is None:
        dynamic.mean_budgets = []  # of before, by a softmax over classes that may hold together
    dynamic.trained = said.trained is not False  # unknown of directories of before
    dynamic.decoder_trained = bool(said.decoder_trained)
    return dynamic


def _model_class(name: str) -> Any:
    """Of `transformers`, or ours; None where there is none."""
    return HEADS.get(name) or getattr(transformers, name, None)


def _by_name(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    if not args:
        return kwargs
    names = list(inspect.signature(function).parameters)[1:]  # without self
    named = dict(zip(names, args, strict=False))
    if len(args) > len(names) or named.keys() & kwargs.keys():
        raise TypeError(f"too many or repeated arguments; the model takes {', '.join(names)}")
    return named | kwargs


class _NotPredicted:
    """Keeps `FIELDS` out of what `transformers.Trainer` takes for predictions, until `remove()`."""

    def __init__(self, config: Any) -> None:
        self.config, self.before = config, vars(config).get(IGNORED)
        self.put()

    def put(self) -> None:
        """Add them to what the configuration says is to be ignored."""
        setattr(self.config, IGNORED, [*getattr(self.config, IGNORED, ["cache"]), *FIELDS])

    def remove(self) -> None:
        """Let the configuration say again what it said."""
        if self.before is None:
            vars(self.config).pop(IGNORED, None)
        else:
            setattr(self.config, IGNORED, self.before)


def _new_exits(model: Any, layers: int, width: int) -> ExitHeads:
    head = _head_of(model)
    if _is_a(head, *CLASSIFIERS):
        return ExitHeads(layers, width, head.config.num_labels)
    if _is_a(head, CTC):
        return ExitHeads(layers, width, head.config.vocab_size, pooled=False)
    raise ValueError(
        f"exits are heads of a classifier or for CTC, not of a {original_class(model).__name__}"
    )


def _head_of(model: Any) -> Any:
    """The part of a model that classifies or does CTC, by its class or what that is derived from.

    It may stand within a model of somebody else, as of PEFT; the model itself where there is none.
    """
    return next((one for one in model.modules() if _is_a(one, *CLASSIFIERS, CTC)), model)


def _is_a(module: nn.Module, *endings: str) -> bool:
    return any(cls.__name__.endswith(endings) for cls in type(module).__mro__)


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
def _settings_restored(dynamic: DynamicModel) -> Iterator[None]:
    """What was changed of the model's configuration is as it was, for the time of a save."""
    owner = dynamic.backbone.owner(dynamic.base)
    _set_layerdrop(owner, dynamic._layerdrop)
    dynamic._not_predicted.remove()
    try:
        yield
    finally:
        dynamic._not_predicted.put()
        _set_layerdrop(owner, 0.0)
