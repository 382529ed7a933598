"""The decoder of an encoder-decoder model: which of its layers `generate` runs.

An input keeps its decoder layers for its whole generation, so inputs with the same mask can be
generated together: each group goes through the model's own `generate`. A layer that is not kept is
not executed. Its place in the cache of keys and values holds one number per position, so that the
lengths, positions and beams that `transformers` reads from the cache stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from ..budget import Budget, kept_layers
from ..policies.plans import check_mask

PER_INPUT = (  # what `generate` takes for each input; what is left out belongs to all
    "decoder_attention_mask",
    "decoder_input_ids",
    "decoder_inputs_embeds",
    "decoder_position_ids",
    "language",
    "num_frames",
)
ONE_MASK_ONLY = ("assistant_model", "cache", "past_key_values", "prefix_allowed_tokens_fn")


@dataclass
class _Running:
    """Shape: mask [layers] bool: the layers to run; ran [layers] bool: those that did."""

    stack: DecoderStack
    mask: list[bool]
    ran: Tensor

    def __iter__(self) -> Iterator[Any]:
        for index, layer in enumerate(self.stack.layers):
            if self.mask[index]:
                self.ran[index] = True
                yield layer
            else:
                yield partial(_pass, index)


_running: ContextVar[_Running | None] = ContextVar("sounding_decoder", default=None)


class DecoderStack(nn.ModuleList):
    """The decoder's own layers under their own names; within `running` only some of them run."""

    def __iter__(self) -> Iterator[Any]:
        now = _running.get()
        return iter(now) if now is not None and now.stack is self else super().__iter__()

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, also while some of them run."""
        return list(self._modules.values())


def find_decoder(model: nn.Module, name: str | None) -> Any:
    """The part of `model` that is a decoder of the class `name`, or None."""
    for module in model.modules():
        if name in {cls.__name__ for cls in type(module).__mro__}:
            return module
    return None


@contextmanager
def running(stack: DecoderStack, mask: Tensor) -> Iterator[Tensor]:
    """Run only the layers of `mask` in a `with` block of this thread or task.

    Yields what has really run so far. Shape: mask [layers] bool -> the same.
    """
    now = _Running(stack, mask.tolist(), torch.zeros(len(stack), dtype=torch.bool))
    token = _running.set(now)
    try:
        yield now.ran
    finally:
        _running.reset(token)


def _pass(index: int, hidden: Tensor, mask: Any, encoder_states: Tensor, **kwargs: Any) -> Tensor:
    """Stand in for the decoder layer `index` of Whisper or Moonshine.

    Shape: hidden [batch, tokens, width] -> the same; encoder_states [batch, frames, width].
    """
    cache = kwargs.get("cache", kwargs.get("past_key_values"))  # as in transformers 5.20
    if cache is not None:
        place = hidden[:, None, :, :1]  # as keys of one head of width 1
        cache.self_attention_cache.update(place, place, index)
        if not cache.is_updated.get(index):
            place = encoder_states[:, None, :, :1]
            cache.cross_attention_cache.update(place, place, index)
            cache.is_updated[index] = True
    return hidden


def asked_layers(budget: Budget, mask: Tensor | None, *, layers: int, batch: int) -> Tensor:
    """The decoder layers that were asked for: those of the mask, or of a budget the first k.

    Shape: -> [batch, layers] bool.

    Raises:
        ValueError: a budget or a mask that is not allowed.
    """
    if mask is not None and budget is not None:
        raise ValueError("give a decoder_budget or a decoder_mask, not both")
    try:
        if mask is not None:
            return check_mask(mask, layers=layers, batch=batch)
        k = torch.tensor(kept_layers(budget, layers=layers, batch=batch))
    except ValueError as error:
        raise ValueError(f"of the decoder: {error}") from None
    return torch.arange(layers) < k[:, None]


class WithoutTokens(LogitsProcessor):
    """Rule tokens out, as `SuppressTokensLogitsProcessor` of `transformers` does.

    That one looks for them in the vocabulary anew at each token, which takes 3 ms on a processor,
    a tenth of the time of Whisper-base.

    Args:
        tokens: their ids; those that are not in the vocabulary do not matter.
        vocabulary: number of tokens.
    """

    def __init__(self, tokens: Iterable[int], vocabulary: int) -> None:
        self.mask = torch.zeros(vocabulary, dtype=torch.bool)
        self.mask[[token for token in tokens if 0 <= token < vocabulary]] = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Shape: scores [batch, vocabulary] -> the same."""
        self.mask = self.mask.to(scores.device)
        return scores.masked_fill(self.mask, -torch.inf)


