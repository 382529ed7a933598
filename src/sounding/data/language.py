"""Languages of a Whisper: their codes and English names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import UsageError


def known_languages(generation_config: Any) -> list[str]:
    """Return the codes of the languages that a model knows; none where it does not say.

    Args:
        generation_config: of the model, as `transformers` has it.
    """
    many = getattr(generation_config, "lang_to_id", None)
    if many:
        return sorted(token.strip("<|>") for token in many)
    return ["en"] if getattr(generation_config, "is_multilingual", None) is False else []


def language_code(language: str, known: Collection[str] = ()) -> str:
    """Return the code of a language that is given by its code or its English name.

    Upper and lower case are one, and a region is left out: "EN", "English" and "en-US" are "en".

    Args:
        known: codes of the model's languages; empty for all that a Whisper may know.

    Raises:
        UsageError: it is none of them.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    known = known or LANGUAGES
    name = language.strip().lower().replace("_", "-")
    for part in (name, name.partition("-")[0]):
        code = TO_LANGUAGE_CODE.get(part, part)
        if code in known:
            return code
    more = ": take a model of many languages, such as whisper-base" if len(known) == 1 else ""
    raise UsageError(
        f"language {language!r} is not one of this model's: {', '.join(sorted(known))}{more}"
    )
