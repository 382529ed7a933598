"""A study in one Parquet file says what its measured.json say, or that it is damaged."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from made_up_study import CLIPS, measured, write

from sounding.cli.app import main
from sounding.study.html import write_report
from sounding.study.measured import Measured, read_values
from sounding.study.pack import PACK, write_pack
from sounding.study.study import each_run, load_study

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
PAGES = {"out": "report.html", "verdict": "verdict.json", "table": "table.md"}


def spoken(seed):
    """A run of texts, with more errors than a byte holds, and none for some clips."""
    run = measured("static", seed, "said")
    run["metric"] = "wer"
    for clips in run["sets"].values():
        clips["clips"]["weight"] = [i % 5 for i in range(CLIPS)]
        clips["clips"]["label"] = [None] * CLIPS
        clips["clips"]["speaker"] = ["größer" if i % 2 else None for i in range(CLIPS)]
        for row in clips["rows"]:
            row["errors"] = [[300 * (i % 3) for i in range(CLIPS)] for _ in row["errors"]]
    return run


def first_format(run):
    run["format"] = 1
    for clips in run["sets"].values():
        for row in clips["rows"]:
            row["correct"] = ["".join("10"[e] for e in draw) for draw in row.pop("errors")]
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs of every kind: draws, ceilings on some clips, texts, the format of before."""
    root = tmp_path_factory.mktemp("study")
    for method in ("random", "early-exit", "input"):
        write(root, measured(method, 0, "helps"))
    write(root, first_format(measured("static", 0, "helps")))
    write(root, spoken(0))
    return root


@pytest.fixture(scope="module")
def pack(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / PACK
    write_pack(each_run(root), path)
    return path


def pages(paths, out):
    pytest.importorskip("matplotlib")
    write_report(paths, **{kind: out / name for kind, name in PAGES.items()})
    return {name: (out / name).read_bytes() for name in PAGES.values()}


def same(one, other):
    """Whether two runs hold the same values, whatever they were read from."""
    assert vars(one).keys() == vars(other).keys()
    for name, value in vars(one).items():
        if name not in ("path", "sets"):
            assert value == getattr(other, name), name
    assert list(one.sets) == list(other.sets)
    for where, clips in one.sets.items():
        twin = other.sets[where]
        assert (clips.files, clips.groups) == (twin.files, twin.groups)
        for name in ("seconds", "weight"):
            np.testing.assert_array_equal(getattr(clips, name), getattr(twin, name))
        assert list(clips.rows) == list(twin.rows)
        for key, row in clips.rows.items():
            for name, value in vars(row).items():
                np.testing.assert_array_equal(value, getattr(twin.rows[key], name))
    return True


def test_verdict_table_and_page_are_the_same_from_the_pack_as_from_the_files(root, pack, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "pack").mkdir()
    assert pages(root, tmp_path / "files") == pages(pack, tmp_path / "pack")


def test_every_value_of_a_pack_is_that_of_its_file(root, pack):
    files, packed = load_study(root), load_study(pack)
    assert [study.data for study in files] == [study.data for study in packed] == ["helps", "said"]
    for one, other in zip(files, packed, strict=True):
        assert all(same(*pair) for pair in zip(one.runs, other.runs, strict=True))
    assert 20 * pack.stat().st_size < sum(f.stat().st_size for f in root.rglob("*.json"))


def test_errors_that_are_no_whole_numbers_are_not_rounded(tmp_path):
    run = measured("static", 0, "idle")
    run["sets"]["test"]["rows"][0]["errors"] = [[i / 7 for i in range(CLIPS)]]
    path = write(tmp_path, run)
    write_pack(each_run(path), tmp_path / PACK)
    ((_, values),) = each_run(tmp_path / PACK)
    assert same(Measured.from_json(path), Measured.from_values(values, "a"))


def test_a_pack_of_packs_and_files_is_read_beside_directories(root, pack, tmp_path):
    other = write(tmp_path / "more", measured("full", 0, "helps"))
    write_pack(each_run([pack, other]), tmp_path / "all.parquet")
    (helps, _) = load_study(tmp_path / "all.parquet")
    assert list(helps.variants) == ["full", "random", "early-exit", "static", "input"]
    (mixed, _) = load_study([pack, tmp_path / "more"])
    assert all(same(*pair) for pair in zip(helps.runs, mixed.runs, strict=True))
    with pytest.raises(ValueError, match=r"random-0.*: a second run of random, seed 0"):
        load_study([pack, root])


def test_a_directory_is_read_by_its_pack_where_the_files_are_gone(pack, tmp_path):
    (tmp_path / PACK).write_bytes(pack.read_bytes())
    assert len(load_study(tmp_path)) == 2
    write(tmp_path, measured("full", 0, "idle"))  # what is measured anew is not mixed with it
    assert [study.data for study in load_study(tmp_path)] == ["idle"]


def test_a_method_that_nobody_knows_is_reported(tmp_path):
    path = tmp_path / "page"
    path.mkdir()
    write(tmp_path, measured("input", 0, "idle"))
    run = measured("static", 0, "idle", variant="<lottery>")
    run["method"] = "<lottery>"
    write(tmp_path / "other", run)
    write_pack(each_run(tmp_path), tmp_path / "all.parquet")
    (study,) = load_study(tmp_path / "all.parquet")
    assert list(study.variants) == ["input", "<lottery>"]
    made = pages(tmp_path / "all.parquet", path)
    assert b"over &lt;lottery&gt;" in made["report.html"]
    assert b"cannot be drawn" not in made["report.html"]
    assert b"&lt;lottery&gt;" in made["table.md"]


def test_a_file_that_contradicts_itself_is_not_packed(tmp_path):
    run = measured("static", 0, "idle")
    run["sets"]["test"]["rows"][0]["errors"] = [[0]]
    path = write(tmp_path, run)
    with pytest.raises(ValueError, match="the errors of 240 clips"):
        write_pack([(path, read_values(path))], tmp_path / PACK)
    assert not (tmp_path / PACK).exists()


def test_a_flipped_bit_changes_nothing_or_is_said(pack, tmp_path):
    content, runs = pack.read_bytes(), [run for study in load_study(pack) for run in study.runs]
    path, said = tmp_path / PACK, []
    for place in np.random.default_rng(0).integers(0, len(content), 60).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            again = [run for study in load_study(path) for run in study.runs]
        except ValueError as error:
            said.append(str(error))
        else:
            assert all(same(*pair) for pair in zip(runs, again, strict=True))
    assert len(said) > 30
    assert all(str(path) in text and "\n" not in text for text in said)


def rewrite(pack, path, **columns):
    """The first row of a pack with other columns."""
    made = pq.read_table(pack).slice(0, 1)
    for name, values in columns.items():
        place, cells = made.schema.names.index(name), pa.array(values)
        nullable = None in values
        cells = cells.cast(pa.string()) if nullable else cells
        made = made.set_column(place, pa.field(name, cells.type, nullable), cells)
    pq.write_table(made, path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda pack, path: path.write_bytes(b""), "is no pack of a study: "),
        (lambda pack, path: path.write_text("{}"), "is no pack of a study: "),
        (lambda pack, path: path.write_bytes(b"PAR1" + bytes(99) + b"PAR1"), "is no pack of a"),
        (lambda pack, path: path.write_bytes(pack.read_bytes()[:-9]), "is no pack of a study: "),
        (lambda pack, path: path.mkdir(), "no measured.json and no measured.parquet in"),
        (lambda pack, path: pq.write_table(pa.table({"a": [1]}), path), "it has other columns"),
        (lambda pack, path: rewrite(pack, path, run=[5]), "it has other columns"),
        (lambda pack, path: rewrite(pack, path, run=[None]), "it has other columns"),
        (lambda pack, path: rewrite(pack, path, run=["{"]), "it is no JSON"),
        (lambda pack, path: rewrite(pack, path, run=["[]"]), "expected names with values"),
        (lambda pack, path: rewrite(pack, path, run=["{}"]), "is missing"),
        (
            lambda pack, path: pq.write_table(
                pa.concat_tables([pq.read_table(pack).slice(0, 1)] * 2), path
            ),
            "a second set 'validation' of one run",
        ),
    ],
)
def test_what_is_no_pack_is_said(pack, tmp_path, make, told):
    make(pack, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=told) as error:
        load_study(tmp_path / "a.parquet")
    assert str(tmp_path) in str(error.value)


