"""What a clip is to be answered with, and how wrong an answer is: a class, or a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    ctc_loss,
    kl_div,
)

from ..data.folder import AudioFolder, Clip
from ..data.text import collapse, normalize_text, word_errors
from ..policies.plans import certainty, confidence

Batch: TypeAlias = dict[str, Tensor]


class Target(NamedTuple):
    """Of one clip: indexes of its class or of its tokens, as text, and who speaks."""

    ids: tuple[int, ...]
    text: str
    speaker: str = ""


Targets = Sequence[Target]


class Task(Protocol):
    """What differs between kinds of answers.

    Attributes:
        metric: of `errors` over `weight`.
        by_frame: whether the logits are those of the encoder's frames.
    """

    metric: str
    by_frame: bool

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        """What each clip is to be answered with."""

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        """What the model takes beside features: for a decoder what comes before each token.

        Without targets that is the start only.
        """

    def weight(self, target: Target) -> int:
        """How much there is to get wrong: one class, or so many words."""

    def frames(self, target: Target) -> int:
        """How many frames of the encoder the answer to a clip takes, at least."""

    def positions(self, target: Target) -> int:
        """How many positions of a decoder it takes; 0 without one."""

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Of each clip under each mask.

        Shape: logits [masks, batch, ...], frame_mask [batch, frames] bool or None
        -> [masks, batch].
        """

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        """Kullback-Leibler distance to a teacher's answers, in the units of `losses`.

        Shape: logits [masks, batch, ...], teacher [batch, ...] -> [masks, batch].
        """

    def predict(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """As text. Shape: logits [batch, ...]."""

    def confidence(self, logits: Tensor, frame_mask: Tensor | None) -> Tensor:
        """How sure answers are, as `policies.plans.confidence`; a mean budget stops by it.

        Shape: logits [batch, ...] -> [batch].
        """

    def certainty(self, logits: Tensor, frame_mask: Tensor | None) -> Tensor:
        """The same as `policies.plans.certainty`."""

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """How many: 0 or 1, a share, words, or tokens of a decoder. Shape: as `losses`, float."""

    def count(self, texts: Sequence[str], targets: Targets) -> list[int]:
        """How many errors are in answers: wrong classes or wrong words."""


class _Sure:
    """How sure an answer is: of the likeliest class, or of all that it tells."""

    several = False  # whether an input may have several classes, each a yes or no by itself

    def confidence(self, logits: Tensor, frame_mask: Tensor | None) -> Tensor:
        return confidence(logits, frame_mask, several=self.several)

    def certainty(self, logits: Tensor, frame_mask: Tensor | None) -> Tensor:
        return certainty(logits, frame_mask, several=self.several)


class _Short(_Sure):
    """Answers for which a clip of one frame is long enough."""

    def frames(self, target: Target) -> int:
        return 1

    def positions(self, target: Target) -> int:
        return 0


class Classes(_Short):
    """One class a clip."""

    metric = "accuracy"
    by_frame = False

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        return [Target((folder.label_index(clip),), clip.target) for clip in clips]

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        return batch

    def weight(self, target: Target) -> int:
        return 1

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        wanted = _classes(targets).expand(logits.shape[:2])
        losses = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        return _divergence(logits, teacher)

    def predict(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        return [self.labels[index] for index in logits.argmax(-1).tolist()]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        return (logits.argmax(-1) != _classes(targets)).float()

    def count(self, texts: Sequence[str], targets: Targets) -> list[int]:
        return [int(text != target.text) for text, target in zip(texts, targets, strict=True)]


class Tags(_Short):
    """Several classes a clip, each by itself: yes or no."""

    several = True
    metric = "lrap"  # label-ranking average precision: that of the right classes, clip by clip
    by_frame = False

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        index = {label: place for place, label in enumerate(self.labels)}
        return [Target(tuple(index[tag] for tag in clip.tags), clip.target) for clip in clips]

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        return batch

    def weight(self, target: Target) -> int:
        return 1

    def wanted(self, targets: Targets) -> Tensor:
        """Shape: -> [clips, labels] bool."""
        wanted = torch.zeros(len(targets), len(self.labels), dtype=torch.bool)
        for row, target in zip(wanted, targets, strict=True):
            row[list(target.ids)] = True
        return wanted

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        wanted = self.wanted(targets).float().expand_as(logits)
        return binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(-1)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        yes_no = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
        return _divergence(yes_no, torch.stack([teacher, torch.zeros_like(teacher)], -1)).mean(-1)

    def predict(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        """The classes that are likelier than not, or else the likeliest."""
        chosen = (logits > 0) | (logits == logits.amax(-1, keepdim=True))
        return [";".join(self.labels[i] for i in row.nonzero()[:, 0].tolist()) for row in chosen]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """1 minus the precision at the rank of each right class, in the mean."""
        wanted = self.wanted(targets).expand_as(logits)
        below, order = (-logits.float()).sort(-1)
        hits = wanted.gather(-1, order).float()
        # a class stands behind all that have its score, so that no order of ties counts
        rank = torch.searchsorted(below, below, right=True)
        precision = hits.cumsum(-1).gather(-1, rank - 1) / rank
        return 1 - (precision * hits).sum(-1) / hits.sum(-1).clamp(min=1)

    def count(self, texts: Sequence[str], targets: Targets) -> list[int]:
        return [
            len(set(text.split(";")) ^ set(target.text.split(";")))
            for text, target in zip(texts, targets, strict=True)
        ]


class _Texts(_Short):
    """A text a clip, in its plain form."""

    metric = "wer"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def targets(self, folder: AudioFolder, clips: Sequence[Clip]) -> list[Target]:
        texts = [normalize_text(clip.target) for clip in clips]
        ids = self.tokenizer(texts)["input_ids"] if texts else []
        return [
            Target(tuple(tokens), text, clip.speaker)
            for tokens, text, clip in zip(ids, texts, clips, strict=True)
        ]

    def weight(self, target: Target) -> int:
        return len(target.text.split())

    def count(self, texts: Sequence[str], targets: Targets) -> list[int]:
        return [word_errors(target.text, text) for text, target in zip(texts, targets, strict=True)]


class Recognition(_Texts):
    """A text a clip, by connectionist temporal classification (Graves et al., 2006).

    Losses and distances are per token of the text, so that long clips do not outweigh short ones.

    Args:
        beam: finds the text of a clip in its logits [frames, tokens]; by default the likeliest
            token of each frame counts (greedy).
    """

    by_frame = True

    def __init__(self, tokenizer: Any, beam: Callable[[Tensor], str] | None = None) -> None:
        super().__init__(tokenizer)
        self.beam = beam

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        return batch

    def frames(self, target: Target) -> int:
        """One for each token, and one for the blank between two of a kind."""
        return max(1, len(target.ids) + sum(a == b for a, b in pairwise(target.ids)))

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
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
        distances = _divergence(logits, teacher)
        if frame_mask is not None:
            distances = distances * frame_mask
        return distances.sum(-1) / _tokens(targets).to(distances.device)

    def predict(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        ends = [None] * len(logits) if frame_mask is None else frame_mask.sum(1).tolist()
        if self.beam is not None:
            return [self.beam(one[:end]) for one, end in zip(logits, ends, strict=True)]
        paths = logits.argmax(-1).tolist()
        return self.decode([collapse(path[:end]) for path, end in zip(paths, ends, strict=True)])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Tokens without blanks as text."""
        found = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        return [" ".join(text.split()) for text in found]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        counts = [self.count(self.predict(one, frame_mask), targets) for one in logits]
        return torch.tensor(counts, dtype=torch.float)


class Dictation(_Texts):
    """A text a clip, by the model's own decoder, which is told the tokens before (teacher forcing).

    Losses, distances and errors are of the tokens that come after the prompt (language, task).
    """

    by_frame = False

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.start: list[int] = tokenizer("")["input_ids"][:-1]
        self.prompt = len(self.start)

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        size = len(next(iter(batch.values()))) if batch else 0
        before = [self.start] * size if targets is None else [target.ids[:-1] for target in targets]
        return {**batch, "decoder_input_ids": self._padded(before)}

    def positions(self, target: Target) -> int:
        """One for each token of prompt and text, and one for the end."""
        return len(target.ids)

    def losses(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        wanted, counted = self._wanted(targets)
        each = wanted[counted].expand(len(logits), -1)
        said = logits[:, counted].float().flatten(0, 1)
        losses = cross_entropy(said, each.flatten(), reduction="none")
        return self._mean(losses.view(each.shape), counted)

    def distances(
        self, logits: Tensor, teacher: Tensor, frame_mask: Tensor | None, targets: Targets
    ) -> Tensor:
        counted = self._wanted(targets)[1]
        return self._mean(_divergence(logits[:, counted], teacher[counted]), counted)

    def predict(self, logits: Tensor, frame_mask: Tensor | None) -> list[str]:
        return self.decode(logits.argmax(-1).tolist())

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """What was generated, as text in its plain form."""
        return [
            normalize_text(t)
            for t in self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
        ]

    def errors(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> Tensor:
        """Tokens that are not the likeliest, given those before. Shape: as `losses`."""
        wanted, counted = self._wanted(targets)
        return ((logits.argmax(-1) != wanted) & counted).sum(-1).float()

    def _wanted(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """The tokens, and which of them count. Shape: [batch, tokens] int and bool."""
        wanted = self._padded([target.ids[1:] for target in targets])
        place = torch.arange(wanted.shape[1])
        ends = torch.tensor([len(target.ids) - 1 for target in targets])
        return wanted, (place >= self.prompt - 1) & (place < ends[:, None])

    def _padded(self, ids: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(one) for one in ids)
        pad = self.tokenizer.pad_token_id
        return torch.tensor([[*one, *[pad] * (longest - len(one))] for one in ids])

    @staticmethod
    def _mean(values: Tensor, counted: Tensor) -> Tensor:
        """Over the tokens of each clip that count: of a vocabulary of 50,000, the others cost much.

        Shape: values [masks, all counted], counted [batch, tokens] bool -> [masks, batch].
        """
        clip = counted.nonzero()[:, 0].to(values.device)
        sums = values.new_zeros(len(values), len(counted)).index_add(1, clip, values)
        return sums / counted.sum(-1).to(values.device)


def _classes(targets: Targets) -> Tensor:
    return torch.tensor([target.ids[0] for target in targets])


def _tokens(targets: Targets) -> Tensor:
    return torch.tensor([max(1, len(target.ids)) for target in targets])


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Shape: [masks, batch, ..., labels], [batch, ..., labels] -> [masks, batch, ...]."""
    given = logits.float().log_softmax(-1)
    target = teacher.float().log_softmax(-1).expand_as(given)
    return kl_div(given, target, log_target=True, reduction="none").sum(-1)
