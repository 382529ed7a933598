"""The model hub: fetches the files of a model, by `huggingface_hub` and its cache, and pushes them.

A hub that cannot be reached is noticed within seconds, and asked no more by this process.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import SoundingError

T = TypeVar("T")

DATA = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # and nothing to unpickle
TIMEOUT = 5.0  # seconds for the first answer, the look-up of the hub's address not counted
PATIENCE = 6.0  # seconds with it
PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # of an id: the organization, or the name
COMMIT = re.compile("[0-9a-f]{40}")
_unreachable: dict[str, str] = {}  # by address of the hub, why; for this process


class HubError(SoundingError, ValueError):
    """A model that cannot be had from the hub, or not be pushed; the text says why."""


class HubUnreachableError(HubError):
    """The hub does not answer, or is not to be asked."""


def is_repo_id(name: str) -> bool:
    """Return whether `name` has the form ORGANIZATION/NAME."""
    return re.fullmatch(f"{PART}/{PART}", name) is not None


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def local_directory(
    source: str | Path,
    needed: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the directory of a model: a local one, or else that of a model of the hub.

    Args:
        source: a local directory, which comes first, or as a text ORGANIZATION/NAME on the hub.
        needed: as of `fetch`.
        revision, token: of the hub.

    Raises:
        HubError: neither a directory nor a model that can be had.
    """
    path = Path(source)
    if path.exists() or not (isinstance(source, str) and is_repo_id(source)):
        return path
    try:
        return fetch(source, DATA, needed, revision=revision, token=token)
    except HubError as error:
        raise HubError(f"{source} is no local directory, and on the hub: {error}") from None


def fetch(
    repo_id: str,
    patterns: Sequence[str],
    needed: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return a directory with files of a model, from the hub; from its cache without network.

    Args:
        patterns: of the names of the files to fetch.
        needed: names without which nothing is fetched.
        revision: branch, tag or commit; a commit in the cache is taken without asking the hub.
        token: as of `huggingface_hub`.

    Raises:
        HubUnreachableError: the hub does not answer, and the cache lacks the model.
        HubError: no such model or revision, no access to it, or a file that is not there.
    """
    if COMMIT.fullmatch(revision or "") and (found := cached(repo_id, needed, revision)):
        return found
    try:
        info = _info(repo_id, revision, token)
    except HubUnreachableError as error:
        if found := cached(repo_id, needed, revision):
            return found
        raise HubUnreachableError(f"{error}, and the cache of the hub lacks {repo_id}") from None
    names = {file.rfilename for file in info.siblings or ()}
    if missing := [name for name in needed if name not in names]:
        raise HubError(f"{repo_id} has no {', '.join(missing)}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                allow_patterns=list(patterns),
                etag_timeout=TIMEOUT,
            )
        )
    except Exception as error:
        raise HubError(f"{repo_id} cannot be downloaded ({_reason(error)})") from error


def cached(repo_id: str, needed: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the directory of a model in the cache of the hub, without network.

    Args:
        needed: names of files; without one of them there is no such directory.
    """
    from huggingface_hub import snapshot_download

    options: Any = {"allow_patterns": list(needed), "local_files_only": True}
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, **options))
    except Exception:  # of several kinds: not there, in part, not to be read
        return None
    return folder if all((folder / name).is_file() for name in needed) else None


def push(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    commit_message: str = "Upload a dynamic model",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Any:
    """Upload what `save` writes to a repository of the hub, which is made if there is none.

    Args:
        save: called with the path of a directory to write.
        repo_id: ORGANIZATION/NAME, or NAME for one of your own.
        private: of a new repository; by default as your account or organization has it.
        token: by default the one that you logged in with.
        revision: branch to push to; it is made if there is none.
        create_pr: open a pull request in place of a push.

    Returns:
        The `CommitInfo` of `huggingface_hub`: `commit_url`, `oid`, `pr_url`, ...

    Raises:
        HubError: it cannot be pushed; the text says why.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(folder)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except Exception as error:
            raise HubError(
                f"{repo_id} cannot be pushed to the hub ({_reason(error)}): check the name and the "
                "network, and give a token that may write, or log in with `hf auth login`"
            ) from error


def _info(repo_id: str, revision: str | None, token: str | bool | None) -> Any:
    """Return what the hub says of a model: one try, which ends within `PATIENCE`."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    hub = constants.ENDPOINT
    if is_offline():
        raise HubUnreachableError("HF_HUB_OFFLINE is set")
    if hub in _unreachable:
        raise HubUnreachableError(_unreachable[hub])
    try:
        return _within(
            PATIENCE,
            lambda: HfApi().model_info(repo_id, revision=revision, token=token, timeout=TIMEOUT),
        )
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise HubError(f"{repo_id} cannot be had ({_reason(error)})") from None
        _unreachable[hub] = f"{hub} is out of order ({_reason(error)})"
    except Exception as error:  # of the client of HTTP, which is not always the same one
        _unreachable[hub] = f"{hub} cannot be reached ({_reason(error)})"
    raise HubUnreachableError(_unreachable[hub])


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns; a look-up of an address has no timeout of its own."""
    returned: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            returned.append(call())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not returned:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return returned[0]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
