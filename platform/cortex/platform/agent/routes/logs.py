"""The agent's HTTP routes for workers' logs: the last lines, a live stream, the previous run, or matching lines.

A log is addressed only by the id of a current or recently failed instance, or by a function's id, which becomes a
slug: no other file can be read. The search text is literal, since a pattern could take unbounded time.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from litestar import MediaType, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from cortex.platform.agent.loop import Agent
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.workers import log_files

T = TypeVar("T")

LINE_BYTES = 400
"""Assumed average line size: this times the line count is read to find the last lines."""
CHUNK_BYTES = 256 * 1024
LOOK_S = 0.2
READ_S = 30.0
"""Time limit for reading a log; a search reads all of it."""
MOST_LINE = 64 * 1024
"""A longer line is split."""
MOST_MATCHES_BYTES = 4 * 1024 * 1024
"""Bytes of matching lines that a search returns, the last ones."""

Lines = Annotated[int, QueryParameter(ge=1, le=10_000)]
Text = Annotated[str, QueryParameter(max_length=200)]


class Look(Protocol):
    """Runs `read` in a thread. Raises its errors, or NoAnswer."""

    async def __call__(self, path: Path, read: Callable[..., T], *args: Any) -> T: ...


def routes(agent: Agent) -> list[HTTPRouteHandler]:
    """Return `GET /instances/{id}/logs` and `GET /logs?function=`. `grep` selects lines with that text."""
    search_slot = asyncio.Semaphore(1)

    async def look(path: Path, read: Callable[..., T], *args: Any) -> T:
        work = partial(read, *args)
        return await agent.supervisor.looks.look(str(path), read.__name__, work, question=object(), within_s=READ_S)

    @get("/instances/{instance_id:str}/logs")
    async def logs(
        instance_id: FromPath[str],
        lines: Lines = 200,
        follow: FromQuery[bool] = False,
        run: FromQuery[Literal["current", "previous"]] = "current",
        grep: Text = "",
    ) -> Response[Any]:
        """Return the last lines of a run; `follow` streams until the instance is gone."""
        path = _log_of(agent, instance_id)
        if run == "current" and agent.instance(instance_id) is None and not await look(path, Path.exists, path):
            raise NotFoundException("the log of this instance has been removed")
        if run == "previous":
            running = {agent.supervisor.log_path(i.function, i.id) for i in agent.record().instances}
            path = await look(path, previous_log, path, running)
        return await respond(path, lines, instance_id if follow and run == "current" else "", grep)

    @get("/logs")
    async def function_logs(
        function: FromQuery[str],
        lines: Lines = 200,
        follow: FromQuery[bool] = False,
        run: FromQuery[Literal["current", "previous"]] = "current",
        grep: Text = "",
    ) -> Response[Any]:
        """Return the last lines of a function's newest run, or of the previous one, whether or not it still runs."""
        instances = [i for i in agent.record().instances if i.function == function]
        newest = max(instances, key=lambda i: i.created, default=None)
        running = {agent.supervisor.log_path(i.function, i.id) for i in instances}
        folder = agent.supervisor.log_path(function, "any").parent
        path = agent.supervisor.log_path(function, newest.id) if newest else folder / "none"
        if run == "previous" or newest is None or not await look(path, Path.exists, path):
            path = await look(path, previous_log, path, running)
            if newest is None and run == "previous":
                path = await look(path, previous_log, path, running)
        return await respond(path, lines, newest.id if newest and follow and run == "current" else "", grep)

    async def respond(path: Path, lines: int, follow: str, grep: str) -> Response[Any]:
        """Return the end of a log, and new lines while the instance `follow` exists."""

        def is_running() -> bool:
            return bool(follow) and agent.instance(follow) is not None

        def pause() -> Awaitable[object]:
            return agent.wait_for_change(LOOK_S)

        if not grep:
            start = await look(path, last_lines, path, lines)
            return Stream(stream_log(path, start, is_running, pause, look), media_type=MediaType.TEXT)
        async with search_slot:
            matches, line_filter, end = await look(path, search, path, grep, lines)
        stream = stream_log(path, end, is_running, pause, look) if follow else None
        return Stream(_matching(matches, line_filter, stream), media_type=MediaType.TEXT)

    return [logs, function_logs]


