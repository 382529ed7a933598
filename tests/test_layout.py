"""The layout is the architecture: imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import sounding

ROOT = Path(sounding.__file__).parent
# a part may import from those to its right
ORDER = [
    "cli", "cli_support", "demo", "recipes", "transcribe", "export", "evaluation", "training",
    "runtime", "data", "weights", "core",
    "progress", "machine", "files",
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