def untimed(model: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` that rule time stamps out, but where they are asked for.

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
        selector: chooses decoder layers by the output of the encoder; None for the first k.
        encodes_first: whether the encoder has to run before `generate` in any case.
    """

    model: Any
    stack: DecoderStack
    encode: Callable[[dict[str, Any]], tuple[Any, Tensor | None]]
    selector: nn.Module | None
    encodes_first: bool

    def __call__(self, asked: Tensor, kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Generate with the layers that were asked for, or as many others that the selector keeps.

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
            raise ValueError(
                "return_token_timestamps reads the attention of certain decoder layers: leave "
                "decoder_budget and decoder_mask out"
            )
        alike = full or (self.selector is None and bool((asked == asked[0]).all()))
        if alike:
            if self.encodes_first:
                encoded, _ = self.encode(kwargs)
                kwargs = self._without_input(kwargs) | {"encoder_outputs": encoded}
            with running(self.stack, asked[0]) as ran:
                return self.model.generate(**kwargs), ran.expand(len(asked), -1)
        _refuse_groups(kwargs)
        encoded, frame_mask = self.encode(kwargs)
        if self.selector is not None:
            states = encoded.last_hidden_state
            gates = self.selector(states, frame_mask, asked.sum(1).to(states.device))
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
            part = type(encoded)(**{name: _rows(value, rows) for name, value in encoded.items()})
            own = {n: _rows(v, rows) if n in PER_INPUT else v for n, v in kwargs.items()}
            with running(self.stack, masks[rows[0]]) as ran:
                results.append(self.model.generate(**own, encoder_outputs=part))
            executed[rows] = ran
        settings = kwargs.get("generation_config") or self.model.generation_config
        pad = _pad_token(kwargs, settings, self.model.generation_config)
        beams = kwargs.get("num_beams") or settings.num_beams or 1
        return _merge(groups, results, pad, beams), executed


def _refuse_groups(kwargs: dict[str, Any]) -> None:
    for name in ONE_MASK_ONLY:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{name} does not go with decoder layers that differ between inputs: give one "
                "decoder_mask for all, or one input at a time with its decoder_mask"
            )


def _pad_token(kwargs: dict[str, Any], *settings: Any) -> int:
    """What `generate` puts behind the end of a text: the end token where no other is named."""
    for name in ("pad_token_id", "eos_token_id"):
        for value in (kwargs.get(name), *(getattr(one, name) for one in settings)):
            if value is not None:
                return int(value[0] if isinstance(value, (list, tuple)) else value)
    return 0


# --- the results of groups as one -----------------------------------------------------------


def _rows(value: Any, rows: Tensor) -> Any:
    """The part of an argument or output that belongs to the inputs `rows`."""
    if isinstance(value, Tensor):
        return value.index_select(0, rows.to(value.device))
    if isinstance(value, tuple) and all(isinstance(one, Tensor) for one in value):  # by layer
        return tuple(_rows(one, rows) for one in value)
    return [value[row] for row in rows.tolist()] if isinstance(value, (list, tuple)) else value


def _merge(groups: Sequence[Tensor], results: Sequence[Any], pad: int, beams: int) -> Any:
    """One result for all inputs in their order, as `generate` returns it."""
    first = results[0]
    if isinstance(first, Tensor):
        return _in_order(groups, results, pad)
    merged: dict[str, Any] = {}
    for name in first:
        values = [result[name] for result in results]
        if name == "sequences":
            merged[name] = _in_order(groups, values, pad)
        elif name == "beam_indices":  # counted within a group
            moved = [_beams_of_all(v, rows, beams) for v, rows in zip(values, groups, strict=True)]
            merged[name] = _in_order(groups, moved, -1)
        elif name in ("scores", "logits"):
            merged[name] = _steps(groups, values, pad)
        elif name == "encoder_hidden_states":
            merged[name] = tuple(_in_order(groups, layer) for layer in zip(*values, strict=True))
        elif name == "segments":
            order = _places(groups, len(values[0]) // len(groups[0])).argsort().tolist()
            flat = [segment for value in values for segment in value]
            merged[name] = [flat[index] for index in order]
        elif isinstance(values[0], Tensor):
            merged[name] = _in_order(groups, values)
    return type(first)(**merged)


def _places(groups: Sequence[Tensor], each: int) -> Tensor:
    """Where the results of the groups stand in the whole, with `each` results an input."""
    rows = torch.cat(list(groups))
    return (rows[:, None] * each + torch.arange(each)).flatten()


def _in_order(groups: Sequence[Tensor], values: Sequence[Tensor], pad: int = 0) -> Tensor:
    """Shape: one [inputs of the group * n, length or more] each -> [batch * n, longest, ...]."""
    if values[0].dim() == 2:
        longest = max(value.shape[1] for value in values)
        values = [
            nn.functional.pad(value, (0, longest - value.shape[1]), value=pad) for value in values
        ]
    together = torch.cat(list(values))
    order = _places(groups, len(together) // sum(map(len, groups))).argsort()
    return together.index_select(0, order.to(together.device))


def _steps(
    groups: Sequence[Tensor], values: Sequence[tuple[Tensor, ...]], pad: int
) -> tuple[Tensor, ...]:
    """Scores of each step, [batch * n, vocabulary]; a group that has ended is sure of `pad`."""
    merged = []
    for step in range(max(map(len, values))):
        parts = []
        for value in values:
            if step < len(value):
                parts.append(value[step])
            else:
                ended = torch.full_like(value[0], -torch.inf)
                ended[:, pad] = 0
                parts.append(ended)
        merged.append(_in_order(groups, parts))
    return tuple(merged)


def _beams_of_all(indices: Tensor, rows: Tensor, beams: int) -> Tensor:
    """Beam indices of a group as those of the whole batch; -1, behind the end, stays."""
    rows = rows.to(indices.device)
    moved = rows[(indices // beams).clamp(min=0)] * beams + indices % beams
    return torch.where(indices < 0, indices, moved)
