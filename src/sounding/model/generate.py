"""`generate` of a dynamic model: some layers of the encoder, and some of the decoder.

An input keeps its decoder layers for its whole generation, so inputs with the same mask can be
generated together: each group goes through the model's own `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from ..errors import UsageError
from ..policies import Policy
from ..policies.plans import check_mask
from .call import Call, activate
from .checks import by_name, main_input, refuse_options, refuse_padding
from .decoder import DecoderStack, asked_layers, running
from .drafts import Drafting, drafting, refuse_undraftable
from .groups import merge_results, rows_of
from .outputs import add_layers
from .processors import WithoutTokens
from .untrained import warn_untrained

PER_INPUT = (  # what `generate` takes for each input; what is left out belongs to all
    "decoder_attention_mask",
    "decoder_input_ids",
    "decoder_inputs_embeds",
    "decoder_position_ids",
    "language",
    "num_frames",
)
ONE_MASK_ONLY = ("assistant_model", "cache", "past_key_values", "prefix_allowed_tokens_fn")
DECODER_UNTRAINED = (
    "the decoder of this model was never trained with layers left out: it answers with noise. "
    "Leave decoder_budget out, train it (`sounding distill`, from audio alone), or set "
    "dynamic.decoder_trained"
)


def generate(
    dynamic: Any,
    *args: Any,
    budget: Any = None,
    mask: Tensor | None = None,
    decoder_budget: Any = None,
    decoder_mask: Tensor | None = None,
    draft: Any = None,
    **kwargs: Any,
) -> Any:
    """Generate with a `DynamicModel`; see its `generate`."""
    model = dynamic.model
    kwargs = by_name(type(model).generate, args, kwargs)
    settings = kwargs.get("generation_config") or model.generation_config
    refuse_options(model.config, {"output_attentions": settings.output_attentions, **kwargs})
    inputs = main_input(
        model.main_input_name, {model.main_input_name: kwargs.get("inputs"), **kwargs}
    )
    call, full = dynamic.begin(inputs, budget, mask, kwargs)
    refuse_padding(dynamic, call, inputs)
    window = dynamic.backbone.window(dynamic.base)
    if window is not None and inputs.shape[-1] > window:
        call.lengths = None  # the model cuts it into pieces, each a full window
    wanted = {"output_hidden_states": settings.output_hidden_states, **kwargs}
    call.keep_hidden_states = bool(wanted["output_hidden_states"])
    stack, drafts = dynamic.decoder_stack, None
    if stack is None:
        if decoder_budget is not None or decoder_mask is not None or draft is not None:
            raise UsageError(f"a {type(model).__name__} has no decoder that drops layers")
        with activate(call):
            out, ran = model.generate(**kwargs), None
    else:
        asked = asked_layers(decoder_budget, decoder_mask, layers=len(stack), batch=len(inputs))
        policy = None if decoder_mask is not None else dynamic.decoder_policy
        if policy is not None and policy.reads == 0:  # the same for every input: known by now
            fixed = [policy.fixed_mask(int(k)) for k in asked.sum(1)]
            if all(mask is not None for mask in fixed):
                masks = torch.stack(fixed)
                asked, policy = check_mask(masks, layers=len(stack), batch=len(inputs)), None
        if not asked.all() and not dynamic.decoder_trained:
            warn_untrained(dynamic, DECODER_UNTRAINED)
        short = window is not None and inputs.shape[-1] < window
        if short or not (asked.all() and full):
            kwargs = untimed(model, kwargs)
        changes = dynamic.updates, dynamic.decoder_norm
        if draft is not None:
            drafts = _drafts(dynamic, draft, inputs, asked, kwargs)
            kwargs = kwargs | {"custom_generate": drafts}
        encode = partial(_encode, dynamic, call)
        decoding = Decoding(model, stack, encode, policy, short, changes)
        with activate(call):
            out, ran = decoding(asked, kwargs)
    executed = call.executed[0] if len(call.executed) == 1 else call.executed or None
    add_layers(out, executed_layers=executed, executed_decoder_layers=ran)
    if drafts is not None:
        counts = {"passes": [drafts.passes], "accepted": [drafts.accepted]}
        add_layers(out, **{name: torch.tensor(value) for name, value in counts.items()})
    return out


def _drafts(
    dynamic: Any, draft: Any, inputs: Tensor, asked: Tensor, kwargs: dict[str, Any]
) -> Drafting:
    """Return the loop that `generate` runs with drafts, in place of that of `transformers`."""
    window = dynamic.backbone.window(dynamic.base)
    if window is not None and inputs.shape[-1] > window:
        raise UsageError(f"drafts are for clips of at most {window / 100:g} s: cut it")
    if not asked.all():
        raise UsageError(
            "drafts are read by the whole decoder: leave decoder_budget and decoder_mask out"
        )
    refuse_undraftable(dynamic.model, inputs, kwargs)
    changes = dynamic.updates, dynamic.decoder_norm
    return drafting(draft, dynamic.decoder_stack, dynamic.model, dynamic.decoder_policy, changes)


def _encode(dynamic: Any, call: Call, kwargs: dict[str, Any]) -> tuple[Any, Tensor | None]:
    """Return what the encoder makes of the inputs of `generate`, and its frame mask."""
    main = dynamic.model.main_input_name
    inputs: Any = kwargs.get(main, kwargs.get("inputs"))
    window = dynamic.backbone.window(dynamic.base)
    if window is not None and inputs.shape[-1] > window:
        raise UsageError(
            f"above {window / 100:g} s the encoder runs more than once: give one decoder_mask, "
            "or one decoder_budget without a decoder_policy, for all inputs"
        )
    needs_window = {  # Whisper then comes back to the audio, which is encoded once here
        "several temperatures": isinstance(kwargs.get("temperature"), (list, tuple)),
        "num_return_sequences": (kwargs.get("num_return_sequences") or 1) > 1,
        "return_timestamps": bool(kwargs.get("return_timestamps")),
    }
    refused = [name for name, asked in needs_window.items() if asked]
    if window is not None and refused:
        raise UsageError(
            f"{' and '.join(refused)} need clips that are padded to the 30 s window, and the "
            "same decoder layers for all"
        )
    batch = {main: inputs, "attention_mask": kwargs.get("attention_mask")}
    with torch.no_grad():
        encoded = dynamic.base(**{name: v for name, v in batch.items() if v is not None})
    return encoded, call.frame_mask(encoded.last_hidden_state.shape[1])


def untimed(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate` that rule time stamps out, unless they are asked for.

    After a time stamp Whisper reads the audio from there on, asked for or not. With layers missing,
    or a clip that is encoded once, it may come back to the same place without end.
    """
    settings = kwargs.get("generation_config") or model.generation_config
    first = getattr(settings, "no_timestamps_token_id", None)
    wanted = kwargs.get("return_timestamps")
    if wanted is None:
        wanted = getattr(settings, "return_timestamps", False)
    if first is None or wanted:
        return kwargs
    vocabulary = model.config.vocab_size
    stamps = WithoutTokens(range(first + 1, vocabulary), vocabulary)
    processors = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), stamps])
    return kwargs | {"logits_processor": processors}


