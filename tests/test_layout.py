"""The layout is the architecture: imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import sounding

ROOT = Path(sounding.__file__).parent
# a part may import from those to its right
ORDER = [
    "cli", "demo", "recipes", "transcribe", "study", "export", "evaluation", "training", "methods",
    "runs", "tasks", "runtime", "data", "weights", "model", "policies", "budget",
    "progress", "machine", "typed", "files",
]  # fmt: skip


def test_imports_point_from_the_command_line_to_the_core_and_never_back():
    wrong = []
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT).with_suffix("").parts
        if inside == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == len(inside) and node.module:
                part = node.module.split(".")[0]
                if ORDER.index(part) < ORDER.index(inside[0]):
                    wrong.append(f"{path.relative_to(ROOT)} imports {part}")
    assert not wrong


def test_models_are_loaded_as_data_in_one_place():
    """Where no code of theirs runs and nothing is unpickled; `dynamic.load` has a seal to it."""
    allowed = {"weights/pretrained.py", "model/dynamic.py"}
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
