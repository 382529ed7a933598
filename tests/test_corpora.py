"""Corpora: each official layout in a small copy, what is wrong with one, data sets of the hub."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import corpora
import numpy as np
import pytest
import soundfile as sf

from sounding.data.corpora import LAYOUTS, MARKS, open_corpus
from sounding.data.features import load_audio
from sounding.data.folder import AudioFolder, DataError, load_folder
from sounding.data.layouts import stm_text


@pytest.fixture(scope="module", params=corpora.MAKE)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A small copy of each corpus, made once."""
    made = {}
    for name, make in corpora.MAKE.items():
        made[name] = tmp_path_factory.mktemp("corpora") / name
        make(made[name])
    return made


def counts(folder: AudioFolder) -> dict[str, int]:
    return dict(Counter(clip.split for clip in folder.clips))


# --- each layout ----------------------------------------------------------------------------


def test_layouts_of_the_tests_are_all_that_there_are():
    assert set(corpora.MAKE) == {*LAYOUTS, "folder"} == set(MARKS) - {"hub"}


@pytest.mark.filterwarnings("ignore:.*have no audio")
def test_a_layout_is_found_by_itself_and_its_audio_is_read(copies, layout, monkeypatch):
    folder = open_corpus(copies[layout])
    monkeypatch.chdir(copies[layout].parent)
    assert folder == open_corpus(layout, layout)
    assert folder.root == copies[layout]
    assert {"train", "validation", "test"} == set(counts(folder))
    for clip in folder.clips:
        assert 0.3 < len(load_audio(clip, 16000, None)) / 16000 < 0.6


@pytest.mark.filterwarnings("ignore:.*have no audio")
def test_a_layout_is_found_in_the_directory_above(copies, layout, tmp_path):
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "corpus").symlink_to(copies[layout])
    assert open_corpus(tmp_path / "above").clips
    (tmp_path / "above" / "second").symlink_to(copies["esc50"])
    with pytest.raises(DataError, match=r"more than one corpus in it: corpus \(.*second \(esc50"):
        open_corpus(tmp_path / "above")


def test_librispeech(copies):
    folder = open_corpus(copies["librispeech"])
    assert folder.task == "text"
    assert counts(folder) == {"train": 4, "validation": 4, "test": 8}
    clip = folder.clips[0]
    assert folder.name(clip) == "dev-clean/19/121123/19-121123-0000.flac"
    assert (clip.target, clip.speaker) == ("NO OF DEV-CLEAN", "19")
    assert Counter(c.extra["subset"] for c in folder.split("test")) == {
        "test-clean": 4, "test-other": 4
    }  # fmt: skip
    train = ["train-clean-100", "train-clean-360", "train-other-500"]
    whole = open_corpus(copies["librispeech"], train=train, test=["test-clean"])
    assert counts(whole) == {"train": 12, "validation": 4, "test": 4}


def test_tedlium3(copies):
    folder = open_corpus(copies["tedlium3"])
    assert counts(folder) == {"train": 6, "validation": 2, "test": 2}
    clip = folder.split("test")[0]
    assert folder.name(clip) == "legacy/test/sph/SpeakerTest0_2010.sph[0.45-0.95]"
    assert (clip.target, clip.speaker) == ("it's a yes", "SpeakerTest0_2010")
    samples, _ = sf.read(clip.path, dtype="float32")
    np.testing.assert_array_equal(load_audio(clip, 16000, None), samples[7200:15200])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("<o,f0,male> so i 'm {NOISE} here", "so i'm here"),
        ("they 'll say they 've it 's don 't", "they'll say they've it's don't"),
        ("'s the 'tis rock 'n roll", "'s the 'tis rock 'n roll"),
        ("either(2) way <sil> (AlGore_2009-0001-20)", "either way"),
        ("ignore_time_segment_in_scoring", ""),
        ("<o,,unknown> inter_segment_gap", "inter_segment_gap"),
        ("{COUGH}", ""),
    ],
)
def test_words_of_an_stm_segment(words, text):
    assert stm_text(words) == text


