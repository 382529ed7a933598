"""Texts that a pretrained recognizer writes of clips, to train another model on."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.features import clip_seconds, load_features
from ..data.folder import AudioFolder
from ..data.text import normalize_text
from ..errors import UsageError
from ..files import locked
from ..methods import FULL_DEPTH, OUTPUTS
from ..methods.teaching import teacher_outputs
from ..model.io import state_digest
from ..progress import say
from ..registry import METHODS
from ..runs.config import TrainConfig
from ..runs.device import find_device
from ..runs.run import Run
from ..tasks import find_task
from .claim import refuse_others
from .distributed import ALONE, Processes
from .fitting import Frames

LIKE = ("language", "max_seconds", "precision", "device", "seed")  # settings of the training


def with_texts(
    model: str,
    folder: AudioFolder,
    config: TrainConfig,
    out: Path,
    group: Processes = ALONE,
) -> AudioFolder:
    """Return a folder whose texts are those that a recognizer with a decoder writes of its clips.

    What it writes is kept with all else that a teacher makes of a clip, as for `distill`. Clips of
    which it writes nothing are left out, and counted.

    Args:
        model: a name of `sounding.weights`, a local path or a hub id.
        folder: such as `data.unlabelled.unlabelled` makes of directories.
        config: of the training.
        out: its run.
        group: of the training; the first process asks the model.

    Raises:
        UsageError: a model without a decoder, or one that writes nothing of any clip; clips that
            are longer than its window; a task that learns from no texts; another use of `out`.
        Interrupted: on SIGINT or SIGTERM; what was written is kept.
    """
    find_task(config.task, folder.task)  # now, and not after hours
    refuse_others(out)
    like = {name: getattr(config, name) for name in LIKE}
    settings = TrainConfig(backbone=model, task="decoder", method=FULL_DEPTH, **like)
    teacher = METHODS[FULL_DEPTH].start(settings, folder, {"task": folder.task}, out)
    _check_lengths(teacher, folder)
    teacher.dynamic.to(find_device(config.device))
    texts = group.in_turn(lambda: _written(teacher, folder, out, group))
    clips = tuple(
        replace(clip, target=text)
        for clip, text in zip(folder.clips, texts, strict=True)
        if normalize_text(text)
    )
    if not clips:
        raise UsageError(
            f"{model} writes nothing of any clip: look whether there is speech in them"
        )
    if silent := len(folder.clips) - len(clips):
        say(f"{silent} of {len(folder.clips)} clips are left out: {model} writes nothing of them")
    by = f"{folder.digest} {state_digest(teacher.dynamic.model)} {config.language}"
    digest = hashlib.sha256(by.encode()).hexdigest()
    return AudioFolder(folder.root, "text", clips, (), digest)


def _written(teacher: Run, folder: AudioFolder, out: Path, group: Processes) -> list[str]:
    """Return the text of each clip; what is known already is read, as by all but the first."""
    with locked(out) if group.first else nullcontext():
        lessons = teacher_outputs(teacher, folder.clips, out / OUTPUTS)
    tokenizer: Any = teacher.task.tokenizer
    ids = [lessons.written(index) for index in range(len(folder.clips))]
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _check_lengths(teacher: Run, folder: AudioFolder) -> None:
    """Refuse clips that the recognizer does not take whole."""
    clips, extractor = folder.clips, teacher.extractor
    samples = [round(clip_seconds(clip) * extractor.sampling_rate) for clip in clips]

    def length(index: int) -> int:
        most = teacher.config.max_seconds
        return len(load_features([clips[index]], extractor, max_seconds=most)[0])

    Frames(teacher, samples, length).check(folder, clips)
