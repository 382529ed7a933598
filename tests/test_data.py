"""Folders of clips: what is read, what is refused, and the features made from them."""

from __future__ import annotations

import csv
import json
import mmap
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers

from sounding.data import decode
from sounding.data.audio import AudioError
from sounding.data.corpora import open_corpus
from sounding.data.features import (
    batches,
    clip_seconds,
    collate,
    extract,
    extractor_layout,
    load_audio,
    load_features,
)
from sounding.data.folder import (
    Clip,
    DataError,
    folder_of,
    load_folder,
    subset,
)
from sounding.data.text import character_errors, normalize_text, tidy, whisper_plain, word_errors

EXTRACTORS = {
    "whisper": lambda: transformers.WhisperFeatureExtractor(),
    "wav2vec2": lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "wav2vec2-plain": lambda: transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
    "ast": lambda: transformers.ASTFeatureExtractor(),
    "wav2vec2-bert": lambda: transformers.SeamlessM4TFeatureExtractor(),
    "parakeet": lambda: transformers.ParakeetFeatureExtractor(),
}
DATA = Path(os.environ.get("SOUNDING_DATA") or Path(__file__).parents[2] / "shared" / "data")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype("f4")


@pytest.fixture
def make(tmp_path):
    """Write a folder from rows of metadata.csv; the audio is 0.1 s of noise each."""

    def make(rows: list[dict[str, str]], name="folder", audio=True, encoding="utf-8") -> Path:
        root = tmp_path / name
        root.mkdir(parents=True)
        with (root / "metadata.csv").open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for seed, row in enumerate(rows if audio else []):
            path = root / row["file_name"]
            path.parent.mkdir(exist_ok=True)
            sf.write(path, noise(1600, seed), 16000)
        return root

    return make


def rows_of(
    count: int, split: str | None = "train", labels=("no", "yes"), **columns: str
) -> list[dict[str, str]]:
    rows = []
    for index in range(count):
        row = {"file_name": f"{split or 'clip'}{index}.wav", "label": labels[index % len(labels)]}
        if split is not None:
            row["split"] = split
        rows.append({**row, **columns})
    return rows


def all_splits() -> list[dict[str, str]]:
    return rows_of(6) + rows_of(2, "validation") + rows_of(4, "test")


# --- what is read ---------------------------------------------------------------------------


def test_rows_become_clips_with_their_columns(make):
    rows = [{**row, "speaker": "ann", "age": "7"} for row in all_splits()]
    root = make(rows)
    folder = load_folder(str(root))
    assert folder.task == "classification"
    assert folder.labels == ("no", "yes")
    assert len(folder.clips) == 12
    clip = folder.split("test")[1]
    assert clip == Clip(root / "test1.wav", "yes", "test", "ann", {"age": "7"})
    assert folder.label_index(clip) == 1


def test_a_byte_order_mark_and_spaces_do_no_harm(make):
    root = make(all_splits(), encoding="utf-8-sig")
    text = (root / "metadata.csv").read_text(encoding="utf-8")
    (root / "metadata.csv").write_text(text.replace(",", " , "), encoding="utf-8")
    assert len(load_folder(root).split("train")) == 6


@pytest.mark.parametrize("alias", ["valid", "val", "dev", "eval", "Validation"])
def test_aliases_of_validation(make, alias):
    folder = load_folder(make(rows_of(4) + rows_of(2, alias)))
    assert len(folder.split("validation")) == len(folder.split(alias)) == 2


def test_text_in_place_of_labels(make):
    rows = [{**row, "text": f"words, {i}"} for i, row in enumerate(all_splits())]
    for row in rows:
        del row["label"]
    folder = load_folder(make(rows))
    assert folder.task == "text"
    assert folder.labels == ()
    assert folder.clips[0].target == "words, 8"  # test0.wav is first by name
    with pytest.raises(DataError, match="the folder has texts"):
        folder.label_index(folder.clips[0])


def test_label_comes_before_text_and_text_is_kept(make):
    folder = load_folder(make([{**row, "text": "hello"} for row in all_splits()]))
    assert folder.task == "classification"
    assert folder.clips[0].extra == {"text": "hello"}


def test_several_labels_a_clip(make):
    rows = all_splits()
    for row in rows:
        row["labels"] = f"{row.pop('label')}; any"
    folder = load_folder(make(rows))
    assert folder.task == "tags"
    assert folder.labels == ("any", "no", "yes")
    assert folder.split("test")[0].target == "no; any"
    assert folder.split("test")[0].tags == ("no", "any")
    rows[-1]["labels"] = "no;new"
    with pytest.raises(DataError, match="classes in test without any training clip: new"):
        load_folder(make(rows, name="new"))
    rows[-1]["labels"] = " ; "
    with pytest.raises(DataError, match="an empty 'labels'"):
        load_folder(make(rows, name="empty"))


def test_hash_split_leaves_every_tag_in_training(make):
    rows = [{"file_name": f"{i}.wav", "labels": f"t{i % 2};u{i}"} for i in range(30)]
    rows += [{"file_name": f"{i}.wav", "labels": "t0;t1"} for i in range(30, 50)]
    folder = load_folder(make(rows))
    assert len(folder.labels) == 32
    assert all(clip.tags == ("t0", "t1") for clip in folder.split("test"))


def test_texts_may_be_for_the_test_only(make):
    rows = [{"file_name": f"{i}.wav", "text": "hello", "split": "test"} for i in range(3)]
    folder = load_folder(make(rows))
    assert len(folder.split("test")) == 3
    with pytest.raises(DataError, match=r"no split 'train', there is test \(3 clips\)"):
        folder.split("train")


def test_a_split_without_clips_says_which_there_are(make):
    folder = load_folder(make(rows_of(4) + rows_of(2, "validation")))
    with pytest.raises(DataError, match=r"train \(4 clips\), validation \(2 clips\)"):
        folder.split("test")
    with pytest.raises(DataError, match="unknown split 'tset'"):
        folder.split("tset")


