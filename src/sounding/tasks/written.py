"""How a student learns from what a teacher writes with its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.dynamic import DynamicModel
from .imitation import Batch, Demonstration, Imitation, Target, Targets

TOKENS_AT_LEAST, FRAMES_A_TOKEN = 24, 4  # speech has far fewer; a loop ends here
END_WEIGHT = 3.0
TAIL_FRAMES = 50  # of the encoder's output behind a clip, a second of the silence that it hears


class WrittenImitation(Imitation):
    """The part of a task with a decoder by which a student imitates what a teacher writes.

    Attributes:
        start: the tokens of the prompt; `prompt` is their number.
        tokenizer: of the texts.
    """

    start: list[int]
    prompt: int
    tokenizer: Any

    def inputs(self, batch: Batch, targets: Targets | None) -> Batch:
        """Return a batch with the tokens before each one."""
        raise NotImplementedError

    def room(self, model: Any) -> float:
        """Return how many positions the decoder has."""
        raise NotImplementedError

    def spoken(self, dynamic: DynamicModel) -> dict[str, Any]:
        """Return what `generate` is told of the language."""
        raise NotImplementedError

    def demonstrate(
        self, dynamic: DynamicModel, batch: Batch, features: Sequence[NDArray[np.float32]]
    ) -> Demonstration:
        """Return what the full depth hears and writes; Whisper hears clips padded to its window."""
        window = dynamic.backbone.window(dynamic.base)
        if window is not None:
            main = dynamic.main_input_name
            batch = {main: pad_with_silence(batch[main], window)}
        encoded = dynamic.base(**batch)
        states = encoded.last_hidden_state
        lengths = torch.tensor([len(one) for one in features])
        frames: Any = dynamic.backbone.frame_lengths(dynamic.base, lengths)
        ends: Tensor = frames + TAIL_FRAMES
        room = self.room(dynamic.model) - self.prompt - 1
        limits = [int(min(room, TOKENS_AT_LEAST + end // FRAMES_A_TOKEN)) for end in ends.tolist()]
        mask = {name: value for name, value in batch.items() if name == "attention_mask"}
        written = dynamic.model.generate(
            encoder_outputs=encoded,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(limits),
            **mask,
            **self.spoken(dynamic),
        )
        padding = dynamic.model.generation_config.pad_token_id
        ids = [
            self._whole(one, padding, limit)
            for one, limit in zip(written.tolist(), limits, strict=True)
        ]
        targets = [Target(tuple(one), "") for one in ids]
        before = self.inputs({"": written}, targets)["decoder_input_ids"]
        logits = dynamic.model(encoder_outputs=encoded, decoder_input_ids=before, **mask).logits
        heard = [one[:end] for one, end in zip(states, ends.tolist(), strict=True)]
        return Demonstration(heard, self.counted(logits, None, targets), ids)

    def counted(self, logits: Tensor, frame_mask: Tensor | None, targets: Targets) -> list[Tensor]:
        """Return the logits of the tokens behind the prompt, the end included."""
        first = self.prompt - 1
        ends = [len(target.ids) - 1 for target in targets]
        return [one[first:end] for one, end in zip(logits, ends, strict=True)]

    def emphasis(self, labels: Tensor) -> Tensor:
        """Return more weight for the end, which a model misses most at its own length."""
        weights = torch.ones(labels.shape)
        weights[-1] = END_WEIGHT
        return weights / weights.sum()

    def _whole(self, written: Sequence[int], padding: int | None, limit: int) -> list[int]:
        """Return what was written with its prompt in front and one end behind.

        Args:
            padding: the token that fills up a batch, which may be one that a text has too.
            limit: the most tokens of the clip by itself, whatever its batch has room for.
        """
        end, last = self.tokenizer.eos_token_id, len(written)
        while last and written[last - 1] == padding:
            last -= 1
        said = [token for token in written[:last] if token not in self.tokenizer.all_special_ids]
        return [*self.start, *said[:limit], end]


def pad_with_silence(inputs: Tensor, frames: int) -> Tensor:
    """Return log-mel features with silence behind them, the lowest value of each clip.

    The extractor cuts off what is 80 dB below the loudest.

    Shape: inputs [batch, mels, time] -> [batch, mels, frames].
    """
    more = max(0, frames - inputs.shape[-1])
    floor = inputs.amin((1, 2), keepdim=True).expand(-1, inputs.shape[1], more)
    return torch.cat([inputs, floor], -1)