def test_speech_commands(copies):
    folder = open_corpus(copies["speech-commands"])
    assert folder.labels == ("no", "yes")
    assert counts(folder) == {"train": 8, "validation": 4, "test": 4}
    assert {clip.speaker for clip in folder.split("test")} == {"d4"}


def test_esc50_by_its_folds(copies):
    folder = open_corpus(copies["esc50"])
    assert folder.labels == ("no", "yes")
    folds = {s: {c.extra["fold"] for c in folder.split(s)} for s in ("validation", "test")}
    assert folds == {"validation": {"4"}, "test": {"5"}}
    other = open_corpus(copies["esc50"], test_fold=1, validation_fold=2)
    assert {clip.extra["fold"] for clip in other.split("test")} == {"1"}
    assert counts(other) == {"train": 6, "validation": 2, "test": 2}
    assert other.digest != folder.digest


def test_audioset_has_several_labels_and_leaves_out_what_is_gone(copies):
    with pytest.warns(UserWarning, match="of 11 segments 2 have no audio and are left out"):
        folder = open_corpus(copies["audioset"])
    assert folder.task == "tags"
    assert folder.labels == ("Gush", "Male speech, man speaking", "Speech")
    clip = folder.split("test")[2]
    assert clip.target == "Male speech, man speaking;Speech"
    assert len(folder.split("test")) == 3
    trained = {tag for clip in folder.split("train") for tag in clip.tags}
    assert trained == set(folder.labels)


def test_fluent(copies):
    folder = open_corpus(copies["fluent"])
    assert folder.labels == ("activate / lights / kitchen", "change language / none / none")
    assert counts(folder) == {"train": 4, "validation": 2, "test": 2}
    assert folder.clips[0].extra == {"text": "Do it, now"}


def test_ravdess_by_actor(copies):
    folder = open_corpus(copies["ravdess"])
    assert folder.labels == ("angry", "neutral")
    assert counts(folder) == {"train": 8, "validation": 4, "test": 8}
    assert {clip.speaker for clip in folder.split("test")} == {"actor21", "actor22"}
    assert folder.clips[1].extra == {"intensity": "strong"}
    other = open_corpus(copies["ravdess"], validation_actors=[22], test_actors=[1])
    assert {clip.speaker for clip in other.split("test")} == {"actor01"}


def test_iemocap_in_four_classes_by_session(copies):
    folder = open_corpus(copies["iemocap"])
    assert folder.labels == ("angry", "happy", "neutral", "sad")
    assert counts(folder) == {"train": 30, "validation": 10, "test": 10}
    assert {clip.speaker for clip in folder.split("test")} == {"5F", "5M"}
    assert Counter(c.target for c in folder.split("test"))["happy"] == 4  # excited among them


