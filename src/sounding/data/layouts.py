"""Readers of the official layouts: from the root of a corpus to its clips, none of them decoded.

The options of a reader decide which part of the corpus is used for what. Each returns clips with
their split; "validation" is made of training clips by `folder_of` where a corpus has none.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import DataError
from .folder import Clip
from .names import escapes, some
from .tables import number, read_csv, read_lines


def librispeech(
    root: Path,
    *,
    train: Sequence[str] = ("train-clean-100",),
    validation: Sequence[str] = ("dev-clean",),
    test: Sequence[str] = ("test-clean", "test-other"),
) -> list[Clip]:
    """Read LibriSpeech: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, *.flac beside it.

    The subset of a clip is in `extra`. Texts stay as they are: upper case, no punctuation.
    """
    clips = []
    for split, subsets in (("train", train), ("validation", validation), ("test", test)):
        for subset in subsets:
            _need(root, subset)
            extra = {"subset": subset}
            for path in sorted((root / subset).glob("*/*/*.trans.txt")):
                for line, content in read_lines(path):
                    name, _, text = content.partition(" ")
                    if not text.strip():
                        raise DataError(f"{path}: line {line}: no text for {name}: copy it again")
                    audio = _place(path, line, path.parent, f"{name}.flac")
                    clips.append(Clip(audio, text.strip(), split, name.split("-")[0], extra))
    return clips


MOST_SECONDS = 1e6  # of a recording: eleven days
NO_SCORE = "ignore_time_segment_in_scoring"
SUFFIX = re.compile(r" '(?=(s|m|d|t|re|ve|ll)\b)", re.IGNORECASE)
NO_WORD = re.compile(r"\{[^}]*\}|<[^>]*>|\([^)]*\)|\[[^\]]*\]")


def tedlium3(root: Path) -> list[Clip]:
    """Read TED-LIUM 3: legacy/{train,dev,test}/stm/TALK.stm and sph/TALK.sph; a clip is a segment.

    Segments that the corpus leaves out of its scoring are left out, and those without a word or a
    length. The texts lose what is no word ({NOISE}, <sil>, <unk>, the number of a pronunciation).
    "it 's" becomes "it's", as in Kaldi's recipe (egs/tedlium/s5_r3).
    """
    clips = []
    for part, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        _need(root, f"legacy/{part}/stm")
        _need(root, f"legacy/{part}/sph")
        for path in sorted((root / "legacy" / part / "stm").glob("*.stm")):
            for line, content in read_lines(path):
                if content.startswith(";;"):
                    continue
                clip = _stm_segment(path, line, content, split)
                if clip.target and clip.end != clip.start:
                    clips.append(clip)
    return clips


def _stm_segment(path: Path, line: int, content: str, split: str) -> Clip:
    where = (
        f"{path}: line {line}: not a segment of STM (talk, channel, speaker, start, end, label, "
        "words)"
    )
    fields = content.split()
    if len(fields) < 5:
        raise DataError(f"{where}: copy the file again")
    talk, _, speaker, start, end, *words = fields
    begins = number(where, "its start", start, MOST_SECONDS)
    ends = number(where, "its end", end, MOST_SECONDS)
    if ends < begins:
        raise DataError(f"{where}: it ends at {end} s, before its start: copy the file again")
    audio = _place(path, line, path.parents[1] / "sph", f"{talk}.sph")
    return Clip(audio, stm_text(" ".join(words)), split, speaker, start=begins, end=ends)


def stm_text(words: str) -> str:
    """Return the words of a segment, without marks; "" where it is not scored."""
    if NO_SCORE in words:
        return ""
    return SUFFIX.sub("'", " ".join(NO_WORD.sub(" ", words).split()))


def speech_commands(root: Path) -> list[Clip]:
    """Read Speech Commands v2: WORD/*.wav, validation_list.txt, testing_list.txt; 35 words.

    The first part of a file name is its speaker. What begins with "_" is not a word.
    """
    splits: dict[str, str] = {}
    for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        path = _need(root, name)
        for line, content in read_lines(path):
            if content.count("/") != 1:
                raise DataError(f"{path}: line {line}: {content[:60]!r} is not WORD/FILE")
            _place(path, line, root, content)
            splits[content] = split
    words = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    there = {
        f"{word}/{entry.name}"
        for word in words
        if word[0] not in "_."
        for entry in os.scandir(root / word)
        if entry.name.endswith(".wav")
    }
    return [
        Clip(root / name, name.split("/")[0], splits.get(name, "train"), _speaker(name))
        for name in sorted(there | set(splits))
    ]


def _speaker(name: str) -> str:
    return name.split("/")[1].split("_nohash_")[0]


def esc50(root: Path, *, test_fold: int = 5, validation_fold: int = 4) -> list[Clip]:
    """Read ESC-50: meta/esc50.csv and audio/*.wav, five folds of which three train."""
    splits = {str(validation_fold): "validation", str(test_fold): "test"}
    clips = []
    path = _need(root, "meta/esc50.csv")
    for line, row in _table(path, ("filename", "fold", "category")):
        fold = row["fold"].strip()
        if not re.fullmatch(r"[0-9]{1,3}", fold):
            raise DataError(f"{path}: line {line}: the fold is {fold[:40]!r}, expected a number")
        audio = _place(path, line, root / "audio", row["filename"])
        split = splits.get(str(int(fold)), "train")
        clips.append(Clip(audio, row["category"], split, "", {"fold": fold}))
    return clips


AUDIOSET_LINE = re.compile(r'(\S+), ([\d.]+), [\d.]+, "([^"]+)"')


def audioset(root: Path) -> list[Clip]:
    """Read AudioSet, balanced, from its three lists and the audio anywhere below.

    The lists are balanced_train_segments.csv, eval_segments.csv and class_labels_indices.csv; the
    audio is YTID.wav or YTID.flac, the 10 s of a segment.

    Segments without a file are left out with a warning that counts them: many videos are gone.
    """
    names = _audioset_names(_need(root, "class_labels_indices.csv"))
    files = _audio_below(root)
    clips, gone = [], 0
    for split, name in (("train", "balanced_train"), ("test", "eval")):
        path = _need(root, f"{name}_segments.csv")
        for line, content in read_lines(path):
            if content.startswith("#"):
                continue
            match = AUDIOSET_LINE.fullmatch(content)
            mids = match[3].split(",") if match else []
            if match is None or not set(mids) <= set(names):
                raise DataError(
                    f"{path}: line {line}: {content[:120]!r} is not a segment with labels of "
                    "class_labels_indices.csv: take both files from one release"
                )
            file = files.get(match[1]) or files.get(f"Y{match[1]}")
            if file is None:
                gone += 1
                continue
            target = ";".join(names[mid] for mid in mids)
            clips.append(Clip(file, target, split, "", {"start": match[2]}))
    if gone:
        total = gone + len(clips)
        warnings.warn(
            f"{root}: of {total} segments {gone} have no audio and are left out", stacklevel=2
        )
    return clips


def _audioset_names(path: Path) -> dict[str, str]:
    """Return the names of the labels, by their identifiers."""
    names = {}
    for line, row in _table(path, ("mid", "display_name")):
        if ";" in row["display_name"] or not row["display_name"].strip():
            raise DataError(f"{path}: line {line}: {row['display_name']!r} cannot name a label")
        names[row["mid"]] = row["display_name"]
    return names


def fluent(root: Path) -> list[Clip]:
    """Read Fluent Speech Commands: data/{train,valid,test}_data.csv.

    Action, object and location are one intent, such as "activate / lights / kitchen".
    """
    parts = ("action", "object", "location")
    clips = []
    for part, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        path = _need(root, f"data/{part}_data.csv")
        for line, row in _table(path, ("path", "speakerId", "transcription", *parts)):
            intent = " / ".join(row[name] for name in parts)
            extra = {"text": row["transcription"]}
            audio = _place(path, line, root, row["path"])
            clips.append(Clip(audio, intent, split, row["speakerId"], extra))
    return clips


EMOTIONS = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
RAVDESS_NAME = re.compile(r"03-01-0([1-8])-0([12])-\d\d-\d\d-(\d\d)")


def ravdess(
    root: Path,
    *,
    validation_actors: Sequence[int] = (19, 20),
    test_actors: Sequence[int] = (21, 22, 23, 24),
) -> list[Clip]:
    """Read the speech of RAVDESS.

    Files: Actor_NN/03-01-EMOTION-INTENSITY-STATEMENT-REPETITION-ACTOR.wav.
    """
    splits = dict.fromkeys(validation_actors, "validation") | dict.fromkeys(test_actors, "test")
    clips = []
    for path in sorted(root.glob("Actor_*/*.wav")):
        match = RAVDESS_NAME.fullmatch(path.stem)
        if match is None:  # song, or video
            continue
        emotion, intensity, actor = match.groups()
        extra = {"intensity": ("normal", "strong")[int(intensity) - 1]}
        split = splits.get(int(actor), "train")
        clips.append(Clip(path, EMOTIONS[int(emotion) - 1], split, f"actor{actor}", extra))
    if not clips:
        raise DataError(f"{root}: no speech (Actor_NN/03-01-*.wav): unpack Audio_Speech_Actors")
    return clips


