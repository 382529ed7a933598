"""Drafts that lose nothing: something cheap writes ahead, and the full decoder reads it at once.

A decoder takes about as long for some tokens as for one, since most of the time goes into reading
its weights. So a drafter proposes what comes next, one pass of the whole decoder says what it would
have said after each of these tokens, and of the draft the longest prefix that agrees is kept, with
the decoder's own next token behind it. The text is that of `generate` without drafts, greedy, token
for token: a bad draft costs time and nothing else.

There are two drafters: some of the decoder's own layers (as in LayerSkip, arXiv 2404.16710), and a
whole text that was read elsewhere, by a CTC head on the encoder say (as in arXiv 2603.11243).

The loop takes the place of that of `transformers` (`custom_generate`), so the prompt, the language,
the processors, the limits and the end of the text are those of its `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList
from transformers.generation import GenerateEncoderDecoderOutput

from ..errors import UsageError
from ..policies import Policy
from .decoder import DecoderStack, running
from .drafters import Drafter, LayerDraft, LayerDrafts, Reader, TextDrafts, project
from .processors import quick

# A block of tokens goes through other kernels than a single one. This noise moves the distance of
# the two best tokens of Whisper-base by up to 2e-4; below this it could decide between them.
TIE = 1e-3


class Text:
    """A text in the making, and the rules of `generate` for its next token.

    Args:
        prompt: [1, tokens].
        processors, criteria: as `generate` of `transformers` makes them; each is asked once for a
            token, with what was really said before (and once more where noise could decide).
        length: of the text at most, with its prompt.
    """

    def __init__(
        self, prompt: Tensor, processors: LogitsProcessorList, criteria: Any, length: int
    ) -> None:
        self.ids = torch.cat([prompt, prompt.new_zeros(1, length)], 1)[:, :length]
        self.tokens: list[int] = prompt[0].tolist()
        self.processors, self.criteria = processors, criteria

    @property
    def sequences(self) -> Tensor:
        """The text with its prompt. Shape: [1, tokens]."""
        return self.ids[:, : len(self.tokens)]

    @property
    def room(self) -> int:
        """How many tokens may be drafted; one more is the decoder's own."""
        return self.ids.shape[1] - len(self.tokens) - 1

    def extend(self, drafted: list[int], logits: Tensor, tie: float) -> tuple[int, bool | None]:
        """Add what the decoder says itself, as far as it has read its own words.

        Args:
            drafted: the tokens that it has read.
            logits: after what was there before and each of these. Shape: [drafted + 1, vocabulary].
            tie: how near to each other two tokens may not be.

        Returns:
            How many of the drafted tokens were kept, and whether the text is at its end; None if
            the next token is undecided, for two are that near.
        """
        for index, row in enumerate(logits):
            scores = self.processors(self.sequences, row[None].to(torch.float32, copy=True))
            token = int(scores.argmax())
            if tie:
                best = float(scores[0, token])
                scores[0, token] = -torch.inf
                if best - float(scores.max()) < tie:
                    return index, None
            self.ids[0, len(self.tokens)] = token
            self.tokens.append(token)
            kept = index < len(drafted) and drafted[index] == token
            ended = bool(self.criteria(self.sequences, None).all())
            if ended or not kept:  # as behind the last row, where nothing was drafted
                break
        return index + kept, ended


