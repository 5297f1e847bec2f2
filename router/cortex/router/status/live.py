"""The page, kept true: one look a second however many watch, and each is sent what changed since.

Nobody watching costs nothing. A watcher that reads slowly misses moments, never pieces: it is given the
difference between what it has and what is now, so nothing queues up for it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import msgspec
import structlog
from msgspec import Struct

from cortex.platform.cancel import cancelled
from cortex.router.status.page import picture
from cortex.router.status.render import Fragment, fragment, fragments
from cortex.router.status.snapshot import FleetSnapshot

log = structlog.get_logger()

LOOK_S = 1.0
MOST_WATCHERS = 100
MOST_AT_ONCE = 128 * 1024
"""Characters of HTML in one event, unless a single fragment has more; a large fleet is sent in several."""
WATCH_S = 900.0
"""A stream ends after so long and the browser comes again: then its key is checked again, too."""
BEAT_S = 10.0
"""When nothing changed, this often something is sent all the same, so that the browser knows that we live."""


class Piece(Struct, frozen=True, omit_defaults=True):
    """A fragment as it is sent."""

    id: str
    html: str
    into: str = ""
    order: str = ""


Versioned = tuple[int, Fragment, Piece]
"""A piece with the look it last changed at, and the values it was laid out from."""


class News(Struct, frozen=True, omit_defaults=True):
    """One event."""

    now: float
    put: list[Piece] = []
    drop: list[str] = []
    whole: bool = False
    """The first look is told to its end: what was not in it is gone."""


class TooManyWatch(Exception):
    """No more streams are served by this process."""


class Live:
    """Renders for all who watch."""

    def __init__(
        self,
        look: Callable[[], Awaitable[FleetSnapshot]],
        stopping: Callable[[], bool] = lambda: False,
        *,
        every_s: float = LOOK_S,
    ) -> None:
        self._look, self._stopping, self._every_s = look, stopping, every_s
        self._pieces: dict[str, Versioned] = {}
        self._frame, self._now = 0, 0.0
        self._turn = asyncio.Condition()
        self._watchers = 0
        self._renewing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Look no more."""
        await cancelled([self._renewing] if self._renewing else [])

    @property
    def looking(self) -> bool:
        """Whether it looks, for anybody."""
        return self._renewing is not None and not self._renewing.done()

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield events for one watcher. Raises TooManyWatch."""
        if self._watchers >= MOST_WATCHERS:
            raise TooManyWatch(f"{MOST_WATCHERS} watch already")
        self._watchers += 1
        try:
            if not self.looking:
                self._frame = 0  # what was rendered for earlier watchers may be old
                self._renewing = asyncio.create_task(self._renew())
            yield b"retry: 2000\n\n"
            async for news in self._news():
                yield b"data: " + msgspec.json.encode(news) + b"\n\n"
        finally:
            self._watchers -= 1

    async def _news(self) -> AsyncIterator[News]:
        has: dict[str, int] = {}
        seen, sent = 0, 0.0
        ends = time.monotonic() + WATCH_S
        while time.monotonic() < ends and not self._stopping():
            if not await self._newer(seen):
                continue
            first, seen, now = not has, self._frame, self._now
            put = [(i, v, piece) for i, (v, _, piece) in self._pieces.items() if has.get(i) != v]
            drop = [i for i in has if i not in self._pieces]
            has = {i: v for i, (v, _, _) in self._pieces.items()}
            parts = _parts([p for *_, p in put])
            for nth, part in enumerate(parts, 1):
                last = nth == len(parts)
                yield News(now, part, drop if last else [], whole=first and last)
                sent = time.monotonic()
            if (drop and not put) or time.monotonic() - sent > BEAT_S:
                yield News(now, drop=drop)
                sent = time.monotonic()

    async def _newer(self, seen: int) -> bool:
        """Wait a moment for a look that is newer than one already seen."""
        async with self._turn:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._turn.wait_for(lambda: self._frame > seen)
        return self._frame > seen

    async def _renew(self) -> None:
        """Look once a second for as long as anybody watches."""
        while self._watchers:
            began = time.monotonic()
            try:
                await self._take(await self._look())
            except Exception as error:
                log.error("status_not_shown", exc_info=error)
            await asyncio.sleep(max(0.0, self._every_s - (time.monotonic() - began)))

    async def _take(self, known: FleetSnapshot) -> None:
        """Render what changed, in a thread: inference has this loop, and all that is read here are values."""
        frame = self._frame + 1
        self._pieces = await asyncio.to_thread(_rendered, known, self._pieces, frame)
        self._frame, self._now = frame, known.now
        async with self._turn:
            self._turn.notify_all()


def _rendered(known: FleetSnapshot, before: Mapping[str, Versioned], frame: int) -> dict[str, Versioned]:
    """Return every piece: as it was where its values are the same, else laid out anew."""
    pieces = {}
    for new in fragments(picture(known)):
        had = before.get(new.id)
        if had is None or had[1] != new:
            had = (frame, new, Piece(new.id, fragment(new, known.now), new.into, new.order))
        pieces[new.id] = had
    return pieces


def _parts(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Return the pieces in events of bounded size."""
    parts: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if not parts or size + len(piece.html) > MOST_AT_ONCE:
            parts.append([])
            size = 0
        parts[-1].append(piece)
        size += len(piece.html)
    return parts
