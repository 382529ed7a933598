"""A text a clip, by connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss
from transformers import PreTrainedTokenizerFast

from ..data.folder import AudioFolder
from ..data.text import build_tokenizer, collapse, normalize_text
from ..files import atomic_directory
from ..weights import pretrained
from .base import Target, Targets, divergence
from .heads import recognizer
from .setup import Settings
from .texts import Texts


class CTC(Texts):
    """A text a clip, by connectionist temporal classification (Graves et al., 2006).

    Losses and distances are per token of the text, so that long clips do not outweigh short ones.
    Without a beam search the likeliest token of each frame counts (greedy).
    """

    runtime = "text"
    by_frame = True
    takes_beam = True
    head_rate = 1e-2  # the model predicts nothing but blanks until its head has learned
    too_short = (
        "are too short for their texts (by CTC a text takes a frame for each token, and one more "
        "between two that are alike)"
    )
    too_short_advice = (
        "look whether texts and clips belong together, or take pieces of words as tokens "
        "(--set vocabulary=500)"
    )
    title = "A speech recognizer (CTC)"

    @classmethod
    def make_tokenizer(cls, settings: Settings, folder: AudioFolder, directory: Path) -> Any:
        """Return the tokenizer of a run; the first time it is made from the training texts."""
        directory = directory / "tokenizer"
        if not directory.is_dir():
            texts = [normalize_text(clip.target) for clip in folder.split("train")]
            made = build_tokenizer(texts, settings.vocabulary)
            with atomic_directory(directory) as temporary:
                made.save_pretrained(temporary)
        return cls.load_tokenizer(directory)

    @classmethod
    def load_tokenizer(cls, directory: Path) -> Any:
        """Return the tokenizer that lies beside a saved model."""
        return pretrained(PreTrainedTokenizerFast, directory)

    def build(self, path: Path | str) -> Any:
        """Return the pretrained model in `path` with a CTC head for the labels."""
        return recognizer(path, len(self.labels))

    def frames(self, target: Target) -> int:
        """Return one for each token, and one for the blank between two of a kind."""
        return max(1, len(target.ids) + sum(a == b for a, b in pairwise(target.ids)))

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Return the CTC loss of each clip under each mask, per token of its text.

        Shape: logits [masks, batch, frames, tokens], frame_mask [batch, frames] bool or None
        -> [masks, batch].
        """
        masks, batch, frames, tokens = logits.shape
        log_p = logits.float().log_softmax(-1).view(-1, frames, tokens).transpose(0, 1)
        lengths = torch.full((batch,), frames) if frame_mask is None else frame_mask.sum(1).cpu()
        ids = [token for target in targets for token in target.ids] * masks
        wanted = torch.tensor(ids, dtype=torch.long)  # where all texts are empty, too
        sizes = torch.tensor([len(target.ids) for target in targets])
        losses = ctc_loss(
            log_p,
            wanted.to(log_p.device),
            lengths.repeat(masks),
            sizes.repeat(masks),
            reduction="none",
            zero_infinity=True,  # a text too long for its clip teaches nothing; see `fitting`
        )
        return losses.view(masks, batch) / _tokens(targets).to(losses.device)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        """Return the divergence from a teacher, summed over the frames, per token of the text.

        Shape: logits [masks, batch, frames, tokens], teacher [batch, frames, tokens]
        -> [masks, batch].
        """
        distances = divergence(logits, teacher)
        if frame_mask is not None:
            distances = distances * frame_mask
        return distances.sum(-1) / _tokens(targets).to(distances.device)

    def counted(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> list[Tensor]:
        """Return the logits of the frames that are no padding. Shape: -> [frames, tokens] each."""
        if frame_mask is None:
            return list(logits)
        return [one[keep] for one, keep in zip(logits, frame_mask, strict=True)]

    def emphasis(self, labels: Tensor) -> Tensor:
        """Return equal weights, so that the sum over the frames is per token."""
        return torch.full(labels.shape, 1 / max(1, len(collapse(labels.tolist()))))

    def decode(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """Return the text of each input, by the beam search if there is one.

        Shape: logits [batch, frames, tokens].
        """
        ends = [None] * len(logits) if frame_mask is None else frame_mask.sum(1).tolist()
        if self.beam is not None:
            return [self.beam(one[:end]) for one, end in zip(logits, ends, strict=True)]
        paths = logits.argmax(-1).tolist()
        return self.spell([collapse(path[:end]) for path, end in zip(paths, ends, strict=True)])

    def spell(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return tokens without blanks as text."""
        found = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return [" ".join(text.split()) for text in found]


def _tokens(targets: Targets) -> Tensor:
    return torch.tensor([max(1, len(target.ids)) for target in targets])