def test_label_of_another_folder(make):
    folder = load_folder(make(all_splits()))
    with pytest.raises(DataError, match=r"'maybe' is not one of this folder \(no, yes\)"):
        folder.label_index(Clip(Path("x.wav"), "maybe", "test"))


# --- what is refused ------------------------------------------------------------------------


def refused(root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_folder(root)


def test_not_a_directory(tmp_path):
    refused(tmp_path / "none", "none: not a directory")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "file: not a directory")


def test_no_metadata(tmp_path):
    refused(tmp_path, r"no metadata\.csv, expected a table with the columns file_name and label")


def test_empty_metadata(tmp_path):
    (tmp_path / "metadata.csv").touch()
    refused(tmp_path, "no column 'file_name' .*the columns are none")


def test_header_only(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    refused(tmp_path, "no row of the split 'train' among 0 rows")


def test_no_file_name_column(make):
    rows = [{"path": row["file_name"], "label": "a"} for row in rows_of(2)]
    refused(make(rows, audio=False), r"no column 'file_name' \(the columns are path, label\)")


def test_neither_label_nor_text(make):
    rows = [{"file_name": row["file_name"], "class": "a"} for row in rows_of(2)]
    refused(make(rows), "neither a column 'label' nor 'text' .*file_name, class")


def test_empty_labels_are_counted_and_their_lines_named(make):
    rows = rows_of(12)
    for row in rows[2:9]:
        row["label"] = " "
    refused(make(rows), r"7 rows have \(line 4, 5, 6, 7, 8 and 2 more\) an empty 'label'")


def test_empty_file_name(make):
    rows = rows_of(3)
    rows[1]["file_name"] = ""
    refused(make(rows, audio=False), r"1 row has \(line 3\) no file_name")


def test_missing_audio_is_counted_and_named(make):
    root = make(rows_of(10))
    for index in range(7):
        (root / f"train{index}.wav").unlink()
    refused(
        root, "of 10 audio files 7 are missing: train0.wav, .*, train4.wav and 2 more: copy them"
    )


@pytest.mark.parametrize("again", ["train0.wav", "./train0.wav"])
def test_the_same_file_twice(make, again):
    root = make([*rows_of(4), {"file_name": again, "label": "no", "split": "test"}])
    refused(root, "more than one row for train0.wav")


@pytest.mark.parametrize(
    "name", ["../a.wav", "/etc/passwd", "a/../../b.wav", "C:\\a.wav", "..\\a.wav"]
)
def test_a_file_outside_of_the_folder(make, name):
    rows = rows_of(3)
    rows[2]["file_name"] = name
    refused(make(rows, audio=False), "would be outside of the folder")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_without_training_clips_is_named(make, split):
    refused(
        make(rows_of(4) + rows_of(3, split, labels=("yes", "maybe"))),
        f"classes in {split} without any training clip: maybe: add training clips",
    )


def test_unknown_split_name(make):
    refused(make(rows_of(4) + rows_of(1, "tets")), "line 6: unknown split 'tets': use train, ")
    refused(make(rows_of(2, ""), name="empty"), "line 2: unknown split ''")


def test_no_training_rows(make):
    refused(make(rows_of(4, "test")), "no row of the split 'train' among 4 rows")


def test_texts_may_come_without_training_clips(tmp_path):
    header = "file_name,split,text\n"
    (tmp_path / "metadata.csv").write_text(header + "a.wav,test,hello\n")
    sf.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    assert [clip.target for clip in load_folder(tmp_path).split("test")] == ["hello"]
    with pytest.raises(DataError, match=r"no split 'train', there is test \(1 clips\)"):
        load_folder(tmp_path).split("train")
    (tmp_path / "metadata.csv").write_text(header)
    refused(tmp_path, "no row of the split 'train' among 0 rows")


def test_only_one_class(make):
    refused(make(rows_of(4, labels=("yes",))), "'yes' is the only class: at least two")


def test_the_same_column_twice(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label,label\na.wav,x,y\n")
    refused(tmp_path, "the column 'label' is there twice")


def test_rows_of_another_width(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,oh, no\nb.wav\n")
    refused(tmp_path, r"2 rows have \(line 2, 3\) more or fewer values than the 2 columns")


def test_unclosed_quote(tmp_path):
    (tmp_path / "metadata.csv").write_text('file_name,text\na.wav,"oh\nb.wav,no\n')
    refused(tmp_path, "line 3: unexpected end of data")


def test_not_utf8(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,label\na.wav,für\n".encode("latin-1"))
    refused(tmp_path, "not UTF-8")


# --- names and texts in other forms -----------------------------------------------------------

COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def renamed(root: Path, old: str, new: str) -> Path:
    """The table with another text in place of one."""
    path = root / "metadata.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return root


@pytest.mark.parametrize(("disk", "table"), [(APART, COMPOSED), (COMPOSED, APART)])
def test_a_file_is_found_in_either_unicode_form_and_the_digest_is_the_same(make, disk, table):
    rows = [{**row, "file_name": f"{disk}/{disk}-{row['file_name']}"} for row in all_splits()]
    found = load_folder(renamed(make(rows), disk, table))
    assert [clip.path.exists() for clip in found.clips] == [True] * 12
    assert found.name(found.clips[0]) == f"{COMPOSED}/{COMPOSED}-test0.wav"
    other = [{**row, "file_name": row["file_name"].replace(disk, table)} for row in rows]
    same = load_folder(make(other, name="other"))
    assert (found.digest, found.labels) == (same.digest, same.labels)
    assert [c.split for c in found.clips] == [c.split for c in same.clips]
    assert subset(found, "train", 3, 0) != []


def test_windows_slashes_are_slashes_unless_a_name_has_them(make):
    rows = [{**row, "file_name": f"audio/{row['file_name']}"} for row in all_splits()]
    plain = load_folder(make(rows))
    found = load_folder(renamed(make(rows, name="windows"), "audio/", "audio\\"))
    assert found.digest == plain.digest
    assert found.name(found.clips[0]) == "audio/test0.wav"
    rows = [{**row, "file_name": row["file_name"].replace("0", "\\0")} for row in all_splits()]
    named = load_folder(make(rows, name="backslash"))
    assert "test\\0.wav" in map(named.name, named.clips)


def test_one_file_in_two_forms_is_twice_the_same(make):
    rows = [{**row, "file_name": f"{COMPOSED}/{row['file_name']}"} for row in rows_of(4)]
    for again in (f"{APART}/train0.wav", f"{COMPOSED}\\train0.wav", f"./{COMPOSED}//train0.wav"):
        root = make(rows, name=f"folder{len(again)}{again[-12]!r}")
        with (root / "metadata.csv").open("a", encoding="utf-8") as table:
            table.write(f"{again},no,train\n")
        refused(root, f"more than one row for {COMPOSED}/train0.wav")


def test_another_case_is_an_error_that_names_the_file(make):
    root = renamed(make(rows_of(4)), "train2.wav", "Train2.WAV")
    if not (root / "Train2.WAV").exists():
        refused(
            root, "1 are missing: Train2.WAV: there is 'train2.wav', which differs in upper and"
        )


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "b/" * 2000 + "c.wav"])
def test_a_name_that_no_file_can_have_is_missing(make, name):
    root = renamed(make(rows_of(4)), "train2.wav", name)
    with pytest.raises(DataError, match="of 4 audio files 1 are missing") as error:
        load_folder(root)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("layout", ["table", "clips"])
def test_texts_labels_and_speakers_are_taken_in_one_form(make, layout):
    forms = [COMPOSED, APART, f" {COMPOSED} ", f"\ufeff{APART}\u200b"]
    rows = rows_of(8)
    for index, row in enumerate(rows):
        row["label"] = forms[index % 4] if index < 6 else "tea"
        row["speaker"] = forms[index % 4]
    root = make(rows)
    folder = load_folder(root)
    if layout == "clips":
        made = [Clip(root / r["file_name"], r["label"], " Train ", r["speaker"]) for r in rows]
        folder = folder_of(root, "classification", made)
    assert folder.labels == (COMPOSED, "tea")
    assert {clip.speaker for clip in folder.clips} == {COMPOSED}
    assert {clip.split for clip in folder.clips} == {"train"}


def test_tags_are_taken_in_one_form(make):
    rows = [{"file_name": f"{i}.wav", "labels": f"{APART};x{i}; {COMPOSED}"} for i in range(3)]
    folder = load_folder(make([{**row, "split": "train"} for row in rows]))
    assert folder.labels == (COMPOSED, "x0", "x1", "x2")


@pytest.mark.parametrize(
    "alike", [("Dog", "dog"), ("hot dog", "hot  dog"), ("hot dog", "hotdog"), ("dog", "d\u200bog")]
)
def test_labels_that_look_alike_are_told_of(make, alike):
    with pytest.warns(UserWarning, match="differ in case or white space only") as told:
        folder = load_folder(make(rows_of(4, labels=alike)))
    assert len(folder.labels) == 2
    assert all(repr(label) in str(told[0].message) for label in alike)


@pytest.mark.filterwarnings("error")
def test_labels_of_their_own_are_not_told_of(make):
    load_folder(make(rows_of(6, labels=("dog", "dogs", "hot dog"))))


@pytest.mark.parametrize(
    "header", ["File Name,LABEL,Split", "file-name,Label ,SPLIT", "\ufeff filename ,label,split"]
)
def test_columns_are_known_in_any_case(make, header):
    root = make(all_splits())
    expected = load_folder(root)
    assert load_folder(renamed(root, "file_name,label,split", header)).digest == expected.digest


def test_a_column_of_the_very_name_comes_first(make):
    rows = [{**row, "Text": "hello", "Split": "test"} for row in all_splits()]
    folder = load_folder(make(rows))
    assert folder.task == "classification"
    assert folder.clips[0].extra == {"Text": "hello", "Split": "test"}
    assert len(folder.split("train")) == 6
    rows = [{"file_name": f"{i}.wav", "text": "hi", "Label": "a", "split": "test"} for i in "ab"]
    assert load_folder(make(rows, name="text")).task == "text"
    rows = [{"file_name": "a.wav", "Label": "a", "LABEL": "b"}]
    refused(make(rows, name="twice"), "the column 'label' is there twice")


# --- the forms of AudioFolder -----------------------------------------------------------------


def write_audio(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, noise(1600, seed), 16000)


def split_dirs(root: Path, names=("train", "validation", "test"), table="metadata.csv") -> Path:
    for split in names:
        lines = []
        for index in range(6):
            write_audio(root / split / f"{index}.wav", index)
            row = {"file_name": f"{index}.wav", "label": ("no", "yes")[index % 2]}
            lines.append(json.dumps(row) if table.endswith("l") else ",".join(row.values()))
        head = [] if table.endswith("l") else ["file_name,label"]
        (root / split / table).write_text("\n".join([*head, *lines]) + "\n")
    return root


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("alias", ["validation", "valid", "val", "dev", "eval", "Val"])
@pytest.mark.parametrize("inside", ["", "data"])
def test_a_table_in_the_directory_of_each_split(tmp_path, table, alias, inside):
    split_dirs(tmp_path / inside, ("train", alias, "test"), table)
    folder = open_corpus(tmp_path)
    assert {s: len(folder.split(s)) for s in ("train", "validation", "test")} == {
        "train": 6, "validation": 6, "test": 6
    }  # fmt: skip
    assert folder.name(folder.split("test")[0]) == "test/0.wav"
    assert folder.labels == ("no", "yes")
    assert folder == load_folder(tmp_path / inside)


def test_splits_of_directories_without_validation_get_one(tmp_path):
    folder = load_folder(split_dirs(tmp_path, ("train", "test")))
    assert {clip.path.parent.name for clip in folder.split("validation")} == {"train"}
    assert len(folder.split("test")) == 6


def test_a_column_that_contradicts_its_directory_is_an_error(tmp_path):
    split_dirs(tmp_path, ("train", "test"))
    path = tmp_path / "test" / "metadata.csv"
    for split, fine in (("test", True), ("", True), ("train", False), ("tset", False)):
        path.write_text(f"file_name,label,split\n0.wav,no,test\n1.wav,yes,{split}\n")
        if fine:
            with pytest.warns(UserWarning, match="4 audio files"):
                assert len(load_folder(tmp_path).split("test")) == 2
        else:
            refused(tmp_path, r"test/metadata\.csv: line 3: .*split")


def test_tables_of_splits_have_the_same_columns(tmp_path):
    split_dirs(tmp_path, ("train", "test"))
    (tmp_path / "test" / "metadata.csv").write_text("file_name,text\n0.wav,hello\n")
    refused(tmp_path, "a column 'text', but .*train/metadata.csv has 'label'|differ|need the same")


def test_json_lines_are_read_by_type(tmp_path):
    rows = [
        {"file_name": "0.wav", "label": 3, "speaker": "ann", "split": "train"},
        {"file_name": "1.wav", "label": "x", "age": 2.5, "split": "train", "note": None},
    ]
    for row in rows:
        write_audio(tmp_path / row["file_name"])
    text = "\n\n".join(json.dumps(row) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text)
    folder = load_folder(tmp_path)
    assert folder.labels == ("3", "x")
    assert folder.clips[0].speaker == "ann"
    assert folder.clips[1].extra == {"age": "2.5", "note": ""}
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "0.wav", "labels": ["a", "b"], "split": "train"}\n'
        '{"file_name": "1.wav", "labels": ["b\\u2028"], "split": "train"}\n'
    )
    assert load_folder(tmp_path).clips[0].tags == ("a", "b")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"file_name": "1.wav", "label": ', "no JSON that can be read"),
        ('["1.wav", "x"]', "a list, expected an object"),
        ("7", "a number, expected an object"),
        ('{"file_name": "1.wav", "label": {"a": 1}}', "'label' is an object, expected a text"),
        ('{"file_name": "1.wav", "label": true}', "'label' is true or false"),
        ('{"file_name": "1.wav", "label": ["a;b"]}', "'label' is a list"),
        ('{"file_name": "1.wav", "label": NaN}', "NaN is no number"),
        ('{"file_name": "1.wav", "label": 1e999}', "'label' is"),
        ('{"file_name": "1.wav", "label": "a", "label": "b"}', "the name 'label' is there twice"),
        ('{"a": ' + "[" * 100000 + "]" * 100000 + "}", "nested too deep|no JSON"),
        ('{"file_name": "1.wav", "label": ' + "9" * 5000 + "}", "no JSON that can be read"),
    ],
)
def test_a_line_of_json_that_is_no_row_is_named(tmp_path, line, match):
    write_audio(tmp_path / "1.wav")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.wav", "label": "x"}\n' + line)
    refused(tmp_path, rf"metadata\.jsonl: line 2: .*({match})")


