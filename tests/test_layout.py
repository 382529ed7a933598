"""The layout is the architecture: imports point one way, modules and classes stay small."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TypeAlias

import pytest

import sounding

ROOT = Path(sounding.__file__).parent
# a part may import from those to its right
ORDER = [
    "cli", "demo", "recipes", "transcribe", "study", "export", "evaluation", "training", "methods",
    "runs", "tasks", "runtime", "statistics", "data", "weights", "model", "policies", "budget",
    "registry", "progress", "machine", "typed", "plain_yaml", "files", "errors",
]  # fmt: skip

Name: TypeAlias = tuple[str, ...]  # ("model", "call"); () is the package itself, whose names of
# `__getattr__` are imported when they are first asked for

LINES, METHODS = 400, 20
LARGE = {  # module -> why it is not cut
    "data/decode.py": "one way from bytes to samples: what libsndfile cannot say of a file's end",
    "files.py": "all or nothing on disk: each step of a write relies on the one before it",
    "model/dynamic.py": "one class, of whose lines half say how it is called",
    "runtime/model.py": "a model of one file and of several, and what both check of an answer",
}
MANY: dict[str, str] = {}  # "module:class" -> why it has that many methods


def modules(root: Path) -> dict[Name, Path]:
    """The modules of a package, a package under its own name."""
    found = {path.relative_to(root).with_suffix("").parts: path for path in root.rglob("*.py")}
    return {name[:-1] if name[-1] == "__init__" else name: path for name, path in found.items()}


def imports(root: Path) -> dict[Name, set[Name]]:
    """What each module imports of its package: at its top, in functions, and for types only."""
    known = modules(root)
    edges: dict[Name, set[Name]] = {name: set() for name in known}
    for name, path in known.items():
        package = path.relative_to(root).parent.parts
        for node in ast.walk(ast.parse(path.read_text())) if name else ():
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "sounding" for alias in node.names), path
            if not isinstance(node, ast.ImportFrom):
                continue
            if not node.level:
                assert (node.module or "").split(".")[0] != "sounding", f"{path}: relative, please"
                continue
            place = package[: len(package) - node.level + 1]
            place += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                one = (*place, alias.name)
                edges[name].add(one if one in known else place)
    return edges


def circles(edges: dict[Name, set[Name]]) -> list[list[str]]:
    """The modules that import each other, directly or through others."""
    reached = {}
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += edges[one]
        reached[start] = seen
    found = {
        tuple(sorted(".".join(other) for other in reached[one] if one in reached[other]))
        for one in edges
        if one in reached[one]
    }
    return [list(circle) for circle in sorted(found)]


def test_imports_point_from_the_command_line_to_the_core_and_never_back():
    wrong = [
        f"{'.'.join(name)} imports {'.'.join(other)}"
        for name, imported in imports(ROOT).items()
        for other in imported - {()}
        if ORDER.index(other[0]) < ORDER.index(name[0])
    ]
    assert not wrong


def test_no_modules_import_each_other():
    """Inside of a package neither: each can be read before those that build on it."""
    edges = imports(ROOT)
    assert sum(map(len, edges.values())) > 300  # that the graph is there at all
    assert not circles(edges)


@pytest.mark.parametrize(
    ("last", "found"),
    [
        ("", []),
        ("from .a import x", [["p.a", "p.b"]]),
        ("def f():\n    from ..q import x", [["p.a", "p.b", "q"]]),
        ("if TYPE_CHECKING:\n    from . import a", [["p.a", "p.b"]]),
        ("from .. import q", [["p.a", "p.b", "q"]]),
    ],
)
def test_a_circle_of_imports_would_be_found(last, found, tmp_path):
    (tmp_path / "p").mkdir()
    for name, text in {
        "__init__": "from .p.a import x",
        "p/__init__": "from .a import x",
        "p/a": "from .b import x",
        "p/b": last,
        "q": "from .p.a import x",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert circles(imports(tmp_path)) == found


def test_what_is_large_is_listed_with_a_reason():
    lines, methods = {}, {}
    for path in modules(ROOT).values():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        lines[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                functions = (ast.FunctionDef, ast.AsyncFunctionDef)
                count = sum(isinstance(one, functions) for one in node.body)
                methods[f"{name}:{node.name}"] = count
    assert {name: n for name, n in lines.items() if n > LINES}.keys() == LARGE.keys()
    assert {name: n for name, n in methods.items() if n > METHODS}.keys() == MANY.keys()


def test_models_are_loaded_as_data_in_one_place():
    """Where no code of theirs runs and nothing is unpickled; `sounding.load` has a seal to it."""
    allowed = {"weights/pretrained.py", "model/loading.py"}
    wrong = []
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if called and node.func.attr == "from_pretrained" and name not in allowed:
                wrong.append(f"{name} line {node.lineno}: use weights.pretrained")
            owner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(owner, ast.Name) and (owner.id, node.attr) in UNPICKLE:
                wrong.append(f"{name} line {node.lineno}: {owner.id}.{node.attr} unpickles")
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                wrong += [f"{name} imports {one}" for one in names & {"pickle", "joblib", "dill"}]
    assert not wrong


UNPICKLE = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle")}
