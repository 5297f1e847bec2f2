"""The end of a log as the page shows it. Agents are doubles."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from cortex.platform.fleet import Fleet
from cortex.router.overview.worker_logs import WorkerLogs
from cortex.router.status import logs
from tests.support.factories import a_function, a_host, an_instance


class Stage:
    """A router with one host, whose agent answers with these chunks."""

    def __init__(self, *chunks: bytes, never: bool = False) -> None:
        self._chunks, self._never = chunks, never
        self.query: dict[str, Any] = {}
        host = a_host(an_instance("one"))
        self.fleet = Fleet(hosts={host.name: host})
        double = cast(Any, self)
        self.worker_logs = WorkerLogs(double, double, double)

    def resolve(self, name: str) -> Any:
        self.base = a_function(name)
        return self

    async def logs(self, address: str, path: str, query: dict[str, Any]) -> httpx.Response:
        self.query = {"path": path, **query}
        if self._never:
            await asyncio.Event().wait()
        return httpx.Response(200, stream=_Stream(self._chunks))

    async def shown(self, *, instance: str = "", grep: str = "") -> Any:
        return await logs.log(self.worker_logs, "org/model", "", instance, "current", grep)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, chunks: tuple[bytes, ...]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


async def test_a_short_log_is_shown_completely() -> None:
    stage = Stage(b"one\ntw", b"o\nthree")

    shown = await stage.shown(grep="o")

    assert (shown.text, shown.lines, shown.cut, shown.host) == ("one\ntwo\nthree", 3, False, "host-a")
    assert (stage.query["path"], stage.query["grep"], stage.query["lines"]) == ("/logs", "o", logs.LINES)


async def test_a_long_log_is_cut_at_the_beginning_of_a_line() -> None:
    line = b"x" * 9_999 + b"\n"

    shown = await Stage(*[line * 7] * 30).shown(instance="one")

    assert shown.cut
    assert logs.MOST_BYTES - len(line) <= len(shown.text) <= logs.MOST_BYTES
    assert len(shown.text) == shown.lines * len(line)


async def test_a_missing_log_and_a_silent_host_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TIMEOUT_S", 0.01)

    unknown, silent = await Stage().shown(instance="two"), await Stage(never=True).shown()

    assert unknown.problem == "no host has a log of instance 'two'"
    assert silent.problem == "its host did not answer in time"