def test_tables_that_are_not_read_say_what_to_write(tmp_path):
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    refused(tmp_path, r"metadata\.parquet: a table as Parquet, expected metadata\.csv: write it as")
    with pytest.raises(DataError, match="as Parquet"):
        open_corpus(tmp_path)
    (tmp_path / "metadata.csv").touch()
    refused(tmp_path, "metadata.csv, metadata.parquet say what is in it: keep one")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("inside", ["", "data"])
@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_directories_are_the_labels_where_there_is_no_table(tmp_path, inside, splits):
    for split in splits or ("",):
        for index in range(12):
            label = ("dog", "train", f" {APART}")[index % 3]  # a train may be a sound
            write_audio(tmp_path / inside / split / label / f"{index}.wav", index)
    folder = open_corpus(tmp_path)
    assert folder.labels == (COMPOSED, "dog", "train")
    assert len(folder.clips) == 12 * max(1, len(splits))
    assert {clip.split for clip in folder.clips} == {"train", "validation", "test"}
    names = {folder.name(clip).split("/")[0] for clip in folder.split("test")}
    assert names == {"test"} if splits else names <= {"dog", "train", f" {COMPOSED}"}
    assert folder == load_folder(tmp_path / inside)


def test_one_directory_is_no_label(tmp_path):
    write_audio(tmp_path / "audio" / "0.wav")
    refused(tmp_path, r"no metadata\.csv, expected a table .* or audio in directories that are")
    with pytest.raises(DataError, match="no known layout"):
        open_corpus(tmp_path)


