"""What a clip is to be answered with, and how wrong an answer is: a class, or a text by CTC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, ctc_loss, kl_div

from ..data.folder import AudioFolder, Clip
from ..data.text import collapse, plain, word_errors


class Goal(NamedTuple):
    """Of one clip: indexes of its class or of its tokens, and as text."""

    ids: tuple[int, ...]
    text: str


Goals = Sequence[Goal]


class Task(Protocol):
    """What differs between kinds of answers.

    Attributes:
        metric: of `errors` over `weight`.
    """

    metric: str

    def goals(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Goal]:
        """What each clip is to be answered with."""

    def weight(self, goal: Goal) -> int:
        """How much there is to get wrong: one class, or so many words."""

    def losses(self, logits: Tensor, frame_mask: Tensor | None, goals: Goals) -> Tensor:
        """Of each clip under each mask.

        Shape: logits [masks, batch, ...], frame_mask [batch, frames] bool or None
        -> [masks, batch].
        """

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, goals: Goals
    ) -> Tensor:
        """Kullback-Leibler distance to a teacher's answers, in the units of `losses`.

        Shape: logits [masks, batch, ...], teacher [batch, ...] -> [masks, batch].
        """

    def answers(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """As text. Shape: logits [batch, ...]."""

    def errors(self, logits: Tensor, frame_mask: Tensor | None, goals: Goals) -> Tensor:
        """How many: 0 or 1, or words. Shape: as `losses`, float."""


class Classes:
    """One class a clip."""

    metric = "accuracy"

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels

    def goals(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Goal]:
        return [Goal((folder.label_index(clip),), clip.target) for clip in clips]

    def weight(self, goal: Goal) -> int:
        return 1

    def losses(self, logits: Tensor, frame_mask: Tensor | None, goals: Goals) -> Tensor:
        wanted = _classes(goals).expand(logits.shape[:2])
        losses = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, goals: Goals
    ) -> Tensor:
        return _divergence(logits, teacher)

    def answers(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        return [self.labels[index] for index in logits.argmax(-1).tolist()]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, goals: Goals) -> Tensor:
        return (logits.argmax(-1) != _classes(goals)).float()


class Recognition:
    """A text a clip, by connectionist temporal classification (Graves et al., 2006).

    Losses and distances are per token of the text, so that long clips do not outweigh short ones.
    """

    metric = "wer"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def goals(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Goal]:
        texts = [plain(clip.target) for clip in clips]
        ids = self.tokenizer(texts)["input_ids"] if texts else []
        return [Goal(tuple(tokens), text) for tokens, text in zip(ids, texts, strict=True)]

    def weight(self, goal: Goal) -> int:
        return len(goal.text.split())

    def losses(self, logits: Tensor, frame_mask: Tensor | None, goals: Goals) -> Tensor:
        masks, batch, frames, tokens = logits.shape
        log_p = logits.float().log_softmax(-1).view(-1, frames, tokens).transpose(0, 1)
        lengths = torch.full((batch,), frames) if frame_mask is None else frame_mask.sum(1).cpu()
        wanted = torch.tensor([token for goal in goals for token in goal.ids] * masks)
        sizes = torch.tensor([len(goal.ids) for goal in goals])
        losses = ctc_loss(
            log_p,
            wanted.to(log_p.device),
            lengths.repeat(masks),
            sizes.repeat(masks),
            reduction="none",
            zero_infinity=True,  # a text too long for its clip teaches nothing
        )
        return losses.view(masks, batch) / _tokens(goals).to(losses.device)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, goals: Goals
    ) -> Tensor:
        distances = _divergence(logits, teacher)
        if frame_mask is not None:
            distances = distances * frame_mask
        return distances.sum(-1) / _tokens(goals).to(distances.device)

    def answers(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """Greedy: the likeliest token of each frame."""
        paths = logits.argmax(-1).tolist()
        ends = [None] * len(paths) if frame_mask is None else frame_mask.sum(1).tolist()
        return self.decode([collapse(path[:end]) for path, end in zip(paths, ends, strict=True)])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Tokens without blanks as text."""
        found = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return [" ".join(text.split()) for text in found]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, goals: Goals) -> Tensor:
        count = [
            [
                word_errors(goal.text, heard)
                for goal, heard in zip(goals, self.answers(one, frame_mask), strict=True)
            ]
            for one in logits
        ]
        return torch.tensor(count, dtype=torch.float)


def _classes(goals: Goals) -> Tensor:
    return torch.tensor([goal.ids[0] for goal in goals])


def _tokens(goals: Goals) -> Tensor:
    return torch.tensor([max(1, len(goal.ids)) for goal in goals])


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Shape: [masks, batch, ..., labels], [batch, ..., labels] -> [masks, batch, ...]."""
    given = logits.float().log_softmax(-1)
    goal = teacher.float().log_softmax(-1).expand_as(given)
    return kl_div(given, goal, log_target=True, reduction="none").sum(-1)