def test_a_small_file_that_stands_for_very_much_is_refused(pack, monkeypatch):
    monkeypatch.setattr("sounding.study.pack.VALUES", 1000)
    with pytest.raises(ValueError, match="it has more than 1,000 values"):
        load_study(pack)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_pipe_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / PACK)
    with pytest.raises(ValueError, match="a pipe or a device"):
        load_study(tmp_path)


def test_the_command_line_packs_and_reports_a_pack(root, tmp_path, capsys):
    out, pack = tmp_path / "a.html", tmp_path / "a.parquet"
    assert main(["report", str(root), "--out", str(out), "--pack", str(pack)]) == 0
    said, page = capsys.readouterr().out, out.read_bytes()
    assert main(["report", str(pack), "--out", str(out)]) == 0
    assert (capsys.readouterr().out, out.read_bytes()) == (said, page)
    out.unlink()
    assert main(["report", str(root), "--out", str(out), "--pack", "a.json"]) == 2
    assert "a pack is named *.parquet, such as measured.parquet" in capsys.readouterr().err
    assert not out.exists()  # said before the work


def test_without_pyarrow_the_extra_is_named(root, pack, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "a.html"
    for command in ([str(pack)], [str(root), "--pack", str(tmp_path / "a.parquet")]):
        assert main(["report", *command, "--out", str(out)]) == 2
        assert "pip install 'sounding[study]'" in capsys.readouterr().err
        assert not out.exists()
    assert main(["report", str(root), "--out", str(out)]) == 0  # without a pack it is not needed


def test_the_verdicts_are_a_data_set_a_line(root, tmp_path):
    text = pages(root, tmp_path)["verdict.json"].decode()
    lines = text.splitlines()[1:-1]
    assert [json.loads(line.rstrip(","))["data"] for line in lines] == ["helps", "said"]
    assert [one["data"] for one in json.loads(text)["verdicts"]] == ["helps", "said"]
