"""Errors have one base, are told in a line, and a fault of ours is not told as one of the user."""

from __future__ import annotations

import ast
import builtins
import errno
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import sounding
from sounding.cli import main
from sounding.cli.app import COMMANDS
from sounding.cli.process import describe
from sounding.data.commands import EngineError
from sounding.data.errors import AudioError, DataError
from sounding.errors import SoundingError, UsageError
from sounding.export.parts import ExportError
from sounding.files import WriteError
from sounding.model.hub import HubError
from sounding.progress import Interrupted
from sounding.registry import UnknownNameError
from sounding.runtime import ModelError
from sounding.transcribe.journal import OutputError
from sounding.weights.packages import WeightsError

ROOT = Path(sounding.__file__).parent
HOUSE = {
    AudioError: ValueError,
    DataError: ValueError,
    EngineError: RuntimeError,
    ExportError: ValueError,
    HubError: ValueError,
    Interrupted: SoundingError,
    ModelError: ValueError,
    OutputError: ValueError,
    UnknownNameError: KeyError,
    UsageError: ValueError,
    WeightsError: ValueError,
    WriteError: OSError,
}
# A ValueError without a class of its own is for checks whose caller makes a named error of it ...
CAUGHT = {
    "data/tables.py": "a line of JSON",
    "runs/config.py": "a setting",
    "runtime/features.py": "an exported model",
    "runtime/metadata.py": "an exported model",
    "runtime/profile.py": "a profile",
    "transcribe/journal.py": "a journal",
    "weights/ort.py": "a file of a package",
}
CAUGHT_ALWAYS = {"Problem"}  # of a file, whose reader adds its name
# ... and for formulas, to which only a fault of ours gives such numbers.
FORMULAS = {"data/noise.py", "statistics.py"}


def walk(kind):
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield path.relative_to(ROOT).as_posix(), node


@pytest.mark.parametrize(("error", "also"), HOUSE.items())
def test_an_error_has_our_base_and_the_built_in_one_of_its_kind(error, also):
    assert issubclass(error, SoundingError)
    assert issubclass(error, also)
    assert error.exit_code == (130 if error is Interrupted else 2)


def test_no_error_is_outside_the_house():
    found = {
        node.name: [ast.unparse(base) for base in node.bases]
        for _, node in walk(ast.ClassDef)
        if any(_is_exception(ast.unparse(base)) for base in node.bases)
    }
    public = {name for name in found if not name.startswith("_")} - CAUGHT_ALWAYS
    assert public - {"SoundingError"} == {error.__name__ for error in HOUSE}
    assert all(
        found[name][0] in ("SoundingError", "UsageError") for name in public - {"SoundingError"}
    )


def _is_exception(name):
    if name == "SoundingError":
        return True
    kind = getattr(builtins, name, object)
    return issubclass(kind, Exception) and not issubclass(kind, Warning)


def test_what_a_user_gave_is_no_bare_value_error():
    where = {
        path
        for path, node in walk(ast.Raise)
        if node.exc is not None and ast.unparse(node.exc).split("(")[0] == "ValueError"
    }
    assert where == CAUGHT.keys() | FORMULAS


def test_a_full_disk_keeps_its_number_and_its_text():
    error = WriteError(errno.ENOSPC, "no room for a.json: make some")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert (one.errno, str(one)) == (errno.ENOSPC, "no room for a.json: make some")


def test_the_base_is_there_without_torch():
    code = "import sys, sounding; assert sounding.SoundingError.exit_code == 2\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sounding.SoundingError is SoundingError


def raised(code, file):
    """What `code` raises as a module of that name."""
    try:
        exec(compile(code, str(file), "exec"), {})
    except Exception as error:
        return error
    raise AssertionError("no error")


NUMPY = "import numpy as np\nnp.zeros(3).reshape(2)"  # C: no frame but that of the caller
PARSED = "import json\njson.loads('{')"  # a ValueError in a frame of another package
SAID = "raise ValueError(\n  'a budget of 9'\n)"


@pytest.mark.parametrize(
    ("code", "file", "text", "exit_code"),
    [
        (SAID, ROOT / "budget.py", "internal error: ValueError: a budget of 9", 70),
        (NUMPY, ROOT / "budget.py", "internal error: ValueError: cannot reshape", 70),
        (PARSED, ROOT / "budget.py", "internal error: JSONDecodeError: Expecting", 70),
        ("raise OSError('gone')", "/elsewhere/x.py", "gone", 2),
        ("import absent_module", ROOT / "x.py", "No module named 'absent_module'", 2),
        ("raise TypeError('a\\n  b')", ROOT / "x.py", "internal error: TypeError: a b;", 70),
    ],
)
def test_only_what_the_user_can_mend_is_told_as_that(code, file, text, exit_code):
    told, found = describe(raised(code, file))
    assert told.startswith(text)
    assert found == exit_code
    assert told.endswith("--debug shows where") == (exit_code == 70)


@pytest.mark.parametrize(
    ("error", "line", "exit_code"),
    [
        (UsageError("not so"), "sounding: not so", 2),
        (Interrupted("stopped; go on"), "sounding: stopped; go on", 130),
        (KeyboardInterrupt(), "sounding: interrupted", 130),
        (RuntimeError(), "sounding: internal error: RuntimeError; --debug shows where", 70),
    ],
)
@pytest.mark.parametrize("order", [["recipes"], ["--debug", "recipes"], ["recipes", "--debug"]])
def test_debug_shows_the_traceback_and_changes_nothing_else(
    error, line, exit_code, order, monkeypatch, capsys
):
    def fail():
        raise error

    monkeypatch.setattr("sounding.recipes.recipe_table", fail)
    assert main(order) == exit_code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == line
    assert (lines[0] == "Traceback (most recent call last):") == ("--debug" in order)
    assert ("in fail" in " ".join(lines)) == ("--debug" in order)
    assert "--debug" in order or len(lines) == 1


NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]


@pytest.mark.parametrize(
    "command",
    [["--version"], ["--help"], ["recipes"], ["recipes", "esc50-ast"]]
    + [[name, "--help"] for name in NAMES],
    ids=" ".join,
)
def test_to_look_something_up_loads_no_model_code(command):
    code = f"import sys\nfrom sounding.cli import main\ntry: main({command})\n"
    code += "except SystemExit as stop: assert not stop.code\n"
    code += "print(*{'torch', 'transformers', 'numpy', 'soundfile'} & set(sys.modules), 'loaded')"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "loaded"
    assert len(out.stdout.splitlines()) > 1
