"""What a worker wrote: the end of it, everything as it comes, the run before, or the lines that hold a text.

A log is found by the id of an instance that the agent knows, one that is there or one whose failure is kept, or
by a function's id, whose folder is a slug of it; and by nothing else: no other file can be read this way. A text is
searched for as it stands: a pattern could be made to take for ever.
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
from litestar.params import Parameter
from litestar.response import Stream

from cortex.platform.agent.loop import Agent
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.workers import log_files

T = TypeVar("T")

LINE_BYTES = 400
"""What a line is taken to weigh at most on average: so much is read to find the last lines."""
CHUNK_BYTES = 256 * 1024
LOOK_S = 0.2
READ_S = 30.0
"""How long a log may take to be read; a search reads all of it."""
MOST_LINE = 64 * 1024
"""A line that is longer is taken for several."""
MOST_FOUND = 4 * 1024 * 1024
"""Bytes of lines that a search holds: of more, the last."""

Lines = Annotated[int, Parameter(ge=1, le=10_000)]
Text = Annotated[str, Parameter(max_length=200)]


class Look(Protocol):
    """Reads a log in a thread. Raises what the reading raises, or NoAnswer."""

    async def __call__(self, path: Path, read: Callable[..., T], *args: Any) -> T: ...


def routes(agent: Agent) -> list[HTTPRouteHandler]:
    """Return `GET /instances/{id}/logs` and `GET /logs?function=`. With `grep` only lines with that text count."""
    searching = asyncio.Semaphore(1)

    async def look(path: Path, read: Callable[..., T], *args: Any) -> T:
        work = partial(read, *args)
        return await agent.supervisor.looks.look(str(path), read.__name__, work, question=object(), within_s=READ_S)

    @get("/instances/{instance_id:str}/logs")
    async def logs(
        instance_id: str,
        lines: Lines = 200,
        follow: bool = False,
        run: Literal["current", "previous"] = "current",
        grep: Text = "",
    ) -> Response[Any]:
        """Return the last lines of a run; `follow` goes on until the instance is gone."""
        path = _log_of(agent, instance_id)
        if run == "current" and agent.instance(instance_id) is None and not await look(path, Path.exists, path):
            raise NotFoundException("its log is not kept any more")
        if run == "previous":
            running = {agent.supervisor.log_path(i.function, i.id) for i in agent.record().instances}
            path = await look(path, before, path, running)
        return await said(path, lines, instance_id if follow and run == "current" else "", grep)

    @get("/logs")
    async def function_logs(
        function: str,
        lines: Lines = 200,
        follow: bool = False,
        run: Literal["current", "previous"] = "current",
        grep: Text = "",
    ) -> Response[Any]:
        """Return the last lines of a function's newest run, or of the one before, whether its worker lives or not."""
        mine = [i for i in agent.record().instances if i.function == function]
        newest = max(mine, key=lambda i: i.created, default=None)
        running = {agent.supervisor.log_path(i.function, i.id) for i in mine}
        folder = agent.supervisor.log_path(function, "any").parent
        path = agent.supervisor.log_path(function, newest.id) if newest else folder / "none"
        if run == "previous" or newest is None or not await look(path, Path.exists, path):
            path = await look(path, before, path, running)
            if newest is None and run == "previous":
                path = await look(path, before, path, running)
        return await said(path, lines, newest.id if newest and follow and run == "current" else "", grep)

    async def said(path: Path, lines: int, follow: str, grep: str) -> Response[Any]:
        """Return the end of a log, and what is added while an instance to follow is there."""

        def running_still() -> bool:
            return bool(follow) and agent.instance(follow) is not None

        def pause() -> Awaitable[object]:
            return agent.changed(LOOK_S)

        if not grep:
            start = await look(path, last_lines, path, lines)
            return Stream(written(path, start, running_still, pause, look), media_type=MediaType.TEXT)
        async with searching:
            found, holding, end = await look(path, searched, path, grep, lines)
        more = written(path, end, running_still, pause, look) if follow else None
        return Stream(_matching(found, holding, more), media_type=MediaType.TEXT)

    return [logs, function_logs]


def _log_of(agent: Agent, instance_id: str) -> Path:
    record = agent.record()
    known = {f.instance: f.function for f in record.failures} | {i.id: i.function for i in record.instances}
    function = known.get(instance_id)
    if function is None:
        raise NotFoundException(f"no instance '{instance_id[:64]}' on this host")
    return agent.supervisor.log_path(function, instance_id)


def before(path: Path, running: Container[Path]) -> Path:
    """Return the log of the last run that had ended when this one had not. Raises NotFoundException."""
    others = [p for p in path.parent.glob("*.log") if p != path and p not in running and not p.is_symlink()]
    if path not in running and path.exists():
        own = path.stat().st_mtime
        others = [p for p in others if p.stat().st_mtime <= own]
    if not others:
        raise NotFoundException("no log of an earlier run is kept")
    return max(others, key=lambda p: p.stat().st_mtime)


def last_lines(path: Path, lines: int) -> int:
    """Return the offset at which the last lines of a log begin."""
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


class Holding:
    """The lines that hold a text, out of bytes as they come. Capitals count only when the text has some."""

    def __init__(self, text: str) -> None:
        self._any_case = text == text.lower()
        self._text = text.encode()
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are complete by now and hold the text."""
        have = self._rest + chunk
        end = have.rfind(b"\n") + 1
        if len(have) - end > MOST_LINE:
            have, end = have + b"\n", len(have) + 1
        whole, self._rest = have[:end], have[end:]
        seen = whole.lower() if self._any_case else whole
        found = []
        at = seen.find(self._text)
        while at >= 0:
            stop = whole.find(b"\n", at) + 1
            found.append(whole[whole.rfind(b"\n", 0, at) + 1 : stop])
            at = seen.find(self._text, stop)
        return found

    def close(self) -> list[bytes]:
        """Return the last line, if it holds the text and nothing ended it."""
        return self.feed(b"\n") if self._rest else []


def searched(path: Path, text: str, lines: int) -> tuple[list[bytes], Holding, int]:
    """Return the last lines of a run that hold a text, what was cut off its log included; and how to go on."""
    found: deque[bytes] = deque(maxlen=lines)
    holding, offset, held = Holding(text), 0, 0
    for part in (log_files.cut_off(path), path):
        offset = 0
        with contextlib.suppress(OSError), part.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                for one in holding.feed(chunk):
                    held += len(one) - (len(found[0]) if len(found) == lines else 0)
                    found.append(one)
                    while held > MOST_FOUND:
                        held -= len(found.popleft())
                offset += len(chunk)
    return list(found), holding, offset


async def _matching(found: list[bytes], holding: Holding, more: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    """Yield what was found, and what is found in what is added."""
    if found:
        yield b"".join(found)
    if more is not None:
        async for chunk in more:
            if lines := holding.feed(chunk):
                yield b"".join(lines)
    if last := holding.close():
        yield b"".join(last)


async def written(
    path: Path, offset: int, goes_on: Callable[[], bool], pause: Callable[[], Awaitable[object]], look: Look
) -> AsyncIterator[bytes]:
    """Yield what a log holds from an offset on and, for as long as it goes on, whatever is added."""
    while True:
        is_last = not goes_on()  # asked before the read: what was written until then is not missed
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
            if path.stat().st_size < offset:  # it was cut because it grew too large, and begins anew
                offset = 0
            file.seek(offset)
            chunk = file.read(CHUNK_BYTES)
    except OSError:
        return b"", offset
    return chunk, offset + len(chunk)