@dataclass
class Decoding:
    """One `generate` in progress, within the call of its encoder.

    Attributes:
        model: what generates; `stack` are the layers of its decoder.
        encode: the encoder by itself: from the arguments of `generate` what it returns, and the
            mask of its valid frames.
        policy: chooses decoder layers by the output of the encoder; None for the first k.
        encodes_first: whether the encoder has to run before `generate` in any case.
        changes: the updates of the model and the norm behind its decoder, as of `running`.
    """

    model: Any
    stack: DecoderStack
    encode: Callable[[dict[str, Any]], tuple[Any, Tensor | None]]
    policy: Policy | None
    encodes_first: bool
    changes: tuple[Any, Any] = (None, None)

    def __call__(self, asked: Tensor, kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Generate with the layers that were asked for, or as many others that the policy keeps.

        Inputs that keep different layers are generated in groups, those that keep the same
        together. Then scores behind the end of a group are 0 for the pad token and -inf for the
        others, and the cache and the states of the decoder's layers, which differ in number, are
        left out.

        Args:
            asked: [batch, layers] bool.
            kwargs: of `generate`.

        Returns:
            What `generate` returns, for all inputs in their order, and what ran, bool
            [batch, layers].

        Raises:
            ValueError: an option that needs every layer, or the same layers for all inputs.
        """
        full = bool(asked.all())
        if not full and kwargs.get("return_token_timestamps"):
            raise UsageError(
                "return_token_timestamps reads the attention of certain decoder layers: leave "
                "decoder_budget and decoder_mask out"
            )
        alike = full or (self.policy is None and bool((asked == asked[0]).all()))
        if alike:
            if self.encodes_first:
                encoded, _ = self.encode(kwargs)
                kwargs = self._without_input(kwargs) | {"encoder_outputs": encoded}
            with running(self.stack, asked[0], *self.changes) as ran:
                return self.model.generate(**kwargs), ran.expand(len(asked), -1)
        _refuse_groups(kwargs)
        encoded, frame_mask = self.encode(kwargs)
        if self.policy is not None:
            states = encoded.last_hidden_state
            gates = self.policy(states, frame_mask, asked.sum(1).to(states.device))
            asked = check_mask(gates.mask, layers=len(self.stack), batch=len(asked))
        return self._in_groups(asked, encoded, self._without_input(kwargs))

    def _without_input(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        used = {"attention_mask", "inputs", self.model.main_input_name}
        return {name: value for name, value in kwargs.items() if name not in used}

    def _in_groups(self, masks: Tensor, encoded: Any, kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        _, group = torch.unique(masks, dim=0, return_inverse=True)
        groups = [(group == index).nonzero().squeeze(1) for index in range(int(group.max()) + 1)]
        executed = torch.zeros_like(masks)
        results = []
        for rows in groups:
            part = type(encoded)(**{name: rows_of(value, rows) for name, value in encoded.items()})
            own = {n: rows_of(v, rows) if n in PER_INPUT else v for n, v in kwargs.items()}
            with running(self.stack, masks[rows[0]], *self.changes) as ran:
                results.append(self.model.generate(**own, encoder_outputs=part))
            executed[rows] = ran
        settings = kwargs.get("generation_config") or self.model.generation_config
        pad = _pad_token(kwargs, settings, self.model.generation_config)
        beams = kwargs.get("num_beams") or settings.num_beams or 1
        return merge_results(groups, results, pad, beams), executed


def _refuse_groups(kwargs: dict[str, Any]) -> None:
    for name in ONE_MASK_ONLY:
        if kwargs.get(name) is not None:
            raise UsageError(
                f"{name} does not go with decoder layers that differ between inputs: give one "
                "decoder_mask for all, or one input at a time with its decoder_mask"
            )


def _pad_token(kwargs: dict[str, Any], *settings: Any) -> int:
    """Return what `generate` puts behind the end of a text.

    It is the end token where no other is named.
    """
    for name in ("pad_token_id", "eos_token_id"):
        for value in (kwargs.get(name), *(getattr(one, name) for one in settings)):
            if value is not None:
                return int(value[0] if isinstance(value, (list, tuple)) else value)
    return 0
