"""A stand-in for the Hub: the routes that huggingface_hub's client requests, on 127.0.0.1, with faults on demand."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = (".safetensors", ".bin", ".gguf", ".pth")
STALL = 0
"""A fault: the request is read and never answered."""

_RESOLVE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(
    r"/api/models/(?P<repo>[^/]+?(?:/[^/]+?)??)"
    r"(?:/(?P<verb>revision|tree|paths-info|refs)(?:/(?P<revision>[^/]+))?(?:/(?P<folder>.+))?)?"
)


@dataclass
class Repo:
    """Branches and tags by name, and the files of every commit."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass(frozen=True)
class Request:
    """One request in the log."""

    method: str
    path: str
    range: str
    token: str = ""
    host: str = ""

    @property
    def file(self) -> str:
        """The file that a resolve request names, "" for any other request."""
        match = _RESOLVE.fullmatch(self.path)
        return match["file"] if match else ""


Answer: TypeAlias = tuple[int, bytes, dict[str, str]]
"""Status, body and headers."""


@dataclass(frozen=True)
class Odd:
    """A changed answer: edited before it is sent, and cut off after a number of bytes of the body."""

    change: Callable[[int, bytes, dict[str, str]], Answer] = lambda *answer: answer
    after: int | None = None


def refused(status: int, **headers: str) -> Odd:
    """An answer that refuses, with these headers (`_` for `-`)."""
    return Odd(lambda *_: (status, b"", {name.replace("_", "-"): value for name, value in headers.items()}))


class RefusalError(Exception):
    """An error answer: status, the Hub's error code ("" for none) and a sentence."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubServer:
    """Repos in memory behind a threaded HTTP server.

    `faults` maps a part of a path to the status that answers it; `odd` to answers that its GETs get, one each, the
    last again and again where it is all there is; `gated` a repo to the token that opens it; `renamed` an old name
    to the new one; `static` a path outside any repo to its content. With `cdn` large files are sent by that other
    host. `requests` is the log, in the order of arrival; `sent` the bytes of each file's body that went out.
    """

    def __init__(self, page: int = 3) -> None:
        self.page = page
        self.repos: dict[str, Repo] = {}
        self.gated: dict[str, str] = {}
        self.faults: dict[str, int] = {}
        self.odd: dict[str, list[Odd]] = {}
        self.renamed: dict[str, str] = {}
        self.static: dict[str, bytes] = {}
        self.cdn = ""
        self.sent: dict[str, int] = {}
        self.requests: list[Request] = []
        self.connections: set[socket.socket] = set()
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 64})  # as many connections may wait
        self._server = server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every open connection; a second call does nothing."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster

    def push(self, repo: str, files: Mapping[str, bytes | None], ref: str = "main") -> str:
        """A commit on `ref` that adds, changes or (None) deletes files; its 40-hex name."""
        held = self.repos.setdefault(repo, Repo())
        parent = held.refs.get(ref, "")
        merged = {**held.commits.get(parent, {}), **files}
        tree = {name: data for name, data in sorted(merged.items()) if data is not None}
        state = sha1(f"{repo} {ref} {parent}".encode())
        for name, data in tree.items():
            state.update(f"{name} {sha1(data).hexdigest()}".encode())
        held.refs[ref] = state.hexdigest()
        held.commits[held.refs[ref]] = tree
        return held.refs[ref]

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def blob(self, digest: str) -> tuple[str, bytes]:
        """A file of any commit by its sha256."""
        held = (file for repo in self.repos.values() for files in repo.commits.values() for file in files.items())
        return next(file for file in held if sha256(file[1]).hexdigest() == digest)

    def files(self, method: str = "GET") -> list[str]:
        """The files that resolve requests named since the log was cleared, sorted."""
        return sorted(r.file for r in self.requests if r.file and r.method == method)


@contextmanager
def serve() -> Iterator[HubServer]:
    hub = HubServer()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def etag(name: str, data: bytes) -> str:
    """The ETag as on the Hub: sha256 for files in large-file storage, else git's blob id."""
    return sha256(data).hexdigest() if name.endswith(LFS) else _blob(data)


def _blob(data: bytes) -> str:
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": etag(name, data), "size": len(data), "pointerSize": 134}
    return entry


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "blobId": _blob(data), "size": len(data)}
    if name.endswith(LFS):
        sibling["lfs"] = {"sha256": etag(name, data), "size": len(data), "pointerSize": 134}
    return sibling