IEMOCAP_CLASSES = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy", "exc": "happy"}
IEMOCAP_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\s+((Ses\d\d[FM]_\w+)_([FM])\d+)\s+(\w+)\s.*")


def iemocap(root: Path, *, validation_session: int = 4, test_session: int = 5) -> list[Clip]:
    """Read IEMOCAP: Session*/dialog/EmoEvaluation/*.txt, Session*/sentences/wav/DIALOG/*.wav.

    The usual four classes, "excited" joined to "happy"; the sessions share no speaker.
    """
    splits = {validation_session: "validation", test_session: "test"}
    clips = []
    for session in range(1, 6):
        folder = _need(root, f"Session{session}")
        for path in sorted((folder / "dialog" / "EmoEvaluation").glob("Ses*.txt")):
            for _, line in read_lines(path):
                match = IEMOCAP_LINE.fullmatch(line)
                if match is None or match[4] not in IEMOCAP_CLASSES:
                    continue
                name, dialog, gender, emotion = match.groups()
                audio = folder / "sentences" / "wav" / dialog / f"{name}.wav"
                speaker = f"{session}{gender}"
                split = splits.get(session, "train")
                clips.append(Clip(audio, IEMOCAP_CLASSES[emotion], split, speaker))
    return clips


def _need(root: Path, name: str) -> Path:
    """Return a part of a corpus that has to be there."""
    if not (root / name).exists():
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.name[0] != ".")[:12])
        raise DataError(f"{root}: no {name} (there is {there}): unpack that part of the corpus")
    return root / name


def _place(path: Path, line: int, directory: Path, name: str) -> Path:
    """Return the file that a line of a list names, in the directory where it belongs."""
    name = name.strip()
    if not name or escapes(name):
        raise DataError(
            f"{path}: line {line}: {some([name or 'no name'])} would be outside of the corpus: "
            "copy the list again, from where the corpus is published"
        )
    return directory / name


def _table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file that must have these columns, with their line numbers."""
    _, rows = read_csv(path, columns)
    yield from rows


def _audio_below(root: Path) -> dict[str, Path]:
    """Return all wav and flac files, by name without the suffix."""
    return {
        os.path.splitext(name)[0]: Path(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith((".wav", ".flac"))
    }