# --- what is wrong with a corpus ------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "gone", "match"),
    [
        ("librispeech", "dev-clean", r"no dev-clean \(there is test-clean, test-other"),
        ("librispeech", "test-other/19/121123/19-121123-0001.flac", "1 audio files of 16 clips"),
        ("tedlium3", "legacy/dev", "no legacy/dev/stm"),
        ("tedlium3", "legacy/test/sph/SpeakerTest0_2010.sph", "1 audio files of 10 clips"),
        ("speech-commands", "validation_list.txt", "no validation_list.txt"),
        ("speech-commands", "yes/d4_nohash_1.wav", "missing: .*yes/d4_nohash_1.wav"),
        ("esc50", "audio/5-100031-A-1.wav", "missing: .*5-100031-A-1.wav: unpack"),
        ("audioset", "eval_segments.csv", "no eval_segments.csv"),
        ("audioset", "class_labels_indices.csv", "no class_labels_indices.csv"),
        ("fluent", "data/valid_data.csv", "no data/valid_data.csv"),
        ("ravdess", "Actor_21/03-01-05-02-01-01-21.wav", ""),
        ("iemocap", "Session3", "no Session3"),
        ("iemocap", "Session5/sentences", "10 audio files of 50 clips are missing"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*have no audio")
def test_a_part_that_is_missing_is_named(copies, tmp_path, layout, gone, match):
    copy = shutil.copytree(copies[layout], tmp_path / layout)
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if match:
        with pytest.raises(DataError, match=match):
            open_corpus(copy)
    else:  # a layout that has no list of its files
        assert len(open_corpus(copy).clips) == len(open_corpus(copies[layout]).clips) - 1


@pytest.mark.parametrize(
    ("layout", "file", "text", "match"),
    [
        ("librispeech", "dev-clean/19/121123/19-121123.trans.txt", "19-121123-0000\n", "no text"),
        (
            "tedlium3",
            "legacy/dev/stm/SpeakerDev0_2010.stm",
            "x 1 x zero 1 <a> b\n",
            "line 1: not a",
        ),
        ("esc50", "meta/esc50.csv", "filename,fold\na.wav,1\n", "no column category"),
        ("esc50", "meta/esc50.csv", "filename,fold,category\na.wav,1\n", "line 2 is cut"),
        ("audioset", "eval_segments.csv", 'a, 0.0, 10.0, "/m/new"\n', "is not a segment with"),
        ("audioset", "eval_segments.csv", "a, 0.0\n", "is not a segment with"),
    ],
)
def test_a_damaged_list_is_named(copies, tmp_path, layout, file, text, match):
    copy = shutil.copytree(copies[layout], tmp_path / layout)
    (copy / file).write_text(text)
    with pytest.raises(DataError, match=match) as error:
        open_corpus(copy)
    assert Path(file).name in str(error.value)


LISTS = {
    "librispeech": ("dev-clean/19/121123/19-121123.trans.txt", "{} HELLO\n"),
    "tedlium3": ("legacy/dev/stm/SpeakerDev0_2010.stm", "{} 1 x 0.1 0.9 <a> b\n"),
    "speech-commands": ("testing_list.txt", "{}\n"),
    "esc50": ("meta/esc50.csv", "filename,fold,category\n{},1,x\n"),
    "fluent": (
        "data/valid_data.csv",
        "path,speakerId,transcription,action,object,location\n{},s3,Do it,a,b,c\n",
    ),
    "folder": ("metadata.csv", "file_name,label\n{},x\n"),
}


@pytest.mark.parametrize("layout", LISTS)
@pytest.mark.parametrize("kind", ["above", "absolute", "windows"])
def test_a_name_that_leads_out_of_a_corpus_is_refused(copies, tmp_path, layout, kind):
    copy = shutil.copytree(copies[layout], tmp_path / "inside" / layout)
    suffix = {"librispeech": "", "tedlium3": ""}.get(layout, ".wav")
    for place in (tmp_path / "secret", tmp_path / "inside" / "secret"):
        corpora.audio(place.with_suffix(".wav"))
        for other in (".flac", ".sph"):
            shutil.copy(place.with_suffix(".wav"), place.with_suffix(other))
    name = {
        "above": "../" * (len((copy / LISTS[layout][0]).parts) - len(tmp_path.parts)) + "secret",
        "absolute": str(tmp_path / "secret"),
        "windows": "..\\..\\secret",
    }[kind]
    if layout == "speech-commands" and kind != "windows":
        name = "../secret"
    file, line = LISTS[layout]
    (copy / file).write_text(line.format(f"{name}{suffix}"))
    with pytest.raises(DataError, match=r"would be outside of|is not WORD/FILE") as error:
        open_corpus(copy, layout)
    assert str(copy / file) in str(error.value)
    assert "metadata.csv" in file or "line " in str(error.value)


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("esc50", "audio/1-100030-A-0.wav"),
        ("fluent", "wavs/speakers/s1/train-0-4474.wav"),
        ("librispeech", "dev-clean/19/121123/19-121123-0000.flac"),
        ("speech-commands", "no/a1_nohash_0.wav"),
        ("ravdess", "Actor_01/03-01-01-01-01-01-01.wav"),
        ("folder", "audio/train0.wav"),
    ],
)
def test_a_link_that_leads_out_of_a_corpus_is_refused(copies, tmp_path, layout, file):
    copy = shutil.copytree(copies[layout], tmp_path / layout)
    (copy / file).rename(tmp_path / "secret")
    (copy / file).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"would be outside of .* or by a symbolic"):
        open_corpus(copy)