def test_audio_that_no_row_names_is_told_of(make, tmp_path):
    root = make(all_splits())
    for name in ("more.wav", "deep/er.flac", "deep/other.OGG", ".hidden.wav", "notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"3 audio files in the folder are in no row .*more\.wav"):
        assert len(load_folder(root).clips) == 12
    for index, label in enumerate(("a", "b", "a", "b")):
        write_audio(tmp_path / "labels" / label / f"{index}.wav")
    write_audio(tmp_path / "labels" / "stray.wav")
    write_audio(tmp_path / "labels" / "a" / "deeper" / "stray.wav")
    with pytest.warns(UserWarning, match=r"2 audio files in the folder are in no row"):
        assert len(load_folder(tmp_path / "labels").clips) == 4


def test_splits_in_file_names_that_no_column_gives_are_told_of(make):
    rows = [
        {"file_name": f"{split}/{i}.wav", "label": "ab"[i % 2]}
        for split in ("train", "test")
        for i in range(10)
    ]
    with pytest.warns(UserWarning, match="the files are in test, train, but there is no column"):
        load_folder(make(rows))


# --- what could leave the folder, or never end ------------------------------------------------


@pytest.mark.parametrize("link", ["file", "directory", "chain"])
def test_a_link_that_leads_out_of_the_folder_is_refused(make, tmp_path, link):
    write_audio(tmp_path / "secret" / "train0.wav")
    rows = [{**row, "file_name": f"in/{row['file_name']}"} for row in rows_of(4)]
    root = make(rows)
    (root / "in" / "train0.wav").unlink()
    if link == "file":
        (root / "in" / "train0.wav").symlink_to(tmp_path / "secret" / "train0.wav")
    elif link == "chain":
        (root / "in" / "train0.wav").symlink_to("step")
        (root / "in" / "step").symlink_to(tmp_path / "secret" / "train0.wav")
    else:
        (root / "in").rename(tmp_path / "moved")
        write_audio(tmp_path / "moved" / "train0.wav")
        (root / "in").symlink_to(tmp_path / "moved")
    refused(root, "in/train0.wav.* would be outside of the folder, by .* symbolic link")


def test_links_within_the_folder_and_to_the_folder_are_followed(make, tmp_path):
    root = make(rows_of(4))
    (root / "train0.wav").rename(root / "train0.old")
    (root / "train0.wav").symlink_to("train0.old")
    (tmp_path / "link").symlink_to(root)
    assert len(load_folder(tmp_path / "link").clips) == 4


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "train/metadata.csv"])
def test_a_table_that_is_a_pipe_or_a_directory_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    refused(tmp_path, "not a regular file")
    path.unlink()
    path.mkdir()
    refused(tmp_path, "not a regular file")


