"""The full depth teaches the reduced ones, and itself stays as it was pretrained.

No targets are needed: the teacher is the model at full depth, and what is trained are changes of
its weights that act below full depth only (`model.updates`). A model with a fixed window (Whisper)
hears a clip padded to it as the teacher, and at its own length as the student, so that the
reduced model learns to do without the padding too; ACFT (futo-org/whisper-acft) repairs a shorter
context in the same spirit. The distance is the divergence of the answers, a decoder's under
teacher forcing, and that of the encoder's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..data.features import load_features
from ..data.folder import AudioFolder, Clip
from ..errors import UsageError
from ..model.call import activate
from ..model.decoder import running
from ..model.updates import add_updates
from ..policies import StaticScores
from ..runs.run import Batch, Run, load_run
from ..tasks.imitation import Target, Targets, encoder_outputs
from ..tasks.written import pad_with_silence
from . import OUTPUTS
from .base import Method, Step
from .full import FullDepth
from .teaching import TeacherOutput, teacher_outputs

STATE_WEIGHT = 0.5  # of the encoder's output, beside the answers
SILENCE = (20, 200)  # feature frames behind the longest clip of a batch: 0.2 to 2 s
DECODER_SHARE = 2 / 3  # its least depth, as a share of `least_depth`
STUDENT_SHARE = 0.5  # of the steps in which a decoder alone hears what a reduced encoder makes
SEARCHED = 24  # clips by which the layers to keep are found


class Pass(NamedTuple):
    """What one pass through the encoder comes to.

    Attributes:
        states: the encoder's output. Shape: [batch, frames, width].
        logits: one for each depth of the decoder that answered. Shape: [batch, ...].
    """

    states: Tensor
    logits: list[Tensor]


class Distillation(Method):
    """Learns each reduced depth from the full one, whose weights stay as they are."""

    name = "distill"
    label = "distilled updates"
    color = "#b8336a"
    arms = "blind"
    labelled = False
    own_teacher = True
    teacher_method = FullDepth.name  # in a study; else of any

    def start(self, config: Any, folder: AudioFolder, info: dict[str, Any], out: Path) -> Run:
        """Make a run of a pretrained recognizer, or of the finished run `teacher`.

        Raises:
            UsageError: a model of one layer, which has no depth below full.
        """
        if config.teacher:
            run = load_run(config.teacher)
            run.info = {**run.info, **info, "task": run.info.get("task", "classification")}
            run.config = config
        else:
            run = super().start(config, folder, info, out)
        if run.dynamic.updates is not None:  # distilled before: it goes on from there
            return run
        if run.dynamic.num_layers < 2:
            raise UsageError("the model has one layer, and no depth below full to distill")
        ranks = {"encoder": config.rank}
        if run.dynamic.decoder_stack is not None:
            ranks["decoder"] = max(1, config.rank // 2)
        window = run.dynamic.backbone.window(run.dynamic.base)
        own_length = run.task.token_by_token and window is not None
        add_updates(run.dynamic, ranks, own_length=own_length)
        return run

    def prepare(self, run: Run, clips: Sequence[Clip], targets: Targets, out: Path) -> Targets:
        """Let the teacher answer the clips, and find the layers to keep at each depth."""
        run.lessons = teacher_outputs(run, clips, out / OUTPUTS)
        ids = [run.lessons.written(index) for index in range(len(clips))]
        targets = [
            Target(tuple(one), target.text, target.speaker)
            for one, target in zip(ids, targets, strict=True)
        ]
        rows = np.random.default_rng(run.config.seed).permutation(len(clips))[:SEARCHED].tolist()
        heard = torch.cat([run.lessons[row].states.float() for row in rows])
        run.lessons.deviation = heard.std(0).clamp(min=1e-3)
        updates: Any = run.dynamic.updates
        run.lessons.student_heard = not _are_new(updates.layers["encoder"])
        if _are_new(updates):
            _choose_layers(run, [clips[row] for row in rows], [targets[row] for row in rows], rows)
        run.dynamic.decoder_trained = run.dynamic.decoder_stack is not None
        return targets

    def parameters(self, run: Run) -> Iterator[nn.Parameter]:
        """Return the updates."""
        updates = run.dynamic.updates
        assert updates is not None
        names = [name for name in updates.ranks if run.config.distilled in (name, "both")]
        for stacks in (updates.layers, updates.norms):
            for name in names:
                if name in stacks:
                    yield from stacks[name].parameters()

    def loss(self, run: Run, batch: Batch, targets: Targets, step: Step) -> Tensor:
        """Return the distance from the teacher at two depths, in the mean. Shape: -> []."""
        dynamic: Any = run.dynamic
        rng = step.rng
        lessons = [run.lessons[row] for row in step.rows]
        if run.config.distilled == "decoder":
            return _decoder_loss(run, batch, lessons, targets, rng)
        batch, size, padded = _context(run, batch, rng)
        lessons, targets = lessons[:size], targets[:size]
        depths = _depths(dynamic.num_layers, run.config.least_depth)
        if padded or not dynamic.updates.own_length:
            depths = depths[:-1]  # the full depth is the teacher itself
        losses = []
        for place, k in enumerate(rng.choice(depths, min(2, len(depths)), replace=False)):
            decoders: list[int | None] = [None]
            if place == 0 and run.config.distilled == "both":
                decoders += _decoder_depths(run, rng, 1)
            made = _run(run, batch, int(k), decoders)
            distance = _state_distance(made.states, lessons, run.lessons.deviation)
            losses.append(STATE_WEIGHT * distance)
            losses += [_answer_distance(run, batch, one, lessons, targets) for one in made.logits]
        return torch.stack(losses).sum() / 2


def _depths(layers: int, least: float) -> list[int]:
    """Return the numbers of layers that are trained, full depth last."""
    return list(range(max(1, min(layers - 1, round(layers * least))), layers + 1))


def _decoder_depths(run: Run, rng: np.random.Generator, count: int) -> list[int]:
    """Draw depths of the decoder below full; none without a decoder that drops layers."""
    stack = run.dynamic.decoder_stack
    if stack is None or len(stack) < 2:
        return []
    depths = _depths(len(stack), DECODER_SHARE * run.config.least_depth)[:-1]
    drawn = rng.choice(depths, min(count, len(depths)), replace=False)
    return [int(depth) for depth in drawn]


def _decoder_loss(
    run: Run,
    batch: Batch,
    lessons: Sequence[TeacherOutput],
    targets: Targets,
    rng: np.random.Generator,
) -> Tensor:
    """Return the distance of the decoder's answers from the teacher's, at two depths.

    It hears what the teacher heard, and no encoder runs; or, where the encoder was distilled, in
    half of the steps what that makes of the clips at a random depth and their own length.

    Raises:
        UsageError: the model has no decoder that drops layers, or knows padding.
    """
    dynamic: Any = run.dynamic
    depths = _decoder_depths(run, rng, 2)
    if not depths or not dynamic.updates.own_length:
        raise UsageError('distilled is "decoder" for a Whisper with two decoder layers or more')
    if run.lessons.student_heard and rng.random() < STUDENT_SHARE:
        batch = with_silence(run, batch, int(rng.integers(*SILENCE)))
        depth = int(rng.choice(_depths(dynamic.num_layers, run.config.least_depth)))
        with torch.no_grad():
            encoded = _encode(dynamic, batch, depth, None)
    else:
        encoded = taught(run, lessons)
    masks = [decoder_mask(run, k) for k in depths]
    return torch.stack(
        [decoder_distance(run, batch, encoded, lessons, targets, mask) for mask in masks]
    ).mean()


def decoder_distance(
    run: Run,
    batch: Batch,
    encoded: BaseModelOutput,
    lessons: Sequence[TeacherOutput],
    targets: Targets,
    kept: Tensor,
) -> Tensor:
    """Return the distance of the answers of some decoder layers from the teacher's.

    Args:
        encoded: what the decoder hears.

    Shape: kept [layers] bool -> [], the mean over the clips, in nats a position.
    """
    dynamic: Any = run.dynamic
    with running(dynamic.decoder_stack, kept, dynamic.updates, dynamic.decoder_norm):
        logits = _decode(dynamic, batch, encoded)
    return _answer_distance(run, batch, logits, lessons, targets)


def taught(run: Run, lessons: Sequence[TeacherOutput]) -> BaseModelOutput:
    """Return what the teacher's decoder heard of some clips. Shape: [batch, frames, width]."""
    longest = max(len(one.states) for one in lessons)
    heard = torch.stack([_lasting(one.states.float(), longest) for one in lessons])
    return BaseModelOutput(last_hidden_state=heard.to(run.dynamic.device))