@pytest.mark.parametrize(("layout", "disk"), [("esc50", "A"), ("fluent", "B")])
def test_names_of_a_corpus_are_found_in_other_forms(copies, tmp_path, layout, disk):
    copy = shutil.copytree(copies[layout], tmp_path / layout)
    file = LISTS[layout][0]
    plain = open_corpus(copy).digest
    text = (copy / file).read_text(encoding="utf-8")
    if layout == "fluent":  # as it was written on Windows
        (copy / file).write_text(text.replace("/s3/", "\\s3\\").replace("wavs/", "wavs\\"))
        assert open_corpus(copy).digest == plain
        return
    old = "1-100030-A-0.wav"
    (copy / "audio" / old).rename(copy / "audio" / "e\u0301.wav")
    (copy / file).write_text(text.replace(old, "\u00e9.wav"), encoding="utf-8")
    folder = open_corpus(copy)
    assert "audio/\u00e9.wav" in map(folder.name, folder.clips)
    (copy / file).write_text(text.replace(old, "E\u0301.WAV"), encoding="utf-8")
    with pytest.raises(DataError, match=r"there is 'audio/\u00e9.wav', which differs in upper"):
        open_corpus(copy)


BAD_LISTS = [
    ("esc50", "filename,fold,category\na.wav,1e999,x\n", "line 2: the fold is '1e999', expected"),
    ("esc50", "filename,fold,category\na.wav,one,x\n", "line 2: the fold is 'one'"),
    ("esc50", "filename,fold,category\na.wav,1,x,y\n", "line 2 is cut, or has more values"),
    ("esc50", "filename,fold,category\n,1,x\n", "line 2: no name would be outside"),
    ("esc50", "filename,fold,category\na.wav,1," + "x" * 200000, "line 2: field larger than"),
    ("esc50", "filename,fold,category\na\0.wav,1,x\n", "line 2: a NUL byte"),
    ("esc50", b"filename,fold,category\n\xff.wav,1,x\n", "line 2: not UTF-8"),
    ("esc50", 'filename,fold,category\n"a.wav,1,x\n', "line 3?2?: unexpected end|line 2"),
    ("fluent", "path,speakerId\na.wav,b\n", "no column transcription, action"),
    ("tedlium3", "x 1 y nan 1 <a> b\n", "line 1: .* its start is 'nan', expected a number"),
    ("tedlium3", "x 1 y 0 inf <a> b\n", "line 1: .* its end is 'inf'"),
    ("tedlium3", ";; x\nx 1 y -1 1 <a> b\n", "line 2: .* its start is '-1'"),
    ("tedlium3", "x 1 y 0 1e300 <a> b\n", "line 1: .* its end is '1e300'"),
    ("tedlium3", "x 1 y 2 1 <a> b\n", "line 1: .* it ends at 1 s, before its start"),
    ("tedlium3", "\n\nx 1 y\n", "line 3: not a segment of STM"),
    ("librispeech", "19-121123-0000 A\n\n19-121123-0001\n", "line 3: no text for 19-121123-0001"),
    ("speech-commands", "d4_nohash_0.wav\n", "line 1: 'd4_nohash_0.wav' is not WORD/FILE"),
    ("speech-commands", b"no/\xff.wav\n", "line 1: not UTF-8"),
]


@pytest.mark.parametrize(("layout", "content", "match"), BAD_LISTS)
def test_a_list_with_anything_in_it_is_one_error_that_names_the_line(
    copies, tmp_path, layout, content, match
):
    copy = shutil.copytree(copies[layout], tmp_path / layout)
    path = copy / LISTS[layout][0]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=match) as error:
        open_corpus(copy, layout)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("layout", LISTS)
