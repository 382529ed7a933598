"""Of the site: pages that lie outside of docs/, so that links are right on GitHub and here."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = {  # file of the repository -> page
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside, and the pictures that they show."""
    for source, page in OUTSIDE.items():
        if files.get_file_from_path(page) is None:
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    for picture in sorted((ROOT / "benchmarks" / "results").rglob("*.png")):
        place = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn each link to a file of the repository into one of the site, or into its text."""
    here = page.file.src_uri
    source = next((s for s, p in OUTSIDE.items() if p == here and p != "index.md"), f"docs/{here}")

    def turned(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in target:
            return link[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        known = OUTSIDE.get(place, place.removeprefix("docs/"))
        if files.get_file_from_path(known) is None:
            if place.startswith("docs/") or not (ROOT / place).exists():
                return link[0]  # wrong: for `mkdocs build --strict` to tell
            return text  # a file that the site does not have, such as code
        way = posixpath.relpath(known, posixpath.dirname(here) or ".")
        return f"{picture}[{text}]({way}{'#' if anchor else ''}{anchor})"

    return LINK.sub(turned, markdown)