class Drafting:
    """One `generate` with drafts: the loop that `transformers` runs in place of its own.

    Args:
        begin: makes the drafter of an input, of a function that makes a `Reader` of it, what the
            encoder returned, and the token at the end of a text.

    Attributes:
        passes: of the full decoder.
        accepted: how many drafted tokens each of them kept.
    """

    def __init__(self, begin: Callable[[Callable[[], Reader], Any, int], Drafter]) -> None:
        self.begin = begin
        self.passes = 0
        self.accepted: list[int] = []

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Write one text, as `_sample` of `transformers` does. Shape: input_ids [1, tokens]."""
        encoded, end = model_kwargs["encoder_outputs"], generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        cache_name = "cache" if "cache" in model_kwargs else "past_key_values"

        def reader() -> Reader:
            return Reader(model.get_decoder(), encoded, cache_name)

        rules = quick(logits_processor, model.config.vocab_size), stopping_criteria
        text = Text(input_ids, *rules, generation_config.max_length)
        self._write(text, reader, self.begin(reader, encoded, end), model.get_output_embeddings())
        if not generation_config.return_dict_in_generate:
            return text.sequences
        return GenerateEncoderDecoderOutput(sequences=text.sequences)

    def _write(
        self, text: Text, new_reader: Callable[[], Reader], drafter: Drafter, head: Any
    ) -> None:
        reader, prompt = new_reader(), len(text.tokens)
        ended: bool | None = False
        while not ended:
            drafted = drafter.propose(text.tokens, text.room)
            states = reader([*text.tokens, *drafted], len(drafted) + 1)[-len(drafted) - 1 :]
            logits = project(states, head.weight) if plain(head) else head(states)
            kept, ended = text.extend(drafted, logits, TIE)
            self._count(kept)
            if ended is None:  # then it is read token by token, with the very numbers of greedy
                reader = new_reader()
                for count in range(prompt, len(text.tokens) + 1):
                    states = reader(text.tokens[:count])
                    self._count(0)
                _, ended = text.extend([], head(states[None])[0, -1:], 0)

    def _count(self, accepted: int) -> None:
        self.passes += 1
        self.accepted.append(accepted)


def drafting(
    draft: Any,
    stack: DecoderStack,
    model: Any,
    policy: Policy | None = None,
    changes: tuple[Any, Any] = (None, None),
) -> Drafting:
    """Return the loop for what `generate` was given as `draft`.

    Args:
        policy: says which layers draft where their number is given; None for the first ones.
        changes: the updates of the model and the norm behind its decoder, as of `running`.

    Raises:
        UsageError: it is none of what `draft` may be.
    """
    if callable(draft):

        def of_text(reader: Callable[[], Reader], encoded: Any, end: int) -> Drafter:
            text = draft(encoded.last_hidden_state)
            return TextDrafts(checked_tokens(text, model.config.vocab_size), end)

        return Drafting(of_text)
    if isinstance(draft, bool):
        raise UsageError("draft is a number of decoder layers or a function, not a bool")
    chosen = draft if isinstance(draft, LayerDraft) else LayerDraft(draft)
    mask = chosen.mask(len(stack), policy)
    head = model.get_output_embeddings()
    if not plain(head):
        raise UsageError(
            f"drafts by decoder layers need a plain product with the vocabulary; got a "
            f"{type(head).__name__}: give draft a function"
        )

    def of_layers(reader: Callable[[], Reader], encoded: Any, end: int) -> Drafter:
        rows, tokens = chosen.shortlist(head.weight, end)
        dropping = partial(running, stack, mask, *changes)
        return LayerDrafts(reader(), dropping, rows, tokens, end)

    return Drafting(of_layers)


def refuse_undraftable(model: Any, inputs: Tensor, kwargs: dict[str, Any]) -> None:
    """Refuse arguments of `generate` that do not go with drafts, before anything runs.

    Raises:
        UsageError: the text says which, and what to do.
    """
    if len(inputs) != 1:
        raise UsageError(f"drafts are for one input at a time; got {len(inputs)}: call it for each")
    autocast = torch.is_autocast_enabled(inputs.device.type)
    if model.dtype != torch.float32 or autocast:
        raise UsageError(
            "drafts need a model in float32, whose noise is small enough to decide nothing; got "
            f"{'autocast' if autocast else model.dtype}: use model.float(), outside of autocast"
        )
    settings = kwargs.get("generation_config") or model.generation_config

    def asked(name: str) -> Any:
        value = kwargs.get(name)
        return getattr(settings, name, None) if value is None else value

    refused = [name for name in NOT_WITH_DRAFTS if asked(name) not in (None, False)]
    refused += [name for name in ("num_beams", "num_return_sequences") if (asked(name) or 1) != 1]
    if kwargs.get("temperature") not in (None, 0, 0.0):  # Whisper samples above 0
        refused.append("temperature")
    if asked("use_cache") is False:
        refused.append("use_cache=False")
    if refused:
        raise UsageError(
            f"{' and '.join(refused)} cannot be had with drafts, which say what greedy generation "
            "says: leave draft out, or that"
        )


NOT_WITH_DRAFTS = (
    "do_sample", "return_timestamps", "return_token_timestamps", "assistant_model",
    "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "penalty_alpha", "dola_layers",
    "constraints", "force_words_ids", "custom_generate", "streamer", "output_scores",
    "output_logits", "output_hidden_states", "logprob_threshold", "no_speech_threshold",
    "compression_ratio_threshold", "cache", "past_key_values", "decoder_attention_mask",
    "decoder_inputs_embeds", "decoder_position_ids", "prefill_chunk_size", "synced_gpus",
)  # fmt: skip


def checked_tokens(text: Any, vocabulary: int) -> list[int]:
    """Return the tokens that a drafter has read.

    Raises:
        UsageError: these are none.
    """
    tokens = text.tolist() if hasattr(text, "tolist") else list(text)
    wrong = [one for one in tokens if not isinstance(one, int) or not 0 <= one < vocabulary]
    if wrong:
        raise UsageError(
            f"a draft is a list of tokens, 0 to {vocabulary - 1}, without a prompt; got "
            f"{wrong[0]!r}"
        )
    return tokens


def plain(head: Any) -> bool:
    """Return whether a head is a product with its weight and no more."""
    return type(head) is nn.Linear and head.bias is None
