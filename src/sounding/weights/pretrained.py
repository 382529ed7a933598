"""Loading by `transformers` as data: no code of a directory runs, and nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..typed import read_json
from .packages import WeightsError

MOST_LAYERS, LARGEST = 1000, 10**8  # in a config.json; beyond is damage that takes all memory


def pretrained(kind: Any, path: Path | str, **options: Any) -> Any:
    """Load what `kind.from_pretrained` loads: a configuration, feature extractor or tokenizer.

    Args:
        path: a local directory, or the id of a model on the hub.
        options: of `from_pretrained`.

    Raises:
        WeightsError: a directory that is damaged, lacks files, or needs code of its own to run.
    """
    _check_files(Path(path))
    try:
        return kind.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises of all kinds where a file is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            raise WeightsError(
                f"{path} needs code of its own to be loaded, which is never run: give a model of "
                "a kind that transformers knows"
            ) from None
        name = kind.__name__
        raise WeightsError(f"{path} cannot be loaded as {name}: {reason[:300]}") from None


def pretrained_model(kind: Any, path: Path | str, **options: Any) -> Any:
    """Load a model as `pretrained` does, from weights in safetensors only."""
    return pretrained(kind, path, use_safetensors=True, **options)


def read_config(path: Path | str) -> dict[str, Any]:
    """Read the config.json of a local directory.

    Raises:
        WeightsError: there is none, or one that is damaged.
    """
    says: Any = {"error": WeightsError, "what": "is damaged"}
    return read_json(Path(path) / "config.json", dict[str, Any], **says)


def _check_files(path: Path) -> None:
    """Refuse a directory with pipes or devices in it, or with sizes that no model has."""
    if not path.is_dir():
        return
    for file in path.iterdir():
        if not (file.is_file() or file.is_dir()):
            raise WeightsError(f"{file} is no file: remove it, or give another directory")
    if not (path / "config.json").is_file():
        return
    for name, value in read_config(path).items():
        limit = MOST_LAYERS if name.endswith("layers") else LARGEST
        if isinstance(value, int | float) and abs(value) > limit:
            raise WeightsError(f"{path / 'config.json'} is damaged: {name} is {value}")
