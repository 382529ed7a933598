"""Changes a sealed description so that its checksums are right: what damage cannot do."""

from __future__ import annotations

import json
from pathlib import Path

from sounding.files import SEAL, sha256, write_sealed_json


def forge(directory: Path, edit=None, **change):
    """Change `sounding.json` in a directory, and say the sha256 of the other files anew.

    Args:
        edit: called with the description.
        change: entries of it.
    """
    path = directory / "sounding.json"
    config = json.loads(path.read_text("utf-8"))
    config.pop(SEAL, None)
    for name in config["sha256"]:
        if (directory / name).is_file():
            config["sha256"][name] = sha256(directory / name)
    if edit is not None:
        edit(config)
    write_sealed_json(path, config | change)
