"""Where someone speaks: silero-vad's probability of speech, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .threads import one_thread

RATE = 16000
FRAME = 512  # samples: 32 ms


@dataclass(frozen=True)
class Activity:
    """What is heard in each frame of 32 ms; an hour takes 1 MB.

    Shape:
        speech: [frames] float32, the probability that someone speaks.
        power: [frames] float32, the mean square of the samples.

    Attributes:
        samples: of the audio; the last frame may be shorter than the others.
    """

    speech: np.ndarray
    power: np.ndarray
    samples: int

    def regions(self) -> list[tuple[int, int]]:
        """Return where someone speaks, as (first frame, frame behind the last), without margins."""
        found = silero().get_speech_timestamps_from_probs(
            self.speech.tolist(), RATE, speech_pad_ms=0, audio_length_samples=self.samples
        )
        return [(one["start"] // FRAME, -(-one["end"] // FRAME)) for one in found]


def listen(blocks: Iterable[np.ndarray]) -> Activity:
    """Run the voice activity detector over audio.

    Args:
        blocks: the audio in order, 16 kHz, each [samples] float32.

    Raises:
        ModuleNotFoundError: silero-vad is not installed.
    """
    model = silero().load_silero_vad()
    speech: list[float] = []
    power: list[float] = []
    samples = 0
    rest = np.zeros(0, np.float32)
    with one_thread(), torch.inference_mode():
        for block in blocks:
            samples += len(block)
            rest = np.concatenate([rest, block])
            whole = len(rest) // FRAME * FRAME
            for frame in rest[:whole].reshape(-1, FRAME):
                speech.append(model(torch.from_numpy(frame), RATE).item())
                power.append(float(np.square(frame).mean()))
            rest = rest[whole:]
        if len(rest):
            frame = np.pad(rest, (0, FRAME - len(rest)))
            speech.append(model(torch.from_numpy(frame), RATE).item())
            power.append(float(np.square(rest).mean()))
    return Activity(np.array(speech, np.float32), np.array(power, np.float32), samples)


def silero() -> Any:
    """Return the package of the detector.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    threads = torch.get_num_threads()
    try:
        import silero_vad
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the package {error.name}, which finds the speech in long audio, is not installed: "
            "pip install 'sounding[transcribe]'"
        ) from None
    finally:
        torch.set_num_threads(threads)  # the package sets it to 1 when it is imported
    return silero_vad
