"""Moonshine's tokenizer: the pieces of its file, as a tokenizer of `transformers`.

The file has, for each piece in the order of the ids, its length in a byte and its UTF-8. The first
are <unk>, <s> and </s>, then the 256 bytes, then the pieces of a byte-pair encoding from the
commonest on, in which U+2581 is a space (as SentencePiece has it).
"""

from __future__ import annotations

from typing import Any

from .packages import WeightsError

SPECIAL = ["<unk>", "<s>", "</s>"]
FIRST_BYTE, FIRST_PIECE = len(SPECIAL), len(SPECIAL) + 256
SPACE = "\u2581"


def moonshine_tokenizer(data: bytes, vocab_size: int) -> Any:
    """Return the tokenizer of a file; unnamed ids up to `vocab_size` are time marks.

    Raises:
        WeightsError: a file that is no such tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = _vocabulary(read_pieces(data))
    model = models.BPE(vocabulary, merges(vocabulary), unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    begin, end = SPECIAL[1:]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(token, vocabulary[token]) for token in (begin, end)],
    )
    marks = [f"<<ST_{index}>>" for index in range(vocab_size - len(vocabulary))]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        unk_token=SPECIAL[0],
        clean_up_tokenization_spaces=False,
    )


def read_pieces(data: bytes) -> list[bytes]:
    """Return the pieces of a file.

    Raises:
        WeightsError: a file that ends within a piece.
    """
    pieces, place = [], 0
    while place < len(data):
        end = place + 1 + data[place]
        if end > len(data):
            raise WeightsError("the tokenizer is cut off within a token: fetch it again")
        pieces.append(data[place + 1 : end])
        place = end
    return pieces


def _vocabulary(pieces: list[bytes]) -> dict[str, int]:
    special = [token.encode() for token in SPECIAL]
    every_byte = [bytes([value]) for value in range(256)]
    if pieces[:FIRST_PIECE] != special + every_byte:
        raise WeightsError("the tokenizer does not begin with <unk>, <s>, </s> and the bytes")
    names = [*SPECIAL, *(f"<0x{value:02X}>" for value in range(256))]
    try:
        names += [piece.decode() for piece in pieces[FIRST_PIECE:]]
    except UnicodeDecodeError:
        raise WeightsError("the tokenizer has a piece that is not UTF-8: fetch it again") from None
    vocabulary = {name: index for index, name in enumerate(names)}
    if len(vocabulary) < len(names):
        raise WeightsError("the tokenizer has a piece twice: fetch it again")
    return vocabulary


def merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return which two pieces each piece is made of, the commonest first.

    A piece comes from any two others that make it, as SentencePiece joins the pair whose whole has
    the lowest id.
    """
    made = []
    for piece, index in vocabulary.items():
        if index < FIRST_PIECE:
            continue
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
        made += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return made