def _listing(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            path = prefix + "/".join(parts[:depth])
            found[path] = {"type": "directory", "path": path, "size": 0, "oid": sha1(path.encode()).hexdigest()}
        if recursive or len(parts) == 1:
            found[name] = _entry(name, data)
    return [found[path] for path in sorted(found)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    file = ""
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        try:
            super().finish()
        except OSError:
            return  # the client hung up

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: `requests` is the log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.file = ""
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(url.path)
        token, host = self.headers.get("Authorization", ""), self.headers.get("Host", "")
        if path != "/api/agent-harnesses":  # once for each process, and about the process only
            self.hub.requests.append(Request(self.command, path, self.headers.get("Range", ""), token, host))
        try:
            self._fault(path)
            if old := next((old for old in self.hub.renamed if f"/{old}/" in f"{path}/"), None):
                where = self.path.replace(old, self.hub.renamed[old], 1)
                self._send(307, b"", {"Location": where})
            elif path.startswith("/cdn/"):
                file, data = self.hub.blob(path.removeprefix("/cdn/"))
                self._data(file, data, {"ETag": '"of the cdn"'})
            elif path in self.hub.static:
                data = self.hub.static[path]
                self._data(path, data, {"ETag": f'"{_blob(data)}"'})
            elif match := _RESOLVE.fullmatch(url.path):
                self._resolve(unquote(match["repo"]), unquote(match["revision"]), unquote(match["file"]))
            elif match := _API.fullmatch(url.path):
                self._api(match, parse_qs(url.query), parse_qs(body))
            else:
                raise RefusalError(404, "", "no such page")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, refusal.message.encode(), {k: v for k, v in headers.items() if v})

    def _fault(self, path: str) -> None:
        status = next((status for part, status in self.hub.faults.items() if part in path), None)
        if status == STALL:
            self.hub.stopped.wait()
        if status is not None:
            raise RefusalError(status or 503, "", "on demand")

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.hub.repos.get(name)
        if repo is None:
            raise RefusalError(404, "RepoNotFound", "Repository not found")
        commit = repo.commit(revision)
        if commit is None:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {quote(revision)}")
        return commit, repo.commits[commit]

    def _resolve(self, name: str, revision: str, file: str) -> None:
        commit, files = self._commit(name, revision)
        token = self.hub.gated.get(name)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            raise RefusalError(401, "GatedRepo", f"Access to model {name} is restricted")
        if file not in files:
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        data = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(file, data)}"', "Accept-Ranges": "bytes"}
        if self.hub.cdn and file.endswith(LFS):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data)), "ETag": '"of the redirect"'}
            where = f"http://{self.hub.cdn}:{self.hub.port}/cdn/{etag(file, data)}?signature=secret"
            return self._send(302, b"", {**headers, "Location": where})
        return self._data(file, data, headers)

    def _data(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        self.file = file
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
            last = min(int(wanted[2]), len(data) - 1) if wanted[1] and wanted[2] else len(data) - 1
            if first > last:
                raise RefusalError(416, "", "range not satisfiable")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(206, data[first : last + 1], headers)
        return self._send(200, data, headers)

    def _api(self, match: re.Match[str], query: dict[str, list[str]], form: dict[str, list[str]]) -> None:
        name, verb = unquote(match["repo"]), match["verb"] or "revision"
        commit, files = self._commit(name, unquote(match["revision"] or "main"))
        if verb == "revision":
            siblings: list[dict[str, Any]] = [{"rfilename": file} for file in files]
            if "blobs" in query:
                siblings = [_sibling(file, data) for file, data in files.items()]
            return self._json({"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings})
        if verb == "refs":
            refs = self.hub.repos[name].refs.items()
            branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in refs]
            return self._json({"branches": branches, "converts": [], "tags": []})
        if verb == "paths-info":
            everything = {entry["path"]: entry for entry in _listing(files, "", recursive=True)}
            return self._json([everything[path] for path in form.get("paths", []) if path in everything])
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        listing = _listing(files, unquote(match["folder"] or ""), recursive)
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        more = f"{self.hub.url}{urlsplit(self.path).path}?recursive={recursive}&cursor={end}"
        return self._json(listing[start:end], headers={"Link": f'<{more}>; rel="next"'} if end < len(listing) else {})

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        odd = Odd()
        plan = next((plan for part, plan in self.hub.odd.items() if part in unquote(self.path)), [])
        if plan and self.command == "GET":
            odd = plan.pop(0) if len(plan) > 1 else plan[0]
        status, body, changed = odd.change(status, body, {"Content-Length": str(len(body)), **headers})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **changed}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.sent[self.file] = self.hub.sent.get(self.file, 0) + len(body[: odd.after])
        self.wfile.write(body[: odd.after])
        if odd.after is not None:
            self.wfile.flush()
            self.close_connection = True