def test_a_pipe_in_place_of_audio_is_missing(make):
    root = make(rows_of(4))
    (root / "train0.wav").unlink()
    os.mkfifo(root / "train0.wav")
    refused(root, "of 4 audio files 1 are missing: train0.wav")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"file_name,label\na.wav,x\0y\n", "line 2: a NUL byte"),
        (b"file_name,label\n\na.wav,f\xfcr\n", "line 3: not UTF-8"),
        (b"file_name,label\na.wav," + b"x" * 200000 + b"\n", "line 2: field larger than"),
        ("file_name,label\na.wav,x\n".encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_a_table_that_is_none_says_in_which_line(tmp_path, content, match):
    (tmp_path / "metadata.csv").write_bytes(content)
    refused(tmp_path, rf"metadata\.csv: {match}")


# --- splits by hash -------------------------------------------------------------------------


def splits_of(folder) -> dict[str, str]:
    return {clip.path.name: clip.split for clip in folder.clips}


def test_split_by_file_name_is_80_10_10_and_always_the_same(make):
    rows = rows_of(100, split=None)
    first = splits_of(load_folder(make(rows)))
    assert [list(first.values()).count(s) for s in ("train", "validation", "test")] == [80, 10, 10]
    random.Random(0).shuffle(rows)
    assert splits_of(load_folder(make(rows, name="again"))) == first
    # a fixed answer, so that no change of the code moves clips between the splits unnoticed
    assert sorted(n for n, s in first.items() if s == "test")[:2] == ["clip14.wav", "clip18.wav"]


def test_split_by_speaker_keeps_speakers_apart(make):
    rows = rows_of(60, split=None)
    for index, row in enumerate(rows):
        row["speaker"] = f"s{index % 12}" if index % 2 else f"t{index % 12}"
    folder = load_folder(make(rows))
    speakers = {s: {c.speaker for c in folder.split(s)} for s in ("train", "validation", "test")}
    assert {split: len(names) for split, names in speakers.items()} == {
        "train": 10,
        "validation": 1,
        "test": 1,
    }
    assert not speakers["train"] & (speakers["validation"] | speakers["test"])


def test_fewer_than_ten_speakers_are_split_by_file(make):
    rows = rows_of(40, split=None)
    for index, row in enumerate(rows):
        row["speaker"] = f"s{index % 9}"
    assert len(load_folder(make(rows)).split("test")) == 4


def test_hash_split_leaves_every_class_in_training(make):
    rows = rows_of(40, split=None)
    for index in range(30):
        rows[index]["label"] = f"alone{index}"
    folder = load_folder(make(rows))
    assert len(folder.labels) == 32
    assert len(folder.split("test")) == 4


def test_missing_validation_is_carved_from_training(make):
    rows = rows_of(50) + rows_of(10, "test")
    folder = load_folder(make(rows))
    assert [len(folder.split(s)) for s in ("train", "validation", "test")] == [45, 5, 10]
    assert {c.path.name for c in folder.split("test")} == {f"test{i}.wav" for i in range(10)}


# --- segments, and folders that another reader found ----------------------------------------


def segments(root: Path) -> list[Clip]:
    sf.write(root / "talk.flac", noise(32000), 16000)
    return [
        Clip(root / "talk.flac", f"part {i}", split, start=i * 0.5, end=i * 0.5 + 0.4)
        for i, split in enumerate(("train", "train", "train", "test"))
    ]


def test_segments_of_one_file_are_clips_of_their_own(tmp_path):
    folder = folder_of(tmp_path, "text", segments(tmp_path))
    names = [folder.name(clip) for clip in folder.clips]
    assert names == [f"talk.flac[{s:.2f}-{s + 0.4:.2f}]" for s in (0, 0.5, 1, 1.5)]
    assert [clip_seconds(clip) for clip in folder.clips] == pytest.approx([0.4] * 4)
    assert [clip.split for clip in folder.clips].count("validation") == 1
    audio = load_audio(folder.clips[1], 16000, None)
    np.testing.assert_allclose(audio, noise(32000)[8000:14400], atol=1e-4)
    left = len(folder.split("train"))
    assert len(subset(folder, "train", 1, seed=0)) == 1 < left


def test_an_hour_is_no_limit_for_its_segments(tmp_path):
    sf.write(tmp_path / "hour.flac", np.zeros(3600 * 4000), 4000)
    clip = Clip(tmp_path / "hour.flac", "x", "test", start=3000, end=3030)
    with pytest.warns(UserWarning, match=r"hour.flac\[3000.00-3030.00\]: the audio is silent"):
        assert len(load_audio(clip, 4000, None)) == 30 * 4000
    with pytest.raises(AudioError, match=r"\[3000.00-end\]: 600.0 s"):
        load_audio(replace(clip, end=None), 4000, None)


class Decoded:
    """Counts the seconds that are decoded."""

    def __init__(self, monkeypatch):
        self.seconds, real = 0, decode._Sound._read

        def read(sound, count):
            block = real(sound, count)
            self.seconds += len(block) / sound.rate
            return block

        monkeypatch.setattr(decode._Sound, "_read", read)


def test_an_hour_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    sf.write(tmp_path / "hour.flac", np.full(3600 * 4000, 0.1), 4000)
    clip, decoded = Clip(tmp_path / "hour.flac", "x", "test"), Decoded(monkeypatch)
    for max_seconds, limit in ((None, None), (4000, 30.0), (31, 30.0), (None, 10.24)):
        with pytest.raises(AudioError, match=r"hour.flac: 3600\.0 s, expected at most 30|10"):
            load_audio(clip, 4000, max_seconds, limit)
    with pytest.raises(AudioError, match=r"hour.flac: 3600\.0 s, expected at most 30 s"):
        load_features([clip], EXTRACTORS["whisper"](), max_seconds=4000)
    assert decoded.seconds == 0
    assert len(load_audio(clip, 4000, 2.0, 30.0)) == 8000
    assert decoded.seconds <= 3


def test_no_more_than_the_limit_is_decoded_where_the_header_is_wrong(tmp_path, monkeypatch):
    sf.write(tmp_path / "hour.flac", np.full(3600 * 4000, 0.1), 4000)
    clip, decoded = Clip(tmp_path / "hour.flac", "x", "test"), Decoded(monkeypatch)
    monkeypatch.setattr("sounding.data.features.duration", lambda path: 12.0)
    with pytest.raises(AudioError, match="expected at most 30 s"):
        load_audio(clip, 4000, None)
    assert 30 < decoded.seconds < 33


def test_a_limit_above_30_seconds_is_what_max_seconds_says(tmp_path):
    sf.write(tmp_path / "a.flac", np.full(50 * 4000, 0.1), 4000)
    clip = Clip(tmp_path / "a.flac", "x", "test")
    assert len(load_audio(clip, 4000, 60)) == 50 * 4000
    assert len(load_audio(clip, 4000, 36)) == 36 * 4000
    with pytest.raises(AudioError, match=r"50\.0 s, expected at most 30 s"):
        load_audio(clip, 4000, None)


@pytest.mark.parametrize(
    ("start", "end"),
    [(float("nan"), 1), (0, float("nan")), (-0.5, 1), (1, 0.5), (0, float("inf"))],
)
def test_a_segment_that_cannot_be_one_is_refused_by_its_length_and_its_audio(tmp_path, start, end):
    sf.write(tmp_path / "a.flac", noise(32000), 16000)
    clip = Clip(tmp_path / "a.flac", "x", "test", start=start, end=end)
    for read in (
        clip_seconds,
        lambda clip: load_audio(clip, 16000, None),
        lambda clip: folder_of(tmp_path, "text", [clip]),
    ):
        with pytest.raises(AudioError, match=r"a\.flac: a segment from .*: correct the segment"):
            read(clip)


def test_folder_of_names_what_is_missing_or_there_twice(tmp_path):
    clips = segments(tmp_path)
    with pytest.raises(DataError, match=r"more than one transcript or label for talk.flac\[0.00"):
        folder_of(tmp_path, "text", [*clips, clips[0]])
    clips[0] = replace(clips[0], path=tmp_path / "gone.flac")
    with pytest.raises(DataError, match=r"1 audio files of 4 clips are missing: .*gone\.flac"):
        folder_of(tmp_path, "text", clips)


def test_digest_of_sizes_changes_with_names_targets_splits_and_sizes_only(make):
    root = make(all_splits())
    quick = load_folder(root, hash_audio=False)
    assert quick.digest != load_folder(root).digest
    assert folder_of(root, "classification", quick.clips).digest == quick.digest
    content = bytearray((root / "test0.wav").read_bytes())
    content[-1] ^= 1
    (root / "test0.wav").write_bytes(content)
    assert load_folder(root, hash_audio=False).digest == quick.digest
    (root / "test0.wav").write_bytes(content + b"x")
    assert load_folder(root, hash_audio=False).digest != quick.digest


# --- digest ---------------------------------------------------------------------------------


def test_digest_is_that_of_the_content_not_of_order_or_place(make, tmp_path):
    rows = all_splits()
    root = make(rows)
    folder = load_folder(root)
    moved = Path(shutil.move(root, tmp_path / "moved"))
    assert load_folder(moved).digest == folder.digest
    lines = (moved / "metadata.csv").read_text().splitlines()
    (moved / "metadata.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    again = load_folder(moved)
    assert again.digest == folder.digest
    assert [c.path.name for c in again.clips] == [c.path.name for c in folder.clips]


def test_digest_changes_with_one_byte_one_label_one_split_and_one_clip(make):
    root = make(all_splits())
    metadata = (root / "metadata.csv").read_text()
    digests = [load_folder(root).digest]
    for old, new in [("train0.wav,no", "train0.wav,yes"), ("yes,test", "yes,train")]:
        (root / "metadata.csv").write_text(metadata.replace(old, new, 1))
        digests.append(load_folder(root).digest)
    (root / "metadata.csv").write_text(metadata.rsplit("\n", 2)[0] + "\n")
    digests.append(load_folder(root).digest)
    (root / "metadata.csv").write_text(metadata)
    content = bytearray((root / "test3.wav").read_bytes())
    content[-1] ^= 1
    (root / "test3.wav").write_bytes(content)
    digests.append(load_folder(root).digest)
    assert len(set(digests)) == 5


# --- subset ---------------------------------------------------------------------------------


def test_subset_keeps_the_classes_in_proportion(make):
    folder = load_folder(make(rows_of(60, labels=("a", "a", "a", "a", "b", "c"))))
    chosen = subset(folder, "train", 12, seed=0)
    assert sorted(c.target for c in chosen) == ["a"] * 8 + ["b"] * 2 + ["c"] * 2
    assert chosen == subset(folder, "train", 12, seed=0)
    assert chosen != subset(folder, "train", 12, seed=1)
    assert set(chosen) <= set(folder.split("train"))


def test_subset_of_more_than_there_are_is_all_of_them(make):
    folder = load_folder(make(all_splits()))
    assert subset(folder, "train", 1000, seed=0) == folder.split("train")
    with pytest.raises(ValueError, match="0 clips"):
        subset(folder, "train", 0, seed=0)


# --- features -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "samples", "shape"),
    [
        ("whisper", 960, (6, 80)),
        ("whisper", 16161, (101, 80)),  # an odd number of frames
        ("wav2vec2", 16161, (16161,)),
        ("wav2vec2-plain", 961, (961,)),
        ("ast", 960, (1024, 128)),
        ("ast", 16161, (1024, 128)),
        ("wav2vec2-bert", 960, (2, 160)),
        ("wav2vec2-bert", 16160, (49, 160)),  # 99 frames, stacked by two
        ("parakeet", 960, (6, 80)),
        ("parakeet", 16161, (101, 80)),
    ],
)
def test_features_have_the_length_of_the_clip(name, samples, shape):
    features = extract(noise(samples), EXTRACTORS[name]())
    assert features.shape == shape
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_whisper_features_are_those_of_the_padded_window():
    extractor = EXTRACTORS["whisper"]()
    padded = extractor(noise(16000), sampling_rate=16000)["input_features"][0].T
    np.testing.assert_allclose(extract(noise(16000), extractor)[:98], padded[:98], atol=1e-5)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_silence_has_finite_features(name):
    assert np.isfinite(extract(np.zeros(8000, "f4"), EXTRACTORS[name]())).all()


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize(
    ("audio", "match"),
    [
        (noise(160), "0.010 s"),
        (np.full(1600, np.nan, "f4"), "NaN"),
        (np.zeros((2, 1600), "f4"), "expected one channel"),
    ],
)
def test_audio_that_no_model_can_use(name, audio, match):
    with pytest.raises(AudioError, match=match):
        extract(audio, EXTRACTORS[name]())


def test_features_of_integer_pcm_are_those_of_the_same_audio_as_floats():
    pcm = np.round(noise(16000) * 32767).astype(np.int16)
    for make in EXTRACTORS.values():
        as_floats = extract(pcm.astype(np.float32) / 32768, make())
        np.testing.assert_array_equal(extract(pcm, make()), as_floats)
    with pytest.raises(AudioError, match="samples of type bool"):
        extract(pcm > 0, EXTRACTORS["whisper"]())


@pytest.fixture
def clips(tmp_path):
    made = []
    for index, samples in enumerate([16161, 960, 8000]):
        path = tmp_path / f"{index}.wav"
        sf.write(path, noise(samples, index), 16000, subtype="FLOAT")
        made.append(Clip(path, "a", "test"))
    return made


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_are_the_same_alone_and_in_company(clips, name):
    extractor = EXTRACTORS[name]()
    together = load_features(clips, extractor, max_seconds=None)
    for clip, features in zip(clips, together, strict=True):
        np.testing.assert_array_equal(
            load_features([clip], extractor, max_seconds=None)[0], features
        )


def test_load_features_reports_progress_and_cuts(clips):
    seen = []
    features = load_features(
        clips,
        EXTRACTORS["wav2vec2"](),
        max_seconds=0.5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [len(one) for one in features] == [8000, 960, 8000]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def in_file(array) -> bool:
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_features_too_many_for_the_memory_are_the_same_from_a_file(clips, name, monkeypatch):
    extractor = EXTRACTORS[name]()
    inside = load_features(clips, extractor, max_seconds=None)
    monkeypatch.setattr("sounding.data.features.KEEP_BYTES", inside[0].nbytes)
    outside = load_features(clips, extractor, max_seconds=None)
    assert [in_file(one) for one in outside] == [False, *[True] * (len(clips) - 1)]
    for one, other in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(one, other)
    layout = extractor_layout(extractor)
    for key, value in collate(inside, *layout).items():
        assert torch.equal(collate(outside, *layout)[key], value)


def test_no_room_for_features_says_where(clips, monkeypatch, tmp_path):
    monkeypatch.setattr("sounding.data.features.KEEP_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError, match=r"cannot be kept in .*none .*: set TMPDIR to a directory"):
        load_features(clips, EXTRACTORS["wav2vec2"](), max_seconds=None)


def test_clips_over_30_seconds_are_refused_unless_cut(tmp_path):
    sf.write(tmp_path / "long.flac", noise(31 * 8000), 8000)
    clip = Clip(tmp_path / "long.flac", "a", "train")
    with pytest.raises(AudioError, match=r"long\.flac: 31\.0 s, expected at most 30 s"):
        load_features([clip], EXTRACTORS["whisper"](), max_seconds=None)
    assert load_features([clip], EXTRACTORS["whisper"](), max_seconds=30)[0].shape == (3000, 80)


def test_a_bad_clip_is_named(clips, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"bad" * 100)
    with pytest.raises(AudioError, match=r"bad\.wav: cannot be decoded"):
        load_features(
            [*clips, Clip(tmp_path / "bad.wav", "a", "test")],
            EXTRACTORS["wav2vec2"](),
            max_seconds=None,
        )


def test_a_rate_that_the_extractor_does_not_take(clips):
    with pytest.raises(ValueError, match="8000 Hz, but Wav2Vec2FeatureExtractor takes 16000"):
        load_features(clips, EXTRACTORS["wav2vec2"](), max_seconds=None, rate=8000)


# --- batches --------------------------------------------------------------------------------


def test_layout_of_every_extractor():
    assert {name: extractor_layout(make()) for name, make in EXTRACTORS.items()} == {
        "whisper": ("input_features", "bins_first"),
        "wav2vec2": ("input_values", "time_first"),
        "wav2vec2-plain": ("input_values", "time_first"),
        "ast": ("input_values", "time_first"),
        "wav2vec2-bert": ("input_features", "time_first"),
        "parakeet": ("input_features", "time_first"),
    }


@pytest.mark.parametrize("layout", ["time_first", "bins_first"])
def test_collate_pads_frames_with_zeros_on_the_right(layout):
    features = [np.full((n, 4), float(n), np.float32) for n in (3, 7, 1)]
    batch = collate(features, "input_features", layout)
    assert set(batch) == {"input_features", "attention_mask"}
    assert batch["attention_mask"].dtype == torch.long
    assert batch["attention_mask"].sum(1).tolist() == [3, 7, 1]
    values = batch["input_features"]
    assert values.shape == ((3, 7, 4) if layout == "time_first" else (3, 4, 7))
    assert values.is_contiguous()
    values = values if layout == "time_first" else values.transpose(1, 2)
    for index, one in enumerate(features):
        assert torch.equal(values[index, : len(one)], torch.from_numpy(one))
        assert not values[index, len(one) :].any()
        assert batch["attention_mask"][index, : len(one)].all()


def test_collate_pads_waveforms():
    batch = collate([noise(5), noise(3)], "input_values", "time_first")
    assert batch["input_values"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    with pytest.raises(ValueError, match="no features"):
        collate([], "input_values", "time_first")


LENGTHS = np.random.default_rng(0).integers(10, 1000, 1003).tolist()


def shuffled(seed=0, epoch=0, size=8):
    return batches(LENGTHS, size, seed=seed, epoch=epoch, shuffle=True)


def test_batches_follow_from_seed_and_epoch():
    assert shuffled() == shuffled()
    assert shuffled(epoch=1) != shuffled()
    assert shuffled(seed=1) != shuffled()
    assert shuffled(seed=1, epoch=0) != shuffled(seed=0, epoch=1)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [1, 8, 5000])
def test_batches_hold_every_clip_once(shuffle, size):
    made = batches(LENGTHS, size, seed=0, epoch=3, shuffle=shuffle)
    assert sorted(index for batch in made for index in batch) == list(range(len(LENGTHS)))
    assert len(made) == -(-len(LENGTHS) // size)
    assert sum(len(batch) < size for batch in made) <= 1


def test_batches_without_shuffling_keep_the_order():
    made = batches([5, 1, 3], 2, seed=0, epoch=0, shuffle=False)
    assert made == [[0, 1], [2]]
    assert batches([], 2, seed=0, epoch=0, shuffle=True) == []


def test_shuffled_batches_need_little_padding_and_come_in_random_order():
    made = shuffled()
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in made)
    assert padded < 1.05 * sum(LENGTHS)
    longest = [max(LENGTHS[i] for i in batch) for batch in made]
    assert abs(np.corrcoef(longest, np.arange(len(made)))[0, 1]) < 0.3


def test_batches_by_length_are_as_large_as_they_may_be():
    most = 4000
    made = batches(LENGTHS, 16, seed=0, epoch=1, shuffle=True, most=most)
    assert sorted(index for batch in made for index in batch) == list(range(len(LENGTHS)))
    assert all(len(b) * max(LENGTHS[i] for i in b) <= most and len(b) <= 16 for b in made)
    assert {len(b) for b in made} > {4, 8, 16}
    assert batches([9, 1, 30, 2], 8, seed=0, epoch=0, shuffle=False, most=10) == [
        [0],
        [1],
        [2],
        [3],
    ]
    assert batches([1, 2, 3], 8, seed=0, epoch=0, shuffle=False, most=6) == [[0, 1], [2]]


def test_batch_size_below_one():
    with pytest.raises(ValueError, match="batch size of 0"):
        batches(LENGTHS, 0, seed=0, epoch=0, shuffle=False)


# --- real data ------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "clips", "labels"),
    [("fsdd", 3000, 10), ("wakewords", 3538, 11), ("ravdess", 1440, 8), ("esc10", 400, 10)],
)
def test_real_folders_load_and_give_features(name, clips, labels):
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"no folder {root}: set SOUNDING_DATA to the directory of the data sets")
    folder = load_folder(root)
    assert len(folder.clips) == clips
    assert len(folder.labels) == labels
    some = [
        c for split in ("train", "validation", "test") for c in subset(folder, split, 4, seed=0)
    ]
    features = load_features(some, EXTRACTORS["whisper"](), max_seconds=None)
    for clip, one in zip(some, features, strict=True):
        assert len(one) == pytest.approx(100 * float(clip.extra["duration"]), abs=1.5)


# --- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("don\u2019t", "don't"),
        ("don\u02bct", "don't"),
        ("don\u00b4t", "don't"),
        ("don`t", "don't"),
        ("co\u00adoperate", "cooperate"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("no\u00a0break", "no break"),
        ("thin\u2009and\u3000wide", "thin and wide"),
        ("two  spaces\n", "two spaces"),
    ],
)
def test_texts_that_look_the_same_are_the_same(one, other):
    assert tidy(one) == tidy(other) == other
    assert normalize_text(one.upper()) == normalize_text(other)
    pytest.importorskip("jiwer")
    assert word_errors(one, other) == word_errors(other, one) == 0
    assert character_errors(one, other) == 0
    assert word_errors(one, f"{other} more") == 1
    pytest.importorskip("whisper_normalizer")
    assert whisper_plain(one) == whisper_plain(other)


def test_letters_that_differ_stay_different():
    assert normalize_text("resume") != normalize_text("r\u00e9sum\u00e9")
    pytest.importorskip("jiwer")
    assert word_errors("caf\u00e9", "cafe") == 1
    assert word_errors("\u200b", "cafe") == 1
