"""A run's answer for a batch at a budget, by the rules of the method that trained it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.language import known_languages, language_code
from ..policies.masks import random_masks
from ..runs.run import Batch, Run
from ..tasks.kinds import Dictation

RANDOM = ("random", "dld")


class Prediction(NamedTuple):
    """Answers to a batch.

    Attributes:
        texts: the class or the text of each input.
        logits: None from a decoder.

    Shape:
        executed: [batch, layers] bool.
    """

    texts: list[str]
    executed: Tensor
    logits: Tensor | None


@torch.inference_mode()
def predict_logits(
    run: Run, batch: Batch, k: int | str, random: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits with `k` kept layers, and the layers that ran.

    "random" and "dld" keep the layers of the masks `random`, by default always the same k random
    ones; all others ask their selector, which is "the first k" for "full" and "early-exit".

    Args:
        k: or a mean budget ("mean:3"), for the methods that have one.

    Shape: random [batch, layers] bool -> [batch, labels] float, [batch, layers] bool.
    """
    out = run.dynamic(**batch, **_choice(run, k, random))
    return out.logits, out.executed_layers


@torch.inference_mode()
def predict(run: Run, batch: Batch, k: int | str, random: Tensor | None = None) -> Prediction:
    """As `predict_logits`, in words; by its decoder where a run has one.

    A batch for a decoder has inputs of one length.
    """
    if not isinstance(run.task, Dictation):
        logits, executed = predict_logits(run, batch, k, random)
        return Prediction(run.task.predict(logits, run.frame_mask(batch, logits)), executed, logits)
    settings: dict[str, Any] = {}
    if getattr(run.dynamic.generation_config, "is_multilingual", False):
        known = known_languages(run.dynamic.generation_config)
        settings = {"language": language_code(run.config.language, known), "task": "transcribe"}
    settings |= {**batch, **_choice(run, k, random), "return_dict_in_generate": True}
    out = run.dynamic.generate(**settings)
    return Prediction(run.task.decode(out["sequences"].tolist()), out["executed_layers"], None)


def _choice(run: Run, k: int | str, random: Tensor | None) -> dict[str, Any]:
    """The budget, or the mask, for a call of the model."""
    layers = run.dynamic.num_layers
    if isinstance(k, str) or run.config.method not in RANDOM or k == layers:
        return {"budget": k}
    if random is None:
        random = random_masks(np.random.default_rng(0), 1, layers, k)[0]
    return {"mask": random}
