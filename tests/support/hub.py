"""A HuggingFace hub on loopback: its API, file routes and CDN, with scripted faults.

Large files are LFS, as on the real one: the hub redirects to another address, the CDN, which takes ranges and must
never see a token. Faults are given per file and used up one by one.
"""

import functools
import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct

LFS_FROM = 1024
CHUNK = 64 * 1024


class HubRequest(Struct, frozen=True):
    """A request that came in."""

    method: str
    path: str
    range: str
    token: str
    cdn: bool


class FakeHub:
    """Repositories, faults, and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tokens: dict[str, str] = {}
        """Repositories that need a token."""
        self.gated: set[str] = set()
        """Those of them whose terms have to be accepted."""
        self.faults: dict[str, list[int]] = defaultdict(list)
        """Statuses that a file's next requests are answered with."""
        self.cuts: dict[str, list[int]] = defaultdict(list)
        """After how many bytes a file's next transfers break off."""
        self.wrong: dict[str, list[bytes]] = defaultdict(list)
        """What a file's next transfers send instead."""
        self.bytes_s = 0.0
        """How fast it sends; 0: as fast as it can."""
        self.ranges = True
        self.requests: list[HubRequest] = []
        self.sent: dict[str, int] = defaultdict(int)
        """Bytes sent, by file."""
        self.url = self.cdn_url = ""

    @property
    def seen(self) -> list[HubRequest]:
        """The requests, by the name that scripts outside this repository read."""
        return self.requests

    def commit(self, repo: str) -> str:
        """The current commit of a repository: it changes with its files."""
        files = sorted((path, _sha256(content)) for path, content in self.repos[repo].items())
        return hashlib.sha1(repr(files).encode(), usedforsecurity=False).hexdigest()

    def transfers(self, path: str) -> list[HubRequest]:
        """Every GET of a file's content."""
        return [
            r for r in self.requests if r.method == "GET" and r.path.endswith(path) and not r.path.startswith("/api/")
        ]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub and its CDN."""
    hub = FakeHub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, cdn=cdn)) for cdn in (False, True)]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    threads = [threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: FakeHub, *, cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *_: Any) -> None: ...

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("authorization", "")
            hub.requests.append(HubRequest(self.command, path, self.headers.get("range", ""), token, cdn))
            name = path.rpartition("/")[2]
            if hub.faults[name] and self.command == "GET":
                self._say(hub.faults[name].pop(0), {"retry-after": "0"})
            elif cdn:
                self._send(*_at(path.removeprefix("/cdn/")))
            elif path.startswith("/api/models/"):
                self._describe(path.removeprefix("/api/models/"))
            elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                self._resolve(*match.groups())
            else:
                self._say(404, {})

        def _forbidden(self, repo: str) -> bool:
            needed = hub.tokens.get(repo)
            if needed is None or self.headers.get("authorization") == f"Bearer {needed}":
                return False
            code = "GatedRepo" if repo in hub.gated else "RepoNotFound"
            self._say(403 if repo in hub.gated else 401, {"x-error-code": code})
            return True

        def _describe(self, rest: str) -> None:
            repo, _, revision = rest.partition("/revision/")
            if repo not in hub.repos:
                self._say(401, {"x-error-code": "RepoNotFound"})
            elif repo not in hub.gated and self._forbidden(repo):
                pass
            elif revision and revision not in ("main", "v1", hub.commit(repo)):
                self._say(404, {"x-error-code": "RevisionNotFound"})
            else:
                files = [_sibling(p, c) for p, c in hub.repos[repo].items()]
                self._json({"id": repo, "modelId": repo, "sha": hub.commit(repo), "siblings": files, "tags": []})

        def _resolve(self, repo: str, revision: str, path: str) -> None:
            if self._forbidden(repo):
                return
            content = hub.repos.get(repo, {}).get(path)
            if content is None:
                self._say(404, {"x-error-code": "EntryNotFound"})
                return
            answer = {"x-repo-commit": hub.commit(repo)}
            if len(content) < LFS_FROM:
                self._send(repo, path, {**answer, "etag": f'"{_blob_id(content)}"'})
                return
            linked = {"x-linked-etag": f'"{_sha256(content)}"', "x-linked-size": str(len(content))}
            where = f"{hub.cdn_url}/cdn/{repo}//{path}?X-Signature=secret"
            self._say(302, {**answer, **linked, "location": where})

        def _send(self, repo: str, path: str, more: Mapping[str, str] | None = None) -> None:
            content = hub.repos[repo][path]
            if hub.wrong[path]:
                content = hub.wrong[path].pop(0)
            begin, end, fields = 0, len(content), self.headers.get("range", "") if hub.ranges else ""
            if fields:
                first, _, last = fields.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(end, int(last or end) + 1)
            if begin > len(content):
                self._say(416, {})
                return
            part = content[begin:end]
            self.send_response(206 if fields else 200)
            if fields:
                self.send_header("content-range", f"bytes {begin}-{end - 1}/{len(content)}")
            for key, value in {**(more or {}), "content-length": str(len(part))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self._stream(path, part)

        def _stream(self, path: str, part: bytes) -> None:
            most = hub.cuts[path].pop(0) if hub.cuts[path] else len(part)
            step = min(CHUNK, max(1024, int(hub.bytes_s / 20))) if hub.bytes_s else CHUNK
            for at in range(0, min(most, len(part)), step):
                chunk = part[at : min(at + step, most)]
                try:
                    self.wfile.write(chunk)
                except OSError:
                    break
                hub.sent[path] += len(chunk)
                if hub.bytes_s:
                    time.sleep(len(chunk) / hub.bytes_s)
            if most < len(part):
                self.close_connection = True
                self.connection.close()

        def _say(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "content-length": "0"}.items():
                self.send_header(key, value)
            self.end_headers()

        def _json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _at(path: str) -> tuple[str, str]:
    repo, _, file = path.partition("//")
    return repo, file


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    lfs = {"sha256": _sha256(content), "size": len(content), "pointerSize": 130}
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _blob_id(content)}
    return {**entry, "lfs": lfs} if len(content) >= LFS_FROM else entry


@functools.lru_cache(32)
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.lru_cache(32)
def _blob_id(content: bytes) -> str:
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()
