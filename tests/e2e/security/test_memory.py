"""The memory that 1,000 hostile connections cost a router, and the latency of other clients meanwhile."""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.security.keyed import Keyed, started
from tests.support.stack import eventually

pytestmark = [pytest.mark.xdist_group("security"), pytest.mark.long]

CONNECTIONS = 1000
MOST_MIB = 64
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
LOGIN = b"POST /status/login HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
SHAPES = {
    "silent": b"",
    "half a head": HEAD + b"a: " + b"b" * 60_000,
    "many headers": HEAD + b"a: b\r\n" * 120,
    "empty lines": b"\r\n" * 30_000,
    "trailers": HEAD + CHUNKED + b"0\r\n" + b"a: b\r\n" * 100_000,
    "half a trailer": HEAD + CHUNKED + b"0\r\na: " + b"b" * 60_000,
    "chunk extension": HEAD + CHUNKED + b"5;" + b"a" * 500_000,
    "refused body": HEAD + b"content-length: 60000000\r\n\r\n" + b"x" * 1_000_000,
    "login, chunked": LOGIN + CHUNKED + b"100000\r\n" + b"a" * 1_000_000,
    "half a login": LOGIN + b"content-length: 4000\r\n\r\nkey=" + b"a" * 3000,
    "pipelined": b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 5_000,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A cortex with one router process, so that its memory is all there is."""
    with started(tmp_path_factory.mktemp("memory"), workers=1) as running:
        yield running


class Attack:
    """Open connections that send one shape and read nothing. Use it as a context."""

    def __init__(self, port: int, data: bytes) -> None:
        self._port, self._data = port, data
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Attack":
        with selectors.DefaultSelector() as pending:
            for _ in range(CONNECTIONS):
                one = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                one.setblocking(False)
                self._sockets.append(one)
                if self._data:
                    pending.register(one, selectors.EVENT_WRITE, memoryview(self._data))
            until = time.monotonic() + 20
            while pending.get_map() and (ready := pending.select(timeout=1)) and time.monotonic() < until:
                for key, _ in ready:
                    self._send(pending, key)
        return self

    def _send(self, pending: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        one: socket.socket = key.fileobj  # type: ignore[assignment]
        try:
            sent = one.send(key.data)
        except BlockingIOError:
            return
        except OSError:  # it was closed, as it should be
            pending.unregister(one)
            return
        rest = key.data[sent:]
        pending.modify(one, selectors.EVENT_WRITE, rest) if rest else pending.unregister(one)

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()


@contextlib.contextmanager
def watched(process: psutil.Process) -> Iterator[list[int]]:
    """Yield a list whose last entry is the most memory a process has had so far, in MiB."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            most.append(max(most[-1], process.memory_info().rss >> 20))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def test_a_thousand_hostile_connections_use_little_memory(
    alone: Keyed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = alone.stack.child("router")
    grown, waits = {}, {}
    for shape, data in SHAPES.items():
        before = router.memory_info().rss >> 20
        with watched(router) as most, Attack(alone.stack.port, data):
            began = time.monotonic()
            served = alone.ask("inference", max_tokens=1).status_code
            waits[shape] = time.monotonic() - began
        grown[shape] = most[-1] - before
        assert served == 200, shape
        eventually(lambda: len(router.net_connections()) < 100, what="the connections to be gone")

    with capsys.disabled():
        print()
        for shape in SHAPES:
            print(f"  {shape:16} +{grown[shape]:4} MiB, another client waits {waits[shape] * 1000:5.0f} ms")
    assert max(grown.values()) < MOST_MIB
    assert max(waits.values()) < 10
    assert httpx.get(f"{alone.url}/health", trust_env=False).json()["status"] == "ok"
