"""Small copies of corpora in their official layouts, made of tones; and what is in them."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import soundfile as sf

WORDS = ("no", "yes")
SECONDS = 0.4


def audio(path: Path, label: int = 0, seconds: float = SECONDS, **options) -> Path:
    """A tone in noise, whose pitch tells the label. The format follows from the name."""
    rng = np.random.default_rng(list(path.name.encode()))
    time = np.arange(int(seconds * 16000)) / 16000
    tone = 0.1 * np.sin(2 * np.pi * (300, 2000)[label % 2] * time)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".sph":
        options = {"format": "NIST", "subtype": "PCM_16"}
    sf.write(path, tone + rng.normal(0, 0.02, len(time)), 16000, **options)
    return path


def table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def clips(root: Path, counts: dict[str, int], make) -> Path:
    """A folder of clips at 16 kHz: `make(i)` gives the samples of one and its columns."""
    rows = []
    for split, count in counts.items():
        for index in range(count):
            samples, columns = make(index)
            name = f"{split}{index}.wav"
            sf.write(root / name, samples, 16000)
            rows.append({"file_name": name, **columns, "split": split})
    table(root / "metadata.csv", rows)
    return root


def librispeech(root: Path) -> None:
    subsets = ("train-clean-100", "train-clean-360", "train-other-500")
    for subset in (*subsets, "dev-clean", "test-clean", "test-other"):
        for speaker, chapter in itertools.product(("84", "19"), ("121123",)):
            folder = root / subset / speaker / chapter
            lines = []
            for index in range(2):
                name = f"{speaker}-{chapter}-{index:04d}"
                audio(folder / f"{name}.flac", index)
                lines.append(f"{name} {WORDS[index].upper()} OF {subset.upper()}")
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")


def tedlium3(root: Path) -> None:
    for part, talks in (("train", 3), ("dev", 1), ("test", 1)):
        for number in range(talks):
            talk = f"Speaker{part.title()}{number}_2010"
            audio(root / "legacy" / part / "sph" / f"{talk}.sph", number, seconds=2.0)
            label = "<F0_M>" if part == "dev" else "<o,f0,female>"
            rows = [
                f"{talk} 1 {talk} 0.00 0.45 {label} ignore_time_segment_in_scoring",
                f"{talk} 1 {talk} 0.45 0.95 {label} it 's {{NOISE}} a(2) yes <sil> ({talk}-1)",
                f"{talk} 1 {talk} 1.00 1.50 {label} we don 't <unk> know",
                f"{talk} 1 {talk} 1.50 1.90 {label} {{BREATH}}",
            ]
            stm = root / "legacy" / part / "stm" / f"{talk}.stm"
            stm.parent.mkdir(parents=True, exist_ok=True)
            stm.write_text(";; made by a test\n" + "\n".join(rows) + "\n")


def speech_commands(root: Path) -> None:
    for index, word in enumerate(WORDS):
        for speaker, take in itertools.product(("a1", "b2", "c3", "d4"), (0, 1)):
            audio(root / word / f"{speaker}_nohash_{take}.wav", index)
    audio(root / "_background_noise_" / "pink_noise.wav")
    for name, speaker in (("validation", "c3"), ("testing", "d4")):
        lines = [f"{word}/{speaker}_nohash_{take}.wav" for word in WORDS for take in (0, 1)]
        (root / f"{name}_list.txt").write_text("\n".join(lines) + "\n")


def esc50(root: Path) -> None:
    rows = []
    for fold, target in itertools.product(range(1, 6), (0, 1)):
        name = f"{fold}-10003{target}-A-{target}.wav"
        audio(root / "audio" / name, target)
        row = {"filename": name, "fold": fold, "target": target, "category": WORDS[target]}
        rows.append({**row, "esc10": "False", "src_file": 100030 + target, "take": "A"})
    table(root / "meta" / "esc50.csv", rows)


AUDIOSET_LABELS = {"/m/09x0r": "Speech", "/m/05zppz": "Male speech, man speaking", "/t/d8": "Gush"}


def audioset(root: Path) -> None:
    labels = enumerate(AUDIOSET_LABELS.items())
    rows = [{"index": i, "mid": mid, "display_name": name} for i, (mid, name) in labels]
    table(root / "class_labels_indices.csv", rows)
    mids = ("/m/09x0r", "/m/09x0r,/t/d8", "/m/05zppz,/m/09x0r")
    for name, count in (("balanced_train", 6), ("eval", 3)):
        lines = ["# Segments csv created Sun Mar  5 10:54:31 2017", "# num_ytids=6", "# YTID, ..."]
        for index in range(count):
            video = f"-{name[:4]}{index:05d}x"
            suffix = ".wav" if index % 2 else ".flac"
            audio(root / "audio" / name / f"{'Y' * (index == 2)}{video}{suffix}", index)
            lines.append(f'{video}, 30.000, 40.000, "{mids[index % 3]}"')
        lines.append('gonegonegon, 0.000, 10.000, "/m/09x0r"')
        (root / f"{name}_segments.csv").write_text("\n".join(lines) + "\n")


def fluent(root: Path) -> None:
    intents = (("activate", "lights", "kitchen"), ("change language", "none", "none"))
    for part, speakers in (("train", ("s1", "s2")), ("valid", ("s3",)), ("test", ("s4",))):
        rows = []
        for speaker, (index, intent) in itertools.product(speakers, enumerate(intents)):
            name = f"wavs/speakers/{speaker}/{part}-{index}-4474.wav"
            audio(root / name, index)
            row = {"": len(rows), "path": name, "speakerId": speaker, "transcription": "Do it, now"}
            rows.append(row | dict(zip(("action", "object", "location"), intent, strict=True)))
        table(root / "data" / f"{part}_data.csv", rows)


def ravdess(root: Path) -> None:
    for actor, emotion in itertools.product((1, 2, 19, 21, 22), (1, 5)):
        for intensity in (1, 2):
            name = f"03-01-{emotion:02}-{intensity:02}-01-01-{actor:02}.wav"
            audio(root / f"Actor_{actor:02}" / name, emotion // 5)
    audio(root / "Actor_01" / "03-02-01-01-01-01-01.wav")  # a song


def iemocap(root: Path) -> None:
    emotions = ("neu", "exc", "hap", "ang", "sad", "fru", "xxx")
    for session, gender in itertools.product(range(1, 6), "FM"):
        dialog = f"Ses0{session}{gender}_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for index, emotion in enumerate(emotions):
            name = f"{dialog}_{'FM'[index % 2]}{index:03}"
            folder = root / f"Session{session}"
            audio(folder / "sentences" / "wav" / dialog / f"{name}.wav", index)
            lines.append(f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]")
            lines += ["C-E2:\tNeutral;\t()", ""]
        path = root / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))


def folder(root: Path, column: str = "label", splits=("train", "validation", "test")) -> None:
    """Our own layout."""
    rows = []
    for split, index in itertools.product(splits, range(4)):
        name = f"audio/{split}{index}.wav"
        audio(root / name, index)
        rows.append({"file_name": name, column: WORDS[index % 2], "split": split})
    table(root / "metadata.csv", rows)


MAKE = {
    "librispeech": librispeech, "tedlium3": tedlium3, "speech-commands": speech_commands,
    "esc50": esc50, "audioset": audioset, "fluent": fluent, "ravdess": ravdess,
    "iemocap": iemocap, "folder": folder,
}  # fmt: skip
