"""Pretrained models with the head of a task: their own, that of `transformers`, or ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoModelForCTC

from ..errors import UsageError
from ..model.backbones import find_backbone
from ..model.heads import HEADS, EncoderForAudioClassification, EncoderForCTC
from ..weights import pretrained, pretrained_model, read_config

MASKED = "masked_spec_embed"  # stands for masked spans in pretraining; fine-tuned models lack it


def classifier(path: Path | str, labels: list[str], *, several: bool = False) -> Any:
    """Return the pretrained model in `path` with a classification head, one logit a label.

    Args:
        several: whether an input may have several labels.

    Raises:
        ValueError: as `whole`, or a model with a head for texts.
    """
    names = dict(enumerate(labels))
    naming: dict[str, Any] = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    if several:
        naming["problem_type"] = "multi_label_classification"
    loading: dict[str, Any] = {"ignore_mismatched_sizes": True, "dtype": torch.float32, **naming}
    if _saved_by(path, EncoderForAudioClassification):
        return whole(EncoderForAudioClassification, path, **loading)
    if type(pretrained(AutoConfig, path)) in AutoModelForAudioClassification._model_mapping:
        return whole(AutoModelForAudioClassification, path, **loading)
    model = whole(AutoModel, path, dtype=torch.float32)
    return EncoderForAudioClassification.of(model, **naming)


def recognizer(path: Path | str, tokens: int) -> Any:
    """Return the pretrained model in `path` with a CTC head of so many tokens.

    A model that has such a head keeps it.

    Raises:
        ValueError: as `whole`, or a model without frames in time to recognize a text from.
    """
    loading: dict[str, Any] = {"ignore_mismatched_sizes": True, "dtype": torch.float32}
    loading |= {"vocab_size": tokens}
    if _saved_by(path, EncoderForCTC):
        return whole(EncoderForCTC, path, **loading)
    config = pretrained(AutoConfig, path)
    if getattr(config, "add_adapter", False):
        raise UsageError(f"{path} has an adapter behind its layers: recognition needs one without")
    if type(config) in AutoModelForCTC._model_mapping:
        return whole(AutoModelForCTC, path, **loading, pad_token_id=0)
    if config.model_type == "audio-spectrogram-transformer":
        raise UsageError(f"{path} has no frames in time to recognize a text from: take another")
    model = whole(AutoModel, path, dtype=torch.float32)
    return EncoderForCTC.of(model, vocab_size=tokens)


def whole(kind: Any, path: Path | str, **loading: Any) -> Any:
    """Return a pretrained model whose head may be new, but not its encoder.

    Raises:
        ValueError: weights of the encoder are not there or do not fit: they would be random ones.
    """
    model, info = pretrained_model(kind, path, output_loading_info=True, **loading)
    _, base = find_backbone(model)
    name = next(name for name, module in model.named_modules() if module is base)
    encoder = {f"{name}.{part}".lstrip(".") for part, _ in base.named_parameters()}
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    lost = sorted(key for key in missing & encoder if not key.endswith(MASKED))
    if lost:
        raise UsageError(
            f"{path} lacks {len(lost)} of {len(encoder)} weights of its encoder, such as "
            f"{lost[0]}, or has them in other shapes: copy it again, or take another"
        )
    return model


def _saved_by(path: Path | str, head: type) -> bool:
    """Return whether the model in `path` is one with this head of ours, as of a run to go on from.

    Raises:
        ValueError: it has the other head of ours.
    """
    try:
        (name,) = read_config(path)["architectures"]
    except (ValueError, KeyError, TypeError):
        return False  # transformers says what is wrong with it
    if not isinstance(name, str):
        return False
    if name in HEADS and HEADS[name] is not head:
        raise UsageError(f"{path} holds an {name}, which this task cannot go on from")
    return name in HEADS