def _log_of(agent: Agent, instance_id: str) -> Path:
    record = agent.record()
    functions = {f.instance: f.function for f in record.failures} | {i.id: i.function for i in record.instances}
    function = functions.get(instance_id)
    if function is None:
        raise NotFoundException(f"no instance '{instance_id[:64]}' on this host")
    return agent.supervisor.log_path(function, instance_id)


def previous_log(path: Path, running: Container[Path]) -> Path:
    """Return the log of the run before the one that `path` belongs to. Raises NotFoundException."""
    others = [p for p in path.parent.glob("*.log") if p != path and p not in running and not p.is_symlink()]
    if path not in running and path.exists():
        own = path.stat().st_mtime
        others = [p for p in others if p.stat().st_mtime <= own]
    if not others:
        raise NotFoundException("there is no log of an earlier run")
    return max(others, key=lambda p: p.stat().st_mtime)


def last_lines(path: Path, lines: int) -> int:
    """Return the offset of the last `lines` lines of a log."""
    try:
        with path.open("rb") as file:
            base = file.seek(max(0, path.stat().st_size - lines * LINE_BYTES))
            text = file.read()
    except OSError:
        return 0
    end = len(text) - text.endswith(b"\n")
    for _ in range(lines):
        end = text.rfind(b"\n", 0, end)
        if end < 0:
            return base
    return base + end + 1


class LineFilter:
    """Selects lines with a text from a stream of bytes. Case matters only when the text has capitals."""

    def __init__(self, text: str) -> None:
        self._any_case = text == text.lower()
        self._text = text.encode()
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the newly completed lines with the text."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        if len(data) - end > MOST_LINE:
            data, end = data + b"\n", len(data) + 1
        lines, self._rest = data[:end], data[end:]
        haystack = lines.lower() if self._any_case else lines
        matches = []
        at = haystack.find(self._text)
        while at >= 0:
            stop = lines.find(b"\n", at) + 1
            matches.append(lines[lines.rfind(b"\n", 0, at) + 1 : stop])
            at = haystack.find(self._text, stop)
        return matches

    def close(self) -> list[bytes]:
        """Return the unterminated last line, if it has the text."""
        return self.feed(b"\n") if self._rest else []


def search(path: Path, text: str, lines: int) -> tuple[list[bytes], LineFilter, int]:
    """Return a run's last lines with a text, rotated file included; and the filter and offset to continue."""
    matches: deque[bytes] = deque(maxlen=lines)
    line_filter, offset, size = LineFilter(text), 0, 0
    for part in (log_files.earlier_part(path), path):
        offset = 0
        with contextlib.suppress(OSError), part.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                for line in line_filter.feed(chunk):
                    size += len(line) - (len(matches[0]) if len(matches) == lines else 0)
                    matches.append(line)
                    while size > MOST_MATCHES_BYTES:
                        size -= len(matches.popleft())
                offset += len(chunk)
    return list(matches), line_filter, offset


async def _matching(
    matches: list[bytes], line_filter: LineFilter, added: AsyncIterator[bytes] | None
) -> AsyncIterator[bytes]:
    """Yield the matches, then matches among the added bytes."""
    if matches:
        yield b"".join(matches)
    if added is not None:
        async for chunk in added:
            if lines := line_filter.feed(chunk):
                yield b"".join(lines)
    if last := line_filter.close():
        yield b"".join(last)


async def stream_log(
    path: Path, offset: int, is_running: Callable[[], bool], pause: Callable[[], Awaitable[object]], look: Look
) -> AsyncIterator[bytes]:
    """Yield a log's bytes from an offset on, and new bytes while its instance runs."""
    while True:
        is_last = not is_running()  # checked before the read, so no output is missed
        try:
            chunk, offset = await look(path, _read_on, path, offset)
        except NoAnswer:
            return
        if chunk:
            yield chunk
        elif is_last:
            return
        else:
            await pause()


def _read_on(path: Path, offset: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            if path.stat().st_size < offset:  # the log was rotated
                offset = 0
            file.seek(offset)
            chunk = file.read(CHUNK_BYTES)
    except OSError:
        return b"", offset
    return chunk, offset + len(chunk)
