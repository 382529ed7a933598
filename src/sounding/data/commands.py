"""Spoken commands made by a text-to-speech engine, as a folder that `load_folder` reads.

The data are synthetic: no person was recorded. espeak-ng says one word a clip in one of many
voices and accents; a synthetic room, noise and a gain are added. espeak-ng is under GPL-3 as a
program; the sound it makes is no derived work of it, so that the clips are free to use.
"""

from __future__ import annotations

import csv
import ctypes
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from ..errors import SoundingError, UsageError
from ..files import atomic_directory
from ..progress import progress
from .audio import Seconds
from .folder import METADATA, SPLITS
from .noise import colored, mix

VERSION = 1  # to be raised whenever the same configuration gives other clips
RATE = 16000  # of the clips, in Hz
# no/go/slow, on/off, left/lift, right/light, stop/start and forward/follow are easily confused
_WORDS = "yes no go slow on off up down left lift right light stop start forward follow"
WORDS = tuple(_WORDS.split())
ACCENTS = {  # the language of espeak-ng, and its voice file
    "en-gb": "gmw/en",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-gb-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-gb-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-gb-x-rp": "gmw/en-GB-x-rp",
    "en-us": "gmw/en-US",
    "en-us-nyc": "gmw/en-US-nyc",
    "en-029": "gmw/en-029",
}
# Of the variants of espeak-ng, those that whisper, play a robot, overload, cannot be told by their
# words, sound almost like another, or (Reed, caleb) use uninitialised memory are left out.
_NAMES = """Alex Andrea Andy Annie AnxiousAndy Denis Diogo Gene Jacky Marco Mario Michael Mike
Nguyen Storm Tweaky adam anika announcer aunty belinda benjamin boris croak david edward f1 f2 f3 f4
f5 grandma gustave ian iven3 iven4 john kaukovalta klatt klatt3 linda m1 m2 m4 m5 m7 m8 marcelo max
michel mike2 norbert pablo paul pedro quincy rob sandro shelby steph steph2 travis victor"""
VOICES = tuple(_NAMES.split())
BABBLE = (  # none of the words, so that the label stays the only one
    "the boat came in before the rain and nobody was there",
    "she has never been to the mountains in winter",
    "we could have dinner at eight with my brother",
    "all these papers belong to the other office",
)
TALKERS = 4
NOISES = ("white", "pink", "brown", "babble", "hum")
SPEECH_RATE, PITCH, PITCH_RANGE = (130, 220), (25, 75), (20, 80)  # words a minute; of 99; of 99
REVERB: tuple[Seconds, Seconds] = (0.1, 0.6)  # time in which the room fades by 60 dB
DRY = 0.3  # share of the clips without a room
GAIN_DB = (-18.0, -1.0)  # of the highest sample, relative to full scale
VOLUME = 40  # of 100: louder, the engine clips some of the voices
_COLUMNS = "file_name label split speaker accent snr_db reverb_s rate pitch duration"
COLUMNS = tuple(_COLUMNS.split())


