"""An agent that offers files to its neighbours, with scripted faults, as an HTTP server on loopback."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from cortex.platform.agent_messages import Neighbour, Offers

TOKEN = "neighbour-token"


class NeighbourDouble:
    """Its files by SHA-256, and what it does wrong."""

    def __init__(self, host: str) -> None:
        self.host, self.address = host, ""
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None
        """Transfers break off after so many bytes."""
        self.status = 0
        """Transfers are answered with this status instead."""
        self.offers: bytes | None = None
        """The list of offers, instead of the right one."""
        self.kernels = b"{}"
        """The answer to a request for compiled code."""
        self.transfers: list[int] = []
        """The offset of each transfer."""

    def offer(self, content: bytes) -> str:
        """Add a file; return its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        self.files[digest] = content
        return digest

    @property
    def neighbour(self) -> Neighbour:
        """Return how another host knows it."""
        return Neighbour(host=self.host, address=self.address, token=TOKEN)


@contextmanager
def neighbour_double(host: str) -> Iterator[NeighbourDouble]:
    """Run one."""
    double = NeighbourDouble(host)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(double))
    double.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()


def _handler(double: NeighbourDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = double.files.get(self.path.removeprefix("/offers/"))
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self._answer(401, b"")
            elif self.path == "/offers":
                right = msgspec.json.encode(Offers(weights={d: len(c) for d, c in double.files.items()}))
                self._answer(200, right if double.offers is None else double.offers)
            elif content is None or double.status:
                self._answer(double.status or 404, b"")
            else:
                match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
                offset = int(match[1]) if match else 0
                double.transfers.append(offset)
                self._answer(206 if match else 200, content[offset:], double.cut_after)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer(200 if self.path == "/kernels" else 404, double.kernels)

        def log_message(self, *_: Any) -> None: ...

        def _answer(self, status: int, content: bytes, cut_after: int | None = None) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:cut_after])

    return Handler
