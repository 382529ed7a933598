"""One home for each idea: outside of it no method is told by its name, no policy by its class."""

from __future__ import annotations

import ast
from pathlib import Path

import sounding
from sounding.registry import METHODS, POLICIES, TASKS

ROOT = Path(sounding.__file__).parent
# words that are names of methods, and mean something else there
OTHER_MEANINGS = {
    "full": ["budget.py", "study/measure_run.py"],  # depth; a count of operations
    "static": ["study/arms.py", "study/names.py", "study/study_plots.py", "study/tables.py",
               "study/verdict.py", "policies/static.py"],  # the rule of an arm; a kind of policy
    "distill": ["cli/distill.py", "runs/config.py"],  # a command; a setting
    "input": ["policies/input.py", "model/wrapping.py", "typed.py"],  # a kind; pydantic's
}  # fmt: skip


def parsed():
    for path in ROOT.rglob("*.py"):
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def test_no_method_is_told_by_its_name_outside_of_methods():
    wrong = []
    for path, tree in parsed():
        if path.parts[0] == "methods":
            continue
        told = set(docstrings(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in told:
                continue
            name = node.value
            if name in set(METHODS) and path.as_posix() not in OTHER_MEANINGS.get(name, ()):
                wrong.append(f"{path} line {node.lineno}: {name!r}")
    assert not wrong


def classes(registry):
    for value in registry.values():
        kind = value if isinstance(value, type) else type(value)
        yield from (one.__name__ for one in kind.__mro__ if one.__module__.startswith("sounding."))


def test_no_policy_method_or_task_is_told_by_its_class_outside_of_its_package():
    homes = {"policies": POLICIES, "methods": METHODS, "tasks": TASKS}
    homes = {home: set(classes(registry)) for home, registry in homes.items()}
    allowed = {("model/wrapping.py", "Policy")}  # an argument of a user
    wrong = []
    for path, tree in parsed():
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if not called or node.func.id not in ("isinstance", "issubclass"):
                continue
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            for home, known in homes.items():
                outside = asked & known if path.parts[0] != home else set()
                wrong += [
                    f"{path} line {node.lineno}: {name}"
                    for name in outside
                    if (path.as_posix(), name) not in allowed
                ]
    assert not wrong