class EngineError(SoundingError, RuntimeError):
    """The engine espeak-ng cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class CommandSet:
    """What commands to make; the same values give the same bytes on the same platform.

    A clip depends on the seed, its split and its index, not on how many there are.

    Attributes:
        words: the classes, said in turn: their numbers of clips differ by one at most.
        train: clips of the split; likewise `validation` and `test`.
        voices: variants of espeak-ng, the speakers.
        validation_voices: how many of them are heard in validation only; so `test_voices`.
        snr_db: lowest and highest ratio of speech to noise, as `mix` defines it.
        seconds: shortest and longest clip; a word that does not fit makes its clip longer.
        seed: of everything random, the division of the voices too.

    Raises:
        UsageError: values that no usable folder can be made of.
    """

    words: tuple[str, ...] = WORDS
    train: int = 960
    validation: int = 160
    test: int = 480
    voices: tuple[str, ...] = VOICES
    validation_voices: int = 9
    test_voices: int = 14
    snr_db: tuple[float, float] = (-5.0, 20.0)
    seconds: tuple[Seconds, Seconds] = (0.7, 1.3)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.words) < 2 or len(set(self.words)) < len(self.words):
            raise UsageError(f"words are {self.words}: give at least two, each once")
        if odd := [word for word in self.words if not re.fullmatch("[a-z]+", word)]:
            raise UsageError(f"the words {odd} are not of the letters a to z: spell them so")
        # a word without a training clip would be no class
        least = {"train": len(self.words), "validation": 1, "test": 1, "seed": 0}
        for name, count in (least | {"validation_voices": 1, "test_voices": 1}).items():
            if getattr(self, name) < count:
                raise UsageError(f"{name} is {getattr(self, name)}: give at least {count}")
        held_out = self.validation_voices + self.test_voices
        if len(set(self.voices)) < len(self.voices) or len(self.voices) <= held_out:
            raise UsageError(
                f"{len(self.voices)} voices of which {held_out} are held out: give more voices, "
                "each once, or hold out fewer"
            )
        for name, low, high in (("snr_db", -100, 100), ("seconds", 0.1, 30)):
            first, last = getattr(self, name)
            if not low <= first <= last <= high:
                raise UsageError(
                    f"{name} is {(first, last)}: give the lower first, from {low} to {high}"
                )

    def split_voices(self, split: str) -> tuple[str, ...]:
        """Return the voices of a split, which are in no other split.

        Raises:
            UsageError: an unknown split.
        """
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r}: use {', '.join(SPLITS)}")
        shuffled = np.random.default_rng([self.seed, len(SPLITS)]).permutation(self.voices).tolist()
        first, last = self.validation_voices, self.validation_voices + self.test_voices
        held_out = {"validation": shuffled[:first], "test": shuffled[first:last]}
        return tuple(held_out.get(split, shuffled[last:]))


def commands_folder(cache: Path | str, config: CommandSet | None = None) -> Path:
    """Return the folder of a configuration under `cache`, made when it is not there yet.

    Args:
        cache: a directory for such folders; made when missing.
        config: `CommandSet()` by default.

    Raises:
        EngineError, ValueError: as `make_commands`.
    """
    config = config or CommandSet()
    content = json.dumps([VERSION, asdict(config)], sort_keys=True)
    root = Path(cache) / f"commands-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return root if (root / METADATA).is_file() else make_commands(root, config)


def make_commands(root: Path | str, config: CommandSet | None = None) -> Path:
    """Write all clips and metadata.csv to a new folder, which is there as a whole or not at all.

    Args:
        root: of the folder; missing or empty.
        config: `CommandSet()` by default.

    Raises:
        EngineError: espeak-ng is not installed or does not work.
        UsageError: `root` holds something else, or a voice is unknown.
    """
    root, config = Path(root), config or CommandSet()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} is there already, expected a new folder: give another path")
    _check_voices(config.voices)
    clips = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
    with atomic_directory(root) as folder, progress("spoken commands", len(clips)) as advance:
        rows = []
        for split, index in clips:
            samples, row = make_clip(config, split, index)
            (folder / split).mkdir(exist_ok=True)
            sf.write(folder / row["file_name"], samples, RATE, subtype="PCM_16")
            rows.append(row)
            advance(len(rows), split)
        with (folder / METADATA).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return root


def make_clip(config: CommandSet, split: str, index: int) -> tuple[np.ndarray, dict[str, str]]:
    """Make one clip and its row of metadata.csv.

    Shape: [samples] float64 at 16 kHz, its peak below 1.

    Raises:
        EngineError: espeak-ng is not installed or does not work.
        UsageError: an unknown split, or an index below 0.
    """
    voices = config.split_voices(split)
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    word = config.words[index % len(config.words)]
    speaker, accent = str(rng.choice(voices)), str(rng.choice(list(ACCENTS)))
    rate, pitch, pitch_range = (
        int(rng.integers(low, high + 1)) for low, high in (SPEECH_RATE, PITCH, PITCH_RANGE)
    )
    seed = int(rng.integers(2**31))
    voice = f"{ACCENTS[accent]}+{speaker}"
    speech = speak(word, voice, rate=rate, pitch=pitch, pitch_range=pitch_range, seed=seed)
    length = max(round(rng.uniform(*config.seconds) * RATE), len(speech))
    offset = int(rng.integers(length - len(speech) + 1))
    reverb_s = round(rng.uniform(*REVERB), 2) if rng.random() >= DRY else 0.0
    speech = np.pad(speech, (offset, length - offset - len(speech)))
    noise = make_noise(str(rng.choice(NOISES)), length, voices, rng)
    snr_db = round(rng.uniform(*config.snr_db), 1)
    samples = mix(reverberate(speech, reverb_s, rng), noise, snr_db)
    samples *= 10 ** (rng.uniform(*GAIN_DB) / 20) / np.abs(samples).max()
    name = f"{split}/{index:05}_{word}.flac"
    values = (name, word, split, speaker, accent, snr_db, reverb_s, rate, pitch, length / RATE)
    return samples, {column: str(value) for column, value in zip(COLUMNS, values, strict=True)}


def reverberate(speech: np.ndarray, seconds: Seconds, rng: np.random.Generator) -> np.ndarray:
    """Put speech in a synthetic room: the direct sound, and noise that fades exponentially.

    Args:
        seconds: in which the room fades by 60 dB; 0 is no room.

    Shape: [samples] -> [samples], without what would sound on after the end.
    """
    if seconds == 0:
        return speech
    times = np.arange(round(seconds * RATE)) / RATE
    room = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    direct_db = rng.uniform(0, 10)  # direct sound over all reflections
    room *= 10 ** (-direct_db / 20) / np.sqrt(np.square(room).sum())
    room[0] = 1.0
    size = len(speech) + len(room)
    return np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(room, size), size)[: len(speech)]


def speak(
    text: str, voice: str, *, rate: int, pitch: int, pitch_range: int, seed: int
) -> np.ndarray:
    """Return speech of espeak-ng without the silence around it, a function of its arguments alone.

    Args:
        voice: "FILE+VARIANT", as "gmw/en-US+f3".
        rate: words a minute, 80 to 450.
        pitch: 0 to 99, where 50 is the voice's own.
        pitch_range: 0 (monotone) to 99, where 50 is the voice's own.
        seed: of the engine's random numbers, used by breathy voices.

    Shape: [samples] float64 at 16 kHz.

    Raises:
        EngineError: espeak-ng is not installed, does not work or says nothing.
    """
    chunks: list[bytes] = []

    def receive(wave: int | None, samples: int, _: int | None) -> int:
        if wave and samples > 0:
            chunks.append(ctypes.string_at(wave, 2 * samples))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    receiver = callback(receive)
    with _engine() as (engine, engine_rate):
        engine.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        engine.espeak_SetSynthCallback(receiver)
        failed = engine.espeak_SetVoiceByName(voice.encode())
        for parameter, value in enumerate((rate, VOLUME, pitch, pitch_range), start=1):
            failed = failed or engine.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        size, utf8 = ctypes.c_size_t(len(data) + 1), 1
        failed = failed or engine.espeak_Synth(data, size, 0, 1, 0, utf8, None, None)
    speech = np.frombuffer(b"".join(chunks), np.int16) / 32768
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max(initial=0))
    if failed or not len(loud):
        raise EngineError(
            f"espeak-ng cannot say {text!r} with the voice {voice!r} (status {failed}): use an "
            "English text, and a voice of the installed espeakng-loader"
        )
    return soxr.resample(speech[loud[0] : loud[-1] + 1], engine_rate, RATE)


@contextmanager
def _engine() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load espeak-ng, yield it and its rate in Hz, and unload it after use.

    Loading takes 4 ms.

    The engine keeps the phase of its flutter, its gain control and more in static variables that
    nothing resets but loading it: otherwise an utterance would depend on those before it.
    For the same reason, no other thread or package may use the library at the same time.
    """
    library, data = _engine_paths()
    try:
        engine = ctypes.CDLL(library)
    except OSError as error:
        raise EngineError(
            f"espeak-ng cannot be loaded ({error}): install espeakng-loader for this platform"
        ) from None
    try:
        synchronous, no_exit = 2, 0x8000
        rate = engine.espeak_Initialize(synchronous, 0, os.fsencode(data), no_exit)
        if rate <= 0:
            raise EngineError(
                f"espeak-ng cannot read its data in {data}: install espeakng-loader again, in an "
                "environment of a shorter path if this one has more than 140 characters"
            )
        try:
            yield engine, rate
        finally:
            engine.espeak_Terminate()  # its thread must not outlive it
    finally:
        _unload(engine)


