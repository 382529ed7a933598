"""Texts of clips: their plain form, the vocabulary of a CTC model, and errors in words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "▁"  # <pad> is the blank, as in transformers
CHARACTERS = "characters"


def plain(text: str) -> str:
    """Lower case, without punctuation but for apostrophes within a word.

    >>> plain("WE'LL call it -- 'Bear', well-known.")
    "we'll call it bear well known"
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    kept = "".join(c if c.isalnum() or c == "'" or _is_mark(c) else " " for c in text)
    return " ".join(word for word in (w.strip("'") for w in kept.split()) if word)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def build_tokenizer(texts: Iterable[str], vocabulary: str = CHARACTERS) -> Any:
    """A tokenizer of `transformers` for CTC, made from training texts; token 0 is the blank.

    Args:
        texts: in their plain form.
        vocabulary: "characters", or a number of tokens: pieces of words by byte-pair encoding
            (arXiv 1508.07909), as SentencePiece has them.

    Raises:
        ValueError: no text, or another vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    known = sorted({text for text in texts if text})
    if not known:
        raise ValueError("no text to make a vocabulary from: all are empty")
    special = [BLANK, UNKNOWN]
    alphabet = sorted({c for text in known for c in text if c != " "})
    size = int(vocabulary) if vocabulary.isdecimal() else 0
    if vocabulary != CHARACTERS and size < len(alphabet) + 4:
        raise ValueError(
            f"vocabulary is {CHARACTERS!r}, or a number of tokens from {len(alphabet) + 4} on "
            f"(these texts have {len(alphabet)} characters); got {vocabulary!r}"
        )
    tokens = [*special, SPACE, *alphabet]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token=UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
    if size:
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(known, trainer)
    tokenizer.decoder = decoders.Metaspace(SPACE)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=BLANK,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def tokens_of(tokenizer: Any) -> list[str]:
    """All tokens, in the order of the logits."""
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def word_errors(said: str, heard: str) -> int:
    """Substituted, deleted and inserted words, at least.

    >>> word_errors("we call it bear", "we called it a bear")
    2
    """
    distance = _distance()
    return int(distance(said.split(), heard.split()))


def _distance() -> Any:
    try:
        from rapidfuzz.distance import Levenshtein
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'recognition needs more packages: pip install "sounding[asr]"'
        ) from None
    return Levenshtein.distance


def collapse(ids: Sequence[int], blank: int = 0) -> list[int]:
    """The tokens of a path of CTC: repeats are one token, blanks none.

    >>> collapse([0, 5, 5, 0, 5, 7, 7])
    [5, 5, 7]
    """
    return [b for a, b in zip([blank, *ids], ids, strict=False) if b not in (a, blank)]
