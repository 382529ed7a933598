"""A small model hub on this machine: what `huggingface_hub` asks of one, both ways."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")  # as large files go, by the protocol of git-lfs


@dataclass
class Repository:
    """Commits by hash, each with its files; branches by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main", onto: str = "main") -> str:
        before = self.commits.get(self.branches.get(onto, ""), {})
        marks = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in files.items()]
        name = hashlib.sha1("\n".join([*marks, branch, str(len(self.commits))]).encode())
        self.commits[name.hexdigest()] = {**before, **files}
        self.branches[branch] = name.hexdigest()
        return name.hexdigest()


@dataclass
class HubServer:
    """The hub: `asked` lists the requests as "METHOD /path", `tokens` what each was signed with."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    broken: int = 0  # the status of every answer, where it is set

    def add(self, repo_id: str, files: Mapping[str, bytes] | Path, *, private: bool = False) -> str:
        """Publish files, or those of a directory; the commit."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        made = self.repositories.setdefault(repo_id, Repository(private=private))
        return made.commit(files)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = parse_qs(url.query)
        self.hub.asked.append(f"{self.command} {url.path}")
        self.hub.tokens.append(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if self.hub.broken:
            return self.reply(self.hub.broken)
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, url.path)
            if found and self.command in method.split():
                return function(self, *(unquote(part or "") for part in found.groups()))
        return self.reply(404)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(data)), **named}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repository(self, repo_id: str) -> Repository | None:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and self.hub.tokens[-1] != "secret"):
            self.reply(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return None
        return found

    def files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repository(repo_id)
        if repository is None:
            return None
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="No such revision")
            return None
        return commit, repository.commits[commit]

    def info(self, repo_id: str, revision: str = "") -> None:
        if found := self.files(repo_id, revision):
            commit, files = found
            siblings = [{"rfilename": name} for name in files]
            self.reply(200, {"id": repo_id, "sha": commit, "siblings": siblings})

    def tree(self, repo_id: str, revision: str) -> None:
        if found := self.files(repo_id, revision):
            rows: list[dict[str, Any]] = []
            for name, data in found[1].items():
                row = {"type": "file", "path": name, "size": len(data), "oid": _git(data)}
                if name.endswith(LARGE):
                    row["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
                rows.append(row)
            self.reply(200, rows)

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        if found := self.files(repo_id, revision):
            commit, files = found
            if name not in files:
                return self.reply(404, X_Error_Code="EntryNotFound")
            tag = _sha256(files[name]) if name.endswith(LARGE) else _git(files[name])
            self.reply(200, files[name], ETag=f'"{tag}"', X_Repo_Commit=commit)

    def create(self) -> None:
        if self.hub.tokens[-1] != "secret":
            return self.reply(401, {"error": "Invalid username or password."})
        asked = json.loads(self.body)
        repo_id = f"{asked['organization'] or 'me'}/{asked['name']}"
        if repo_id in self.hub.repositories:
            return self.reply(409, {"url": f"{self.hub.url}/{repo_id}", "id": repo_id})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo_id] = Repository(private=private)
        self.hub.repositories[repo_id].commit({".gitattributes": b""})
        self.reply(200, {"url": f"{self.hub.url}/{repo_id}", "id": repo_id})

    def branch(self, repo_id: str, name: str) -> None:
        if repository := self.repository(repo_id):
            repository.branches.setdefault(name, repository.branches["main"])
            self.reply(200, {})

    def preupload(self, repo_id: str, revision: str) -> None:
        if self.files(repo_id, revision):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.reply(200, {"files": modes})

    def batch(self, repo_id: str) -> None:
        objects = json.loads(self.body)["objects"]
        for one in objects:
            one["actions"] = {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}
        self.reply(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        self.hub.large[oid] = self.body
        self.reply(200 if _sha256(self.body) == oid else 400)

    def commit(self, repo_id: str, revision: str) -> None:
        if not (repository := self.repository(repo_id)):
            return
        files, summary = {}, ""
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "header":
                summary = value["summary"]
            elif one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.large[value["oid"]]
        asks = "create_pr" in self.query
        made = repository.commit(files, "refs/pr/1" if asks else revision, revision)
        repository.messages.append(summary)
        page = f"{self.hub.url}/{repo_id}"
        said = {"commitUrl": f"{page}/commit/{made}", "commitOid": made}
        self.reply(200, {**said, "pullRequestUrl": f"{page}/discussions/1" if asks else None})

    def log_message(self, *args: object) -> None:
        """Stay silent."""


ID, REVISION = "([^/]+/[^/]+)", "([^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", f"/api/models/{ID}", _Handler.info),
    ("GET", f"/api/models/{ID}/revision/{REVISION}", _Handler.info),
    ("GET", f"/api/models/{ID}/tree/{REVISION}", _Handler.tree),
    ("GET HEAD", f"/{ID}/resolve/{REVISION}/(.+)", _Handler.resolve),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", f"/api/models/{ID}/branch/{REVISION}", _Handler.branch),
    ("POST", f"/api/models/{ID}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/large/([0-9a-f]+)", _Handler.upload),
    ("POST", f"/api/models/{ID}/commit/{REVISION}", _Handler.commit),
]


@contextmanager
def serve() -> Iterator[HubServer]:
    """Run a hub for as long as the context lasts."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