def test_a_list_that_is_a_pipe_or_a_directory_is_an_error(copies, tmp_path, layout):
    copy = shutil.copytree(copies[layout], tmp_path / layout)
    path = copy / LISTS[layout][0]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        open_corpus(copy, layout)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        open_corpus(copy, layout)


def test_labels_of_audioset_have_no_semicolon(copies, tmp_path):
    copy = shutil.copytree(copies["audioset"], tmp_path / "audioset")
    path = copy / "class_labels_indices.csv"
    path.write_text(path.read_text().replace("Gush", "Gush; flow"))
    with pytest.raises(DataError, match=r"class_labels_indices\.csv: line 4: 'Gush; flow' cannot"):
        open_corpus(copy)


def test_no_layout_says_what_was_looked_for(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError) as error:
        open_corpus(tmp_path)
    for name, patterns in MARKS.items():
        assert f"{name}: {patterns[0]}" in str(error.value)
    with pytest.raises(DataError, match=r"Looked there.* for esc50: meta/esc50.csv\. Give"):
        open_corpus(tmp_path, "esc50")
    with pytest.raises(ValueError, match="unknown layout 'mine': use one of librispeech, "):
        open_corpus(tmp_path, "mine")
    with pytest.raises(DataError, match=r"not a directory.*or the id of a data set on the hub"):
        open_corpus(tmp_path / "none")


def test_an_option_that_a_layout_lacks(copies):
    with pytest.raises(ValueError, match="no option fold; it has: test_fold, validation_fold"):
        open_corpus(copies["esc50"], fold=3)
    with pytest.raises(ValueError, match="no option fold; it has: none"):
        open_corpus(copies["folder"], fold=3)


def test_a_corpus_is_not_read_to_be_opened(copies, tmp_path):
    copy = shutil.copytree(copies["esc50"], tmp_path / "esc50")
    before = open_corpus(copy).digest
    for path in (copy / "audio").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert open_corpus(copy).digest == before


# --- data sets of the hub -------------------------------------------------------------------


