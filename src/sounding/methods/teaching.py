"""What a teacher makes of the clips that a student learns from: computed once, kept in files.

DIR/KEY.safetensors  one clip: the encoder's output, and the likeliest labels at each position

The key is made of the teacher, the settings and the audio, so that a directory may be shared by
trainings, and one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.features import load_features
from ..data.folder import Clip
from ..errors import UsageError
from ..files import atomic_path, sha256
from ..model.io import state_digest
from ..progress import Interrupted, progress, stop_signals
from ..runs.precision import autocast
from ..runs.run import Run

TOP = 64  # labels that are kept at a position; the others of a large vocabulary count as one
BATCH = 8  # clips that a decoder writes at once


class TeacherOutput(NamedTuple):
    """What a teacher makes of one clip.

    Shape:
        states: [frames, width] float16: the encoder's output.
        values, labels: [positions, top]: the highest logits, float16, and of what they are, int32.
        total: [positions] float32: the logarithm of the sum of exponentials of all logits.
        ids: [tokens] int32: what a decoder wrote, prompt and end included; else empty.
    """

    states: Tensor
    values: Tensor
    labels: Tensor
    total: Tensor
    ids: Tensor


class TeacherOutputs:
    """The outputs of a teacher for the clips of a training, in their order.

    Args:
        directory: of the files.
        keys: of the clips.

    Attributes:
        deviation: of each channel of the encoder's output over some of the clips. Shape: [width].
        student_heard: whether a decoder that is trained alone also hears the student's encoder.
    """

    deviation: Tensor
    student_heard: bool = False

    def __init__(self, directory: Path, keys: Sequence[str]) -> None:
        self.directory, self.keys = directory, list(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, index: int) -> Path:
        """Return where the output for a clip is kept."""
        return self.directory / f"{self.keys[index]}.safetensors"

    def __getitem__(self, index: int) -> TeacherOutput:
        """Read the output for a clip.

        Raises:
            UsageError: the file is damaged.
        """
        path = self.path(index)
        try:
            return TeacherOutput(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({error}): remove it, and start again") from None

    def written(self, index: int) -> list[int]:
        """Return the tokens that a decoder wrote of a clip; else none."""
        ids: list[int] = self[index].ids.tolist()
        return ids


def teacher_outputs(run: Run, clips: Sequence[Clip], directory: Path) -> TeacherOutputs:
    """Return what a run at full depth makes of clips, computed where it is not there yet.

    Args:
        run: the teacher; in evaluation mode meanwhile.
        directory: for the files, of about 60 kB a second of audio for Whisper-base.

    Raises:
        Interrupted: on SIGINT or SIGTERM; what was computed is kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    outputs = TeacherOutputs(directory, _keys(run, clips))
    first: dict[str, int] = {}
    for index, key in enumerate(outputs.keys):  # a clip that is replayed has the key of before
        first.setdefault(key, index)
    missing = [index for index in first.values() if not outputs.path(index).exists()]
    size = BATCH if run.task.token_by_token else 1
    training = run.dynamic.training
    run.dynamic.eval()
    with stop_signals() as stopped, progress("teacher", len(clips)) as show:
        for start in range(0, len(missing), size):
            chunk = missing[start : start + size]
            for index, output in zip(chunk, _teach(run, [clips[i] for i in chunk]), strict=True):
                with atomic_path(outputs.path(index)) as temporary:
                    save_file(output._asdict(), temporary)
            show(len(clips) - len(missing) + start + len(chunk), "")
            if stopped():
                raise Interrupted("stopped; the same command goes on")
    run.dynamic.train(training)
    return outputs


@torch.no_grad()
def _teach(run: Run, clips: Sequence[Clip]) -> list[TeacherOutput]:
    features = load_features(clips, run.extractor, max_seconds=run.config.max_seconds)
    with autocast(run.config.precision, run.dynamic.device):
        shown = run.task.demonstrate(run.dynamic, run.collate(features), features)
    made = []
    for states, logits, ids in zip(*shown, strict=True):
        logits = logits.float()
        values, labels = logits.topk(min(TOP, logits.shape[-1]))
        made.append(
            TeacherOutput(
                states.half().cpu().clone(),
                values.half().cpu(),
                labels.int().cpu(),
                logits.logsumexp(-1).cpu(),
                torch.tensor(ids).int(),
            )
        )
    return made


def _keys(run: Run, clips: Sequence[Clip]) -> list[str]:
    """Return a digest of each clip, with the teacher and all that its answer depends on."""
    config = run.config
    settings = (
        state_digest(run.dynamic.model),
        config.language,
        config.max_seconds,
        config.precision,
        TOP,
    )
    files = {path: sha256(path) for path in {clip.path for clip in clips}}
    return [
        hashlib.sha256(repr((*settings, files[c.path], c.start, c.end)).encode()).hexdigest()[:32]
        for c in clips
    ]
