"""Which layers of a decoder to keep: each choice is trained for a few steps, and then compared.

  python benchmarks/decoder_layers.py RUN --data DIR... --keep 0,4,5 0,3,5 1,4,5
  python benchmarks/decoder_layers.py RUN --data DIR... --keep 0,4,5 --steps 300

RUN is a run of `sounding distill` of a Whisper. What its teacher makes of the clips is taken from
RUN/teacher, and computed where it is not there. Every choice starts anew from the pretrained
weights and sees the same clips in the same order. Printed, and written to --out: the divergence
from full depth on other clips, in nats a position, before the training and after it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sounding.data.features import batches, clip_seconds
from sounding.data.unlabelled import unlabelled
from sounding.errors import SoundingError, UsageError
from sounding.files import write_json
from sounding.methods import OUTPUTS
from sounding.methods.distill import decoder_distance, taught
from sounding.methods.teaching import TeacherOutputs, teacher_outputs
from sounding.progress import progress
from sounding.runs.precision import autocast
from sounding.runs.run import Run, load_run, provenance
from sounding.tasks.imitation import Target

BATCH, RATE, WARMUP = 8, 1e-3, 0.1


class Trial:
    """A run whose decoder is trained with some layers, again and again from the start."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.run: Run = load_run(options.run)
        folder = unlabelled(options.data)
        clips = [clip for clip in folder.clips if clip.split == "train"]
        order = np.random.default_rng(options.seed).permutation(len(clips))
        clips = [clips[row] for row in order[: options.clips]]
        self.lengths = [clip_seconds(clip) for clip in clips]
        self.lessons: TeacherOutputs = teacher_outputs(self.run, clips, options.run / OUTPUTS)
        self.held_out = len(clips) // 7
        self.options = options

    def start(self) -> list[nn.Parameter]:
        """Forget the updates, and return those of the decoder.

        Raises:
            UsageError: there are none.
        """
        updates = self.run.dynamic.updates
        if updates is None or not updates.has("decoder"):
            raise UsageError(f"{self.options.run} has no updates of a decoder")
        torch.manual_seed(self.options.seed)
        updates.reset()
        self.run.dynamic.requires_grad_(False)
        stacks = (updates.layers["decoder"], updates.norms["decoder"])
        return [one.requires_grad_(True) for stack in stacks for one in stack.parameters()]

    def distance(self, rows: list[int], kept: Tensor) -> Tensor:
        """Return the divergence on some clips. Shape: kept [layers] bool -> []."""
        lessons = [self.lessons[row] for row in rows]
        targets = [Target(tuple(one.ids.tolist()), "") for one in lessons]
        audio = {self.run.dynamic.main_input_name: torch.zeros(len(rows), 1)}  # nobody hears it
        with autocast(self.run.config.precision, self.run.dynamic.device):
            batch = self.run.task.inputs(audio, targets)
            heard = taught(self.run, lessons)
            return decoder_distance(self.run, batch, heard, lessons, targets, kept)

    @torch.no_grad()
    def validation(self, kept: Tensor) -> float:
        """Return the divergence on the clips that are not trained on."""
        parts = batches(self.lengths[: self.held_out], BATCH, seed=0, epoch=0, shuffle=True)
        return float(np.mean([float(self.distance(part, kept)) for part in parts]))

    def measure(self, layers: list[int]) -> dict[str, Any]:
        """Train with some layers, and return the divergence before and after."""
        stack = self.run.dynamic.decoder_stack
        if stack is None or not layers or not all(0 <= one < len(stack) for one in layers):
            raise UsageError(f"{layers} are not layers of the decoder")
        kept = torch.zeros(len(stack), dtype=torch.bool)
        kept[layers] = True
        parameters, steps = self.start(), self.options.steps
        before = self.validation(kept)
        optimizer = torch.optim.AdamW(parameters, lr=RATE)
        with progress(f"train {layers}", steps) as show:
            for step, rows in zip(range(steps), self.order(), strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = RATE * min((step + 1) / (WARMUP * steps), 1 - step / steps, 1)
                loss = self.distance(rows, kept)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                show(step + 1, f"loss {float(loss.detach()):.3f}")
        return {"layers": layers, "before": before, "after": self.validation(kept)}

    def order(self) -> list[list[int]]:
        """Return the clips of each step."""
        there = self.lengths[self.held_out :]
        epochs = 1 + self.options.steps * BATCH // len(there)
        made = []
        for epoch in range(epochs):
            made += batches(there, BATCH, seed=self.options.seed, epoch=epoch, shuffle=True)
        return [[row + self.held_out for row in rows] for rows in made]


def main() -> int:
    """Compare the choices; the exit code is 2 after an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="of `sounding distill`")
    parser.add_argument("--data", nargs="+", required=True, help="directories of audio, or corpora")
    parser.add_argument("--keep", nargs="+", required=True, help="choices, such as 0,4,5")
    parser.add_argument("--clips", type=int, default=700, help="a seventh of them is held out")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("decoder_layers.json"))
    options = parser.parse_args()
    try:
        trial = Trial(options)
        found = []
        for choice in options.keep:
            found.append(trial.measure([int(one) for one in choice.split(",")]))
            print(f"{choice}: {found[-1]['before']:.2f} -> {found[-1]['after']:.3f}", flush=True)
        about = {"steps": options.steps, "clips": options.clips, "seed": options.seed}
        write_json(options.out, {**about, "choices": found, **provenance()})
    except (SoundingError, OSError, ValueError) as error:
        print(f"decoder_layers.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
