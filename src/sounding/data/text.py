"""Texts of clips: their plain form, the vocabulary of a CTC model, and errors in words."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from ..errors import UsageError

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "▁"  # <pad> is the blank, as in transformers
CHARACTERS = "characters"
INSTALL = 'pip install "sounding[asr]"'
# typographic ones, modifier letters, prime, full width, and accents that stand alone
MARKS = "\u2018\u2019\u201b\u02b9\u02bb\u02bc\u2032\uff07\u00b4`"
APOSTROPHES = dict.fromkeys(map(ord, MARKS), "'")


def tidy(text: str) -> str:
    """Write what looks the same in the same way.

    Letters and their accents are composed (NFC), every apostrophe is a straight one, white space of
    any kind is a space, and what cannot be seen (soft hyphens, joiners, marks) is gone.

    >>> tidy("don\u2019t co\u00adoperate\u00a0at the cafe\u0301")
    "don't cooperate at the café"
    """
    text = unicodedata.normalize("NFC", text).translate(APOSTROPHES)
    seen = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cf")
    return " ".join(seen.split())


def normalize_text(text: str) -> str:
    """Write a text in lower case, without punctuation but for apostrophes within a word.

    >>> normalize_text("WE'LL call it -- 'Bear', well-known.")
    "we'll call it bear well known"
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tidy(text)).lower())
    kept = "".join(c if c.isalnum() or c == "'" or _is_mark(c) else " " for c in text)
    return " ".join(word for word in (w.strip("'") for w in kept.split()) if word)


def whisper_plain(text: str) -> str:
    """Write English as Whisper's papers compare it: no contractions or "um", American spelling.

    Numbers become digits.

    Raises:
        ModuleNotFoundError: whisper-normalizer is not installed.
    """
    words = str(_whisper()(tidy(text))).split()  # of "..." it leaves a full stop
    return " ".join(word for word in words if any(c.isalnum() for c in word))


@cache
def _whisper() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"Whisper's normalizer needs whisper-normalizer: {INSTALL}"
        ) from None
    return EnglishTextNormalizer()


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def printable(name: str) -> str:
    r"""Return the name of a file as valid Unicode: what is no UTF-8 in it is written as \udcXX.

    >>> printable("caf\udce9.wav")
    'caf\\udce9.wav'
    """
    return name.encode(errors="backslashreplace").decode()


def build_tokenizer(texts: Iterable[str], vocabulary: str = CHARACTERS) -> Any:
    """Make a tokenizer of `transformers` for CTC from training texts; token 0 is the blank.

    Args:
        texts: in their plain form.
        vocabulary: "characters", or a number of tokens: pieces of words by byte-pair encoding
            (arXiv 1508.07909), as SentencePiece has them.

    Raises:
        UsageError: no text, or another vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    known = sorted({text for text in texts if text})
    if not known:
        raise UsageError("no text to make a vocabulary from: all are empty")
    special = [BLANK, UNKNOWN]
    alphabet = sorted({c for text in known for c in text if c != " "})
    size = int(vocabulary) if vocabulary.isdecimal() else 0
    if vocabulary != CHARACTERS and size < len(alphabet) + 4:
        raise UsageError(
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
    """Return all tokens, in the order of the logits."""
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def word_errors(said: str, heard: str) -> int:
    """Count the words that were substituted, left out and added, at least.

    Texts are taken as they are but for `tidy`.

    Raises:
        ModuleNotFoundError: jiwer is not installed.

    >>> word_errors("we call it bear", "we called it a bear")
    2
    """
    said, heard = tidy(said), tidy(heard)
    if not said:  # jiwer takes none
        return len(heard.split())
    return _errors(_jiwer().process_words(said, heard))


def character_errors(said: str, heard: str) -> int:
    """Count what `word_errors` does in characters; a space is one."""
    said, heard = tidy(said), tidy(heard)
    return _errors(_jiwer().process_characters(said, heard)) if said else len(heard)


def _errors(aligned: Any) -> int:
    return int(aligned.substitutions + aligned.deletions + aligned.insertions)


def _jiwer() -> Any:
    try:
        import jiwer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"errors in words need jiwer: {INSTALL}") from None
    return jiwer


def spelled(tokens: Iterable[str]) -> str:
    """Return the text that tokens make, those of a path collapsed."""
    text = "".join(token for token in tokens if token not in (BLANK, UNKNOWN))
    return " ".join(text.replace(SPACE, " ").split())


def collapse(ids: Sequence[int], blank: int = 0) -> list[int]:
    """Return the tokens of a path of CTC: repeats are one token, blanks none.

    >>> collapse([0, 5, 5, 0, 5, 7, 7])
    [5, 5, 7]
    """
    return [b for a, b in zip([blank, *ids], ids, strict=False) if b not in (a, blank)]
