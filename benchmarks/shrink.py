"""Makes the results as small as the pages allow, for the repository: python benchmarks/shrink.py

A study's `measured.json` go into one `measured.parquet` beside its verdict, from which `sounding
report` makes the same page. A sweep loses which layers ran for which clip, the exported models
their answers clip by clip: no page shows them. JSON is written an entry a line, with all digits.

What was packed stays where it is: git ignores it (.gitignore), and `sounding compare` goes on from
it. Run it again whenever a result is new.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from sounding.files import write_text
from sounding.study.measured import FILE
from sounding.study.pack import PACK, write_pack
from sounding.study.study import each_run

RESULTS = Path(__file__).parent / "results"
UNREAD = {"masks": {}, "clips": {}}  # what no page shows, where it is by clip


def main() -> None:
    """Pack the studies and write the JSON anew."""
    for study in sorted({path.parents[2] for path in RESULTS.rglob(FILE)}):
        write_pack(each_run(study), study / PACK)
    for path in sorted(RESULTS.rglob("*.json")):
        if path.name not in (FILE, "verdict.json"):
            shrink(path)
    kept = sum(path.stat().st_size for path in tracked())
    print(f"{kept / 1e6:.2f} MB in {len(tracked())} files")


def shrink(path: Path) -> None:
    """Write a JSON file without what no page shows, an entry a line."""
    read = json.loads(path.read_text(encoding="utf-8"))
    by_clip = {name for name in UNREAD if isinstance(read.get(name), dict)}
    write_text(path, lines({**read, **{name: UNREAD[name] for name in by_clip}}))


def lines(value: dict[str, Any]) -> str:
    """JSON with a line for each name, or for each entry of its list."""
    made = []
    for name, one in value.items():
        entries = isinstance(one, list) and one and all(isinstance(x, dict) for x in one)
        text = f"[\n  {f',{chr(10)}  '.join(map(dumped, one))}\n ]" if entries else dumped(one)
        made.append(f" {dumped(name)}: {text}")
    return "{\n" + ",\n".join(made) + "\n}\n"


def dumped(value: Any) -> str:
    """As JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def tracked() -> list[Path]:
    """The files of the results that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "."]
    names = subprocess.run(command, cwd=RESULTS, check=True, capture_output=True).stdout
    found = [RESULTS / name.decode() for name in names.split(b"\0") if name]
    return [path for path in found if path.exists()]


if __name__ == "__main__":
    main()