def _unload(library: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        from _ctypes import FreeLibrary as close
    else:
        from _ctypes import dlclose as close
    close(library._handle)


def _engine_paths() -> tuple[str, str]:
    """Return the paths of the library, and of its data."""
    try:
        import espeakng_loader
    except ImportError:
        raise EngineError(
            "the package espeakng-loader, which says the commands, is not installed: "
            "pip install 'sounding[demo]'"
        ) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def _check_voices(voices: tuple[str, ...]) -> None:
    """Refuse an unknown voice or variant.

    The engine passes over an unknown variant in silence.
    """
    known = set(os.listdir(Path(_engine_paths()[1]) / "voices" / "!v"))
    unknown = sorted(set(voices) - known)
    if unknown:
        raise UsageError(f"unknown voices {', '.join(unknown)}: use some of {', '.join(VOICES)}")


def make_noise(
    kind: str, length: int, voices: tuple[str, ...], rng: np.random.Generator
) -> np.ndarray:
    """Make noise of a kind. Shape: [length], of any level."""
    if kind == "babble":
        return sum((_talker(length, voices, rng) for _ in range(TALKERS)), np.zeros(length))
    if kind != "hum":
        return colored(kind, length, RATE, rng)
    white = rng.standard_normal(length)  # hum of the mains, over a little white noise
    frequency = rng.choice([50, 60]) * np.arange(1, 13)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (12, 1))
    level = rng.uniform(0.2, 1, (12, 1))
    tones = level * np.sin(2 * np.pi * frequency * np.arange(length) / RATE + phase)
    return tones.sum(axis=0) + 0.05 * white


def _talker(length: int, voices: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a sentence said over and over from anywhere within it.

    Shape: [length], of power 1.
    """
    voice = f"{rng.choice(list(ACCENTS.values()))}+{rng.choice(voices)}"
    rate, pitch = int(rng.integers(140, 200)), int(rng.integers(30, 70))
    text, seed = str(rng.choice(BABBLE)), int(rng.integers(2**31))
    speech = speak(text, voice, rate=rate, pitch=pitch, pitch_range=50, seed=seed)
    speech = np.resize(np.roll(speech, rng.integers(len(speech))), length)
    return speech / np.sqrt(np.square(speech).mean())
