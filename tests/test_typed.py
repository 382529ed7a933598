"""Reading files: values of the right types, or one line that says where what is wrong."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from sounding.files import write_json, write_sealed_json
from sounding.typed import check, parse_json, read_json, read_yaml


@dataclass(frozen=True)
class Inner:
    name: str
    pairs: list[tuple[float, float]]
    by_number: dict[int, bool]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    count: int
    share: float | None = None


GOOD = {"inner": {"name": "a", "pairs": [[1, 2.5]], "by_number": {"7": True}}, "count": 3}


def changed(**inner: Any) -> dict[str, Any]:
    return {**GOOD, "inner": {**GOOD["inner"], **inner}}


class TellError(ValueError):
    """An error of a caller."""


def one_line(error: pytest.ExceptionInfo[Any], name: Any) -> str:
    text = str(error.value)
    assert text.startswith(str(name))
    assert "\n" not in text
    assert len(text) < 400
    return text


# --- JSON -----------------------------------------------------------------------------------


def test_json_becomes_values_of_its_type(tmp_path):
    write_json(tmp_path / "a.json", GOOD)
    made = read_json(tmp_path / "a.json", Outer)
    assert made == Outer(Inner("a", [(1.0, 2.5)], {7: True}), 3)
    assert type(made.inner.pairs[0][0]) is float  # a whole number may stand for any number


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps({**GOOD, "count": "3"}), "count: expected a whole number, got '3'"),
        (json.dumps({**GOOD, "count": True}), "count: expected a whole number, got true"),
        (json.dumps({**GOOD, "count": 3.0}), "count: expected a whole number, got 3.0"),
        (json.dumps({**GOOD, "share": "x"}), "share: expected a number, got 'x'"),
        (json.dumps(changed(name=False)), "inner.name: expected a text, got false"),
        (json.dumps(changed(pairs=[[1, 2], [1]])), "inner.pairs[1][1] is missing"),
        (json.dumps(changed(pairs={})), "inner.pairs: expected a list, got names with values"),
        (json.dumps(changed(by_number={"x": True})), "inner.by_number.x"),
        (json.dumps({**GOOD, "inner": []}), "inner: expected names with values, got a list of 0"),
        (json.dumps({**GOOD, "sahre": 1}), "sahre is not known: did you mean share?"),
        (json.dumps({"inner": {}, "cuont": 1}), "cuont is not known: did you mean count?"),
        (json.dumps(changed(nmae="a")), "inner.nmae is not known: did you mean name?"),
        (json.dumps({"inner": GOOD["inner"]}), "count is missing"),
        ("[]", "expected names with values, got a list of 0"),
        ("null", "expected names with values, got null"),
        ('{"count": 1, "count": 2}', "count stands there twice"),
        ('{"share": NaN}', "NaN is no number that can be used"),
        ('{"share": -Infinity}', "-Infinity is no number that can be used"),
        ('{"share": 1e999}', "1e999 is no number that can be used"),
        ('{"count": 1' + 5000 * "0" + "}", "is too large"),
        ('{"share": 1' + 5000 * "0" + "}", "is too large"),
        (100_000 * "[", "nested too deeply"),
        (400 * '{"inner":' + "1" + 400 * "}", "recursion limit"),
        ("{", "it is no JSON"),
        ("", "it is no JSON"),
        ('{"inner": "\\ud800"}', "hex escape"),
        ('{"a\\u001b[31m": 1}', "'a\\x1b[31m' is not known"),
    ],
    ids=lambda value: value[:40],
)
def test_json_of_another_kind_gets_one_line_with_the_place(tmp_path, text, told):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(TellError) as error:
        read_json(path, Outer, error=TellError, what="is no box", advice="make it anew")
    said = one_line(error, f"{path} is no box (")
    assert told in said
    assert said.endswith("): make it anew")
    with pytest.raises(ValueError, match="cannot be used") as error:
        parse_json(text, Outer, "its lid")
    assert told in one_line(error, "its lid")


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}", b'{"a": "\xe9"}'])
def test_what_is_no_utf_8_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    for read in (read_json, read_yaml):
        with pytest.raises(ValueError, match="it is no UTF-8 text"):
            read(tmp_path / "a.json", dict[str, Any])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_pipe_a_device_or_a_directory_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_json, read_yaml):
        for path, told in (
            (tmp_path / "pipe", "a pipe or a device"),
            ("/dev/zero", "a pipe or a device"),
            (tmp_path, "a directory"),
            (tmp_path / "none", "No such file"),
            (tmp_path / "a\0b", "null"),
        ):
            with pytest.raises(ValueError, match=told) as error:
                read(path, dict[str, Any])
            one_line(error, path)


def test_a_file_that_is_far_too_long_is_not_read(tmp_path):
    with (tmp_path / "long").open("wb") as file:
        file.truncate(2**40)
    for read in (read_json, read_yaml):
        with pytest.raises(ValueError, match="it is longer than"):
            read(tmp_path / "long", dict[str, Any])


@dataclass(frozen=True)
class Nested:
    many: dict[str, list[Inner]]
    one: Annotated[Inner | None, "a note"] = None
    few: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"many": {"a": [{}, {"nmae": 1}]}}, "many.a[1].nmae"),
        ({"many": {}, "one": {"nmae": 1}}, "one.nmae"),
        ({"many": {}, "few": [{"nmae": 1}]}, "few[0].nmae"),
    ],
)
def test_the_name_that_was_meant_is_found_at_any_depth(value, place):
    with pytest.raises(ValueError, match=re.escape(f"{place} is not known: did you mean name?")):
        check(value, Nested, "a")


def test_no_name_is_guessed_where_none_is_close():
    with pytest.raises(ValueError, match=r"colour is not known$"):
        check({"colour": 1}, Inner, "a")


def test_a_value_gets_a_narrower_type():
    assert check({"1": 2}, dict[int, int], "a") == {1: 2}
    with pytest.raises(TellError, match=r"a cannot be used: x: expected a whole number"):
        check({"x": "y"}, dict[str, int], "a", error=TellError)


# --- seals ----------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_sealed_file_is_refused(tmp_path):
    path = tmp_path / "a.json"
    value = {"labels": ["yes", "größer"], "sha256": {"w": "0" * 64}, "share": 0.5}
    write_sealed_json(path, value)
    assert read_json(path, dict[str, Any]) == value
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"a\.json (is not the file|cannot be used)"):
            read_json(path, dict[str, Any])
    path.write_bytes(content.replace(b"  ", b" "))
    with pytest.raises(ValueError, match=r"a\.json is not the file that was written .*; train"):
        read_json(path, dict[str, Any], advice="train again")


def test_a_file_of_before_there_were_seals_is_read(tmp_path):
    write_json(tmp_path / "a.json", GOOD)
    assert read_json(tmp_path / "a.json", dict[str, Any]) == GOOD


# --- YAML -----------------------------------------------------------------------------------


def yaml(tmp_path, text, kind=dict[str, Any]):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return read_yaml(path, kind)


def test_yaml_means_what_it_says(tmp_path):
    text = """
        # settings
        whole: 5
        negative: -1_000
        rate: 1e-4
        other: 5.e-5
        share: .5
        word: encoder
        quoted: 'no'
        digits: "0500"
        nothing: null
        right: true
        list: [a, 1, {b: 2.5}]
        base: &base {x: 1, y: 2}
        own: {<<: *base, y: 3}
        both: {<<: [*base, {y: 4, z: 5}]}
    """
    assert yaml(tmp_path, text) == {
        "whole": 5, "negative": -1000, "rate": 1e-4, "other": 5e-5, "share": 0.5,
        "word": "encoder", "quoted": "no", "digits": "0500", "nothing": None, "right": True,
        "list": ["a", 1, {"b": 2.5}], "base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3},
        "both": {"x": 1, "y": 2, "z": 5},
    }  # fmt: skip
    assert yaml(tmp_path, "# nothing\n") == {}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{before}'])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k0: 1}\n" + "".join(
    f"{name}: &{name} {{{', '.join(9 * [f'<<: *{before}'])}}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("size: 0500", "line 1: 0500 would be a number that is not decimal"),
        ("a: 1\nsize: 0x1F", "line 2: 0x1F would be a number that is not decimal"),
        ("time: 1:30", "1:30 would be a number that is not decimal"),
        ("time: 1:30.5", "1:30.5 is no number"),
        ("rate: .inf", ".inf is no number that can be used"),
        ("rate: .nan", ".nan is no number that can be used"),
        ("rate: 1e999", "1e999 is no number that can be used"),
        ("seed: 1" + 99 * "0", "is too large"),
        ("day: 2020-01-01", "'2020-01-01' is a timestamp: write a text in quotes"),
        ("day: 2020-13-77", "is a timestamp"),
        ("yes: 1", "the name yes is no text: write it in quotes"),
        ("1: 1", "the name 1 is no text"),
        ("? [a]\n: 1", "is no text"),
        ("a: 1\nb: 2\na: 3", "line 3: a stands there twice"),
        ("a: =", "'=' is a value"),
        ("a: !!binary aGk=", "is a binary"),
        ("a: !!bool foo", "neither true nor false"),
        ("a: !!int foo", "not decimal"),
        ("a: !!float foo", "no number"),
        ("a: !!set {b}", "the tag"),
        ("a: !!python/object/apply:os.system [exit]", "the tag"),
        ("a: {<<: 3}", "<< takes names with values"),
        ("a: b: c", "it is no YAML: mapping values are not allowed here in line 1"),
        ("--- 1\n--- 2", "expected a single document"),
        ("a: \x01", "it is no YAML"),
        ("a: *b", "undefined alias"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + 3000 * "[", "nested too deeply"),
        (LAUGHS, "its aliases stand for too much"),
        (MERGED, "its aliases stand for too much"),
        ("- 1", "expected names with values, got a list of 1"),
        ("just text", "expected names with values, got 'just text'"),
        ("a" * 2**18 + ": 1", "it is longer than"),
    ],
    ids=lambda value: value[:30],
)
def test_yaml_that_would_mean_something_else_is_refused(tmp_path, text, told):
    with pytest.raises(ValueError, match="cannot be used") as error:
        yaml(tmp_path, text)
    assert told in one_line(error, tmp_path / "a.yaml")


@pytest.mark.parametrize("word", ["no", "off", "yes", "True", "5", "1.5"])
def test_no_text_is_made_of_a_bool_or_a_number(tmp_path, word):
    with pytest.raises(ValueError, match=r"a: expected a text, got .*, which is a text only in"):
        yaml(tmp_path, f"a: {word}", dict[str, str])


@pytest.mark.parametrize("word", ["yes", "'5'"])
def test_no_number_is_made_of_a_bool_or_a_text(tmp_path, word):
    with pytest.raises(ValueError, match="a: expected a number, got"):
        yaml(tmp_path, f"a: {word}", dict[str, float])