def audio_of(root: Path, split: str, count: int) -> list[dict]:
    """The audio column of a data set: the bytes of flac files."""
    paths = [corpora.audio(root / f"{split}{index}.flac", index) for index in range(count)]
    return [{"bytes": path.read_bytes(), "path": path.name} for path in paths]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets` with a cache of its own, and what makes a local data set for it."""
    monkeypatch.setenv("SOUNDING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "hf" / "downloads")

    def make(splits=None, **columns):
        made = {}
        for split, count in (splits or {"train": 6, "test": 2}).items():
            values = {name: value(count) for name, (_, value) in columns.items()}
            kinds = {name: kind for name, (kind, _) in columns.items()}
            kinds["audio"] = {
                n: datasets.Value(k) for n, k in (("bytes", "binary"), ("path", "string"))
            }
            table = {"audio": audio_of(tmp_path / "made", split, count), **values}
            data = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
            made[split] = data.cast_column("audio", datasets.Audio())
        return datasets.DatasetDict(made)

    make.datasets = datasets
    return make


def labels(datasets):
    return (datasets.ClassLabel(names=["no", "yes"]), lambda count: [i % 2 for i in range(count)])


def texts(datasets):
    return (datasets.Value("string"), lambda count: [f"HELLO, {i}" for i in range(count)])


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_a_local_data_set_becomes_a_folder_with_its_audio_byte_for_byte(hub, tmp_path, kind):
    speakers = (hub.datasets.Value("int64"), lambda count: list(range(count)))
    made = hub(label=labels(hub.datasets), speaker_id=speakers)
    local = tmp_path / "local"
    if kind == "parquet":
        (local / "data").mkdir(parents=True)
        for split, data in made.items():
            data.to_parquet(local / "data" / f"{split}-00000-of-00001.parquet")
    else:
        made.save_to_disk(local)
    folder = open_corpus(local)
    assert folder.labels == ("no", "yes")
    assert counts(folder) == {"train": 5, "validation": 1, "test": 2}
    assert {clip.path.suffix for clip in folder.clips} == {".flac"}
    assert folder.root.parent == tmp_path / "cache" / "corpora"
    originals = {path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert {clip.path.read_bytes() for clip in folder.clips} == originals
    assert {clip.speaker for clip in folder.split("test")} == {"0", "1"}
    before = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")}
    assert open_corpus(local) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("*")} == before


def served(hub, monkeypatch, made, calls):
    def load_dataset(*args, **options):
        calls.append((args, options))
        return made

    monkeypatch.setattr(hub.datasets, "load_dataset", load_dataset)


def test_an_id_is_loaded_with_config_and_revision_and_without_code(hub, monkeypatch):
    calls = []
    splits = {"train.100": 4, "validation": 2, "test.clean": 2, "test.other": 1, "train.500": 9}
    served(hub, monkeypatch, hub(splits, text=texts(hub.datasets)), calls)
    wanted = {"train": ["train.100"], "test": ["test.clean", "test.other"]}
    folder = open_corpus("some/speech", config="all", revision="abc", splits=wanted)
    assert calls == [(("some/speech", "all"), {"revision": "abc"})]
    assert folder.task == "text"
    assert Counter(clip.extra["subset"] for clip in folder.split("test")) == {
        "test.clean": 2, "test.other": 1
    }  # fmt: skip
    assert folder.clips[0].target == "HELLO, 0"
    assert "some--speech" in folder.root.name
    open_corpus("some/speech", config="all", revision="abc", splits=wanted)
    assert len(calls) == 1


def test_tags_and_a_split_by_a_column(hub, monkeypatch):
    tags = (
        hub.datasets.List(hub.datasets.Value("string")),
        lambda n: [["a", "b"][: 1 + i % 2] for i in range(n)],
    )
    folds = (hub.datasets.Value("int64"), lambda count: [1 + i % 5 for i in range(count)])
    served(hub, monkeypatch, hub({"train": 10}, human_labels=tags, fold=folds), [])
    by = {"column": "fold", "validation": [4], "test": [5]}
    folder = open_corpus("some/tags", target="human_labels", by=by)
    assert folder.task == "tags"
    assert folder.labels == ("a", "b")
    assert counts(folder) == {"train": 6, "validation": 2, "test": 2}
    assert {clip.extra["fold"] for clip in folder.split("test")} == {"5"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "word"}, r"no column 'word', there is audio, what"),
        ({}, "no column of label or text, there is audio, what: name it as `target`"),
        ({"target": "what", "speaker": "who"}, "no column 'who'"),
        ({"target": "what", "splits": {"train": ["all"]}}, "no split all, there is train, test"),
        ({"target": "what", "by": {"column": "fold"}}, "no column 'fold'"),
    ],
)
def test_columns_that_are_not_there(hub, monkeypatch, options, match):
    served(hub, monkeypatch, hub(what=labels(hub.datasets)), [])
    with pytest.raises(DataError, match=match):
        open_corpus("some/speech", **options)


def test_a_data_set_that_cannot_be_had(hub, monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(hub.datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"cannot be had \(Couldn't reach the hub\): check the path or id"
    ):
        open_corpus("some/speech")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install sounding\[hub\]"):
        open_corpus("some/speech")


def test_an_interrupted_copy_goes_on_and_never_looks_finished(hub, monkeypatch, tmp_path):
    from sounding.data import hub as module

    made = hub({"train": 6, "test": 2}, label=labels(hub.datasets))
    served(hub, monkeypatch, made, [])
    real, written = module._save, []

    def save(audio, path, stop=3):
        if len(written) == stop:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        return real(audio, path)

    monkeypatch.setattr(module, "_save", save)
    with pytest.raises(OSError, match="No space left"):
        open_corpus("some/speech")
    assert [p for p in (tmp_path / "cache" / "corpora").iterdir() if p.name[0] != "."] == []
    monkeypatch.setattr(module, "_save", lambda audio, path: save(audio, path, stop=99))
    folder = open_corpus("some/speech")
    assert len(written) == 8  # nothing twice
    assert counts(folder) == {"train": 5, "validation": 1, "test": 2}


def test_a_copy_of_another_version_is_not_gone_on_with(hub, monkeypatch):
    from sounding.data import hub as module

    first = hub({"train": 6, "test": 2}, label=labels(hub.datasets))
    served(hub, monkeypatch, first, [])
    with monkeypatch.context() as broken:
        broken.setattr(module, "METADATA", "none/\0")  # fails once all clips are there
        with pytest.raises(ValueError, match="null byte"):
            open_corpus("some/speech")
    other = {"train": first["train"].select(range(1, 6)), "test": first["test"]}
    served(hub, monkeypatch, other, [])
    folder = open_corpus("some/speech")
    first_clip = next(
        c for c in folder.clips if c.path.name == "0000000.flac" and c.split != "test"
    )
    assert (
        first_clip.path.read_bytes()
        == first["train"].cast_column("audio", hub.datasets.Audio(decode=False))[1]["audio"][
            "bytes"
        ]
    )
    assert len([c for c in folder.clips if c.split != "test"]) == 5


KILLED = """
import os, sys
from sounding.data import hub
from sounding.data.corpora import open_corpus
real, count = hub._save, []
def save(audio, path):
    count.append(path)
    if len(count) == 4:
        os.kill(os.getpid(), 9)
    return real(audio, path)
hub._save = save
open_corpus(sys.argv[1])
"""


def test_a_kill_in_the_middle_loses_and_doubles_nothing(hub, tmp_path, monkeypatch):
    hub(label=labels(hub.datasets)).save_to_disk(tmp_path / "set")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "set")]
    assert subprocess.run(command, capture_output=True).returncode == -9
    (partial,) = (tmp_path / "cache" / "corpora").glob(".*.partial")
    assert len(list(partial.glob("train/*"))) == 3
    folder = open_corpus(tmp_path / "set")
    monkeypatch.setenv("SOUNDING_CACHE", str(tmp_path / "other"))
    whole = open_corpus(tmp_path / "set")
    assert (len(folder.clips), folder.digest) == (8, whole.digest)
    assert load_folder(folder.root).digest == load_folder(whole.root).digest


def test_rows_of_the_table_are_as_csv_reads_them(hub, monkeypatch):
    said = (hub.datasets.Value("string"), lambda count: [f'a "b",\nc {i}' for i in range(count)])
    served(hub, monkeypatch, hub({"test": 2}, text=said), [])
    folder = open_corpus("some/speech")
    assert folder.clips[1].target == 'a "b",\nc 1'
    with (folder.root / "metadata.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.parametrize("content", ["", "{", "[" * 100000, '{"source": NaN}', "\0"])
def test_a_damaged_mark_of_a_copy_is_an_error_that_names_it(hub, tmp_path, content):
    hub(label=labels(hub.datasets)).save_to_disk(tmp_path / "set")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "set")]
    assert subprocess.run(command, capture_output=True).returncode == -9
    (mark,) = (tmp_path / "cache" / "corpora").glob(".*.partial/source.json")
    mark.write_text(content)
    with pytest.raises(
        DataError, match=r"source\.json: .*, or remove .*\.partial to begin"
    ) as error:
        open_corpus(tmp_path / "set")
    assert str(mark) in str(error.value)
    shutil.rmtree(mark.parent)
    assert len(open_corpus(tmp_path / "set").clips) == 8


def test_labels_and_texts_of_the_hub_are_taken_in_one_form(hub, monkeypatch):
    forms = ["caf\u00e9", "cafe\u0301", "tea", " tea "]
    kinds = (hub.datasets.Value("string"), lambda count: [forms[i % 4] for i in range(count)])
    served(hub, monkeypatch, hub(label=kinds), [])
    assert open_corpus("some/speech").labels == ("caf\u00e9", "tea")