def _lasting(states: Tensor, frames: int) -> Tensor:
    """Return states with the silence at their end made longer. Shape: -> [frames, width]."""
    return torch.cat([states, states[-1:].expand(frames - len(states), -1)])


def _are_new(updates: Any) -> bool:
    """Return whether updates have not been trained yet."""
    changes = (value for name, value in updates.named_parameters() if not name.endswith("down"))
    return not any(bool(value.any()) for value in changes)


def _context(run: Run, batch: Batch, rng: np.random.Generator) -> tuple[Batch, int, bool]:
    """Return a batch as the student hears it, of how many of its clips, and whether padded."""
    dynamic = run.dynamic
    size, window = len(batch[dynamic.main_input_name]), dynamic.backbone.window(dynamic.base)
    if window is None or not run.task.token_by_token:
        return batch, size, False
    padded = bool(rng.random() < run.config.padded_share)
    if padded:  # which takes as long for a fourth of the clips
        size = max(1, size // 4)
    batch = {name: value[:size] for name, value in batch.items()}
    silence = window if padded else int(rng.integers(*SILENCE))
    return with_silence(run, batch, silence), size, padded


def with_silence(run: Run, batch: Batch, frames: int) -> Batch:
    """Return a batch with so many feature frames of silence behind it, as far as the window goes.

    Their number is even, for the two of Whisper that make one of its encoder.
    """
    main = run.dynamic.main_input_name
    window = run.dynamic.backbone.window(run.dynamic.base)
    if window is None or not run.task.token_by_token:
        return batch
    length = batch[main].shape[-1] + frames
    return {**batch, main: pad_with_silence(batch[main], min(window, length + length % 2))}


def _run(run: Run, batch: Batch, k: int, decoders: Sequence[int | None]) -> Pass:
    """Run k layers of the encoder, and then the decoder at each depth; None is the full one."""
    dynamic = run.dynamic
    stack = dynamic.decoder_stack
    if not run.task.token_by_token:
        with encoder_outputs(dynamic) as seen:
            logits = dynamic(**batch, budget=k).logits
        return Pass(seen[0], [logits])
    encoded = _encode(dynamic, batch, k, None)
    answers = []
    for depth in decoders:
        drops = nullcontext()
        if stack is not None and depth is not None:
            kept = decoder_mask(run, depth)
            drops = running(stack, kept, dynamic.updates, dynamic.decoder_norm)  # type: ignore
        with drops:
            answers.append(_decode(dynamic, batch, encoded))
    return Pass(encoded.last_hidden_state, answers)


def _encode(dynamic: Any, batch: Batch, budget: int | None, mask: Tensor | None) -> Any:
    """Return what the encoder makes of a batch with some of its layers."""
    inputs = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    noted = torch.is_grad_enabled()
    call, _ = dynamic.begin(inputs[dynamic.main_input_name], budget, mask, inputs, noted=noted)
    with activate(call):
        return dynamic.base(**inputs)


def _decode(dynamic: Any, batch: Batch, encoded: Any) -> Tensor:
    """Return what the decoder answers to encoded clips, given the tokens before each."""
    given = {
        name: v for name, v in batch.items() if name in ("attention_mask", "decoder_input_ids")
    }
    logits: Tensor = dynamic.model(encoder_outputs=encoded, **given).logits
    return logits


def decoder_mask(run: Run, depth: int) -> Tensor:
    """Return the decoder layers that are kept at a depth. Shape: -> [layers] bool."""
    policy = run.dynamic.decoder_policy
    assert policy is not None
    mask = policy.fixed_mask(depth)
    assert mask is not None
    return mask


def _state_distance(states: Tensor, lessons: Sequence[TeacherOutput], deviation: Tensor) -> Tensor:
    """Return the squared error of the encoder's output, in units of each channel's deviation.

    Shape: states [batch, frames, width], deviation [width] -> [], the mean over the clips.
    """
    wanted = [lesson.states[: states.shape[1]].to(states.device).float() for lesson in lessons]
    deviation = deviation.to(states.device)
    errors = [
        ((one[: len(aim)].float() - aim) / deviation).square().mean()
        for one, aim in zip(states, wanted, strict=True)
    ]
    return torch.stack(errors).mean()


def _answer_distance(
    run: Run, batch: Batch, logits: Tensor, lessons: Sequence[TeacherOutput], targets: Targets
) -> Tensor:
    """Return the divergence from the teacher's answers, the mean over the clips. Shape: -> []."""
    return answer_distances(run, batch, logits, lessons, targets).mean()


def answer_distances(
    run: Run, batch: Batch, logits: Tensor, lessons: Sequence[TeacherOutput], targets: Targets
) -> Tensor:
    """Return the divergence from the teacher's answer to each clip, in nats a position.

    Shape: logits [batch, ...] -> [batch].
    """
    frame_mask = run.frame_mask(batch, logits)
    distances = []
    for given, lesson in zip(run.task.counted(logits, frame_mask, targets), lessons, strict=True):
        top = [part.to(given.device) for part in (lesson.values, lesson.labels, lesson.total)]
        each = run.task.imitation(given, *top)
        distances.append((each * run.task.emphasis(lesson.labels[:, 0]).to(each.device)).sum())
    return torch.stack(distances)


@torch.no_grad()
def _choose_layers(run: Run, clips: Sequence[Clip], targets: Targets, rows: Sequence[int]) -> None:
    """Find the layers to keep: of the encoder by the error of its output without each one."""
    dynamic = run.dynamic
    dynamic.eval()
    features = load_features(clips, run.extractor, max_seconds=run.config.max_seconds)
    order = sorted(range(len(clips)), key=lambda row: len(features[row]))
    batches = []
    for start in range(0, len(order), 8):
        part = order[start : start + 8]
        batch = run.collate([features[i] for i in part])
        batch = run.task.inputs(batch, [targets[i] for i in part])
        batches.append((with_silence(run, batch, SILENCE[0]), [run.lessons[rows[i]] for i in part]))

    def missed(mask: Tensor) -> float:
        errors = []
        for batch, lessons in batches:
            encoded = _encode(dynamic, batch, None, mask)
            states = encoded.last_hidden_state
            errors.append(_state_distance(states, lessons, run.lessons.deviation))
        return float(torch.stack(errors).mean())

    dynamic.policy = StaticScores(_scores(dynamic.num_layers, missed)).to(dynamic.device)
    if dynamic.decoder_stack is not None:
        scores = _late_scores(len(dynamic.decoder_stack))
        dynamic.decoder_policy = StaticScores(scores).to(dynamic.device)


def _late_scores(layers: int) -> Tensor:
    """Return scores by which the last layers are kept, and the first one beside them.

    Without training they are no better than others; after a hundred steps they are far ahead
    (benchmarks/decoder_layers.py). Shape: -> [layers].
    """
    scores = torch.arange(layers, dtype=torch.float32)
    scores[0] = layers - 1.5
    return scores


def _scores(layers: int, missed: Any) -> Tensor:
    """Return scores of the layers: how late each is left out. Shape: -> [layers]."""
    scores = torch.zeros(layers)
    kept = torch.ones(layers, dtype=torch.bool)
    for turn in range(layers - 1):
        costs = {}
        for index in kept.nonzero().squeeze(1).tolist():
            mask = kept.clone()
            mask[index] = False
            costs[index] = missed(mask)
        worst = min(costs, key=costs.__getitem__)
        kept[worst] = False
        scores[worst] = turn
    scores[kept] = layers - 1
    return scores


METHOD = Distillation()
