"""What writes ahead of a decoder: some of its own layers, or a text that was read elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from ..errors import UsageError
from ..policies import Policy
from .decoder import asked_layers

SHORTLIST = 16384  # of 51865: 94 % of the tokens of read English; those before are the commonest
SURE = 0.4  # the threshold of `transformers` for a token, of all drafted ones together
FIRST, AT_MOST = 5, 31  # tokens in a draft of layers, of any
AFTER_A_MISS = 3  # tokens of a text
GRAM, NEAR = 4, 3  # tokens by which a text is found again, and how far away a single one may be
FEW_ROWS = 8  # up to which a product with the vocabulary is quicker the other way round


class Drafter(Protocol):
    """What proposes the next tokens of one text."""

    def propose(self, tokens: list[int], room: int) -> list[int]:
        """Return at most `room` tokens that may follow.

        Args:
            tokens: the prompt and what was said so far; each call has some more than the last.
        """


class TextDrafts:
    """A `Drafter` that proposes a whole text that it was given, block by block.

    After a token that the text does not have there, it goes on where the last tokens that were said
    are found in it, nearest to the place where one token would only have been replaced by another.

    Args:
        text: the tokens, without a prompt.
        end: the token at the end of a text; it need not be in `text`.
    """

    def __init__(self, text: Sequence[int], end: int) -> None:
        self.text = [*text, end]
        self.at, self.block = 0, AT_MOST
        self.proposed: list[int] = []
        self.said: list[int] = []
        self.before = 0  # number of tokens at the last call; 0 before the first

    def propose(self, tokens: list[int], room: int) -> list[int]:
        """Return the next tokens of the text."""
        if self.before:
            new = tokens[self.before :]
            kept = common(self.proposed, new)
            missed = kept < len(self.proposed)
            self.block = AFTER_A_MISS if missed else min(2 * self.block, AT_MOST)
            self.said += new
            self.at = self._find(min(self.at + kept + 1, len(self.text)))
        self.before = len(tokens)
        self.proposed = self.text[self.at :][: min(self.block, room)]
        return self.proposed

    def _find(self, place: int) -> int:
        """Return where the text goes on after what was said; `place` if that is not in it."""
        for count in range(min(GRAM, len(self.said)), 0, -1):
            gram = self.said[-count:]
            ends = range(count, len(self.text) + 1)
            found = [end for end in ends if self.text[end - count : end] == gram]
            nearest = min(found, key=lambda end: abs(end - place), default=None)
            if nearest is not None and (count > 1 or abs(nearest - place) <= NEAR):
                return nearest
        return place


class LayerDraft:
    """What `draft=` of `generate` takes for drafts by some of the decoder's own layers.

    `draft=2` stands for `LayerDraft(2)`. Keep one of these for many inputs if it has a list of
    tokens: their part of the weights is copied once.

    Args:
        layers: as `decoder_budget`, or a mask, bool [decoder layers].
        vocabulary: the tokens that may be drafted, or so many of the first; the product with the
            whole vocabulary takes as long as all layers. See `frequent`.
    """

    def __init__(self, layers: Any, vocabulary: int | Iterable[int] = SHORTLIST) -> None:
        self.layers = layers
        self.vocabulary = vocabulary if isinstance(vocabulary, int) else [*vocabulary]
        self._taken: tuple[Any, Tensor, list[int]] | None = None

    def mask(self, layers: int, policy: Policy | None = None) -> Tensor:
        """Return which of the decoder's layers draft. Shape: -> [layers] bool.

        Args:
            policy: chooses where only their number is known; None for the first ones.

        Raises:
            UsageError: none of them, or all.
        """
        named = isinstance(self.layers, Tensor)
        asked = (None, self.layers) if named else (self.layers, None)
        mask = asked_layers(*asked, layers=layers, batch=1)[0]
        fixed = None if named or policy is None else policy.fixed_mask(int(mask.sum()))
        mask = mask if fixed is None else fixed
        if bool(mask.all()):
            raise UsageError(
                f"draft={self.layers!r} are all {layers} layers of the decoder, and would save "
                f"nothing: give 1 to {layers - 1}"
            )
        return mask

    def shortlist(self, weight: Tensor, end: int) -> tuple[Tensor, list[int]]:
        """Return the rows of the tokens that may be drafted, and the tokens.

        Shape: weight [vocabulary, width] -> [tokens, width].
        """
        made_of = (weight.data_ptr(), weight._version, end)
        if self._taken is None or self._taken[0] != made_of:
            size = len(weight)
            given = self.vocabulary
            tokens = range(min(given, size)) if isinstance(given, int) else given
            wrong = [token for token in tokens if not 0 <= token < size]
            if wrong or not tokens:
                raise UsageError(
                    f"the tokens of a draft are 0 to {size - 1}, at least one; got {wrong[:3]}"
                )
            chosen = sorted({*tokens, end})
            rows = weight.detach()[torch.tensor(chosen, device=weight.device)]
            self._taken = made_of, rows, chosen
        return self._taken[1], self._taken[2]


class LayerDrafts:
    """A `Drafter` by some of the decoder's own layers, with a cache of their own.

    The number of tokens grows by two when all of a draft were kept, and else falls by one, as in
    assisted generation of `transformers`; and a draft ends with the first token after which it is
    more likely than not to be wrong somewhere.

    Args:
        reader: of the decoder.
        dropping: leaves layers of the decoder out for a `with` block.
        rows, tokens: of the vocabulary, as `LayerDraft.shortlist` returns them.
        end: the token at the end of a text.
    """

    def __init__(
        self,
        reader: Reader,
        dropping: Callable[[], AbstractContextManager[Any]],
        rows: Tensor,
        tokens: list[int],
        end: int,
    ) -> None:
        self.reader, self.dropping = reader, dropping
        self.rows, self.tokens, self.end = rows, tokens, end
        self.count = FIRST
        self.proposed: list[int] = []
        self.before = 0

    def propose(self, tokens: list[int], room: int) -> list[int]:
        """Return what these layers would say next."""
        if self.proposed:
            kept = common(self.proposed, tokens[self.before :])
            all_of_them = kept == len(self.proposed)
            self.count = max(1, min(self.count + (2 if all_of_them else -1), AT_MOST))
        self.before, self.proposed = len(tokens), []
        sure = 1.0
        with self.dropping():
            while len(self.proposed) < min(self.count, room) and sure >= SURE:
                hidden = self.reader([*tokens, *self.proposed])[-1]
                scores = project(hidden[None], self.rows)[0]
                best = int(scores.argmax())
                sure *= float((scores[best] - scores.logsumexp(0)).exp())
                self.proposed.append(self.tokens[best])
                if self.proposed[-1] == self.end:
                    break
        return self.proposed


class Reader:
    """A decoder that reads one text, and takes back what was not said after all.

    Args:
        decoder: of an encoder-decoder model.
        encoded: what the encoder returned for one input.
        cache_name: of the argument for the cache; `transformers` has changed it.
    """

    def __init__(self, decoder: nn.Module, encoded: Any, cache_name: str) -> None:
        self.decoder = decoder
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.states = encoded.last_hidden_state
        self.options = {cache_name: self.cache, "use_cache": True}
        if (mask := encoded.get("attention_mask")) is not None:  # of Moonshine
            self.options["encoder_attention_mask"] = mask
        self.read: list[int] = []

    def __call__(self, tokens: list[int], at_least: int = 1) -> Tensor:
        """Return the states of the tokens that were not read before, and of the last ones.

        Shape: -> [tokens, width], `at_least` so many.
        """
        kept = min(common(self.read, tokens), len(tokens) - at_least)
        if kept < len(self.read):
            self.cache.crop(kept - len(self.read))
        ids = torch.tensor([tokens[kept:]], device=self.states.device)
        out = self.decoder(input_ids=ids, encoder_hidden_states=self.states, **self.options)
        self.read = [*tokens]
        states: Tensor = out.last_hidden_state[0]
        return states


def frequent(texts: Iterable[Iterable[int]], count: int) -> list[int]:
    """Return the `count` commonest tokens of some texts, for `LayerDraft`."""
    found = Counter(token for text in texts for token in text)
    return sorted(found, key=lambda token: (-found[token], token))[:count]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def project(states: Tensor, weight: Tensor) -> Tensor:
    """Return the scores of the vocabulary.

    For few rows, and more than one, the library multiplies with the large matrix on the left in
    half the time: 5 ms in place of 20 for two rows of Whisper-base, on one core of an EPYC.

    Shape: states [tokens, width]; weight [vocabulary, width] -> [tokens, vocabulary].
    """
    if states.device.type != "cpu" or len(states) > FEW_ROWS:
        return states @ weight.t()
    rows = states if len(states) > 1 else states.repeat(2, 1)
    return (weight @ rows.t()).t()[: len(states)]
