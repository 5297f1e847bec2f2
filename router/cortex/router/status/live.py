"""Live updates of the page: one rendering a second for all watchers, each of which receives its changes.

Without watchers nothing is rendered. A slow watcher skips renderings but loses no change: it receives the difference
between its state and the latest rendering, so nothing queues up for it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import msgspec
import structlog
from msgspec import Struct

from cortex.platform.cancel import cancel_tasks
from cortex.router.overview.snapshot import FleetSnapshot
from cortex.router.status.page import picture
from cortex.router.status.render import Fragment, fragment, fragments

log = structlog.get_logger()

RENDER_S = 1.0
MOST_WATCHERS = 100
MOST_AT_ONCE = 128 * 1024
"""Maximum characters of HTML in one event, unless a single fragment has more."""
WATCH_S = 900.0
"""Maximum duration of a stream; the browser then reconnects and authenticates again."""
BEAT_S = 10.0
"""Interval of keep-alive events while nothing changes."""


class Piece(Struct, frozen=True, omit_defaults=True):
    """A fragment on the wire."""

    id: str
    html: str
    into: str = ""
    order: str = ""


Versioned = tuple[int, Fragment, Piece]
"""The rendering in which a piece last changed, its values, and the piece."""


class News(Struct, frozen=True, omit_defaults=True):
    """One event."""

    now: float
    put: list[Piece] = []
    drop: list[str] = []
    whole: bool = False
    """The last event of the first rendering: the browser removes elements that were not in it."""


class TooManyWatchers(Exception):
    """This process has reached its limit of streams."""


class Live:
    """Renders the page for all watchers."""

    def __init__(
        self,
        read: Callable[[], Awaitable[FleetSnapshot]],
        stopping: Callable[[], bool] = lambda: False,
        *,
        every_s: float = RENDER_S,
    ) -> None:
        self._read, self._stopping, self._every_s = read, stopping, every_s
        self._pieces: dict[str, Versioned] = {}
        self._frame, self._now = 0, 0.0
        self._rendered = asyncio.Condition()
        self._watchers = 0
        self._renewing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop rendering."""
        await cancel_tasks([self._renewing] if self._renewing else [])

    @property
    def active(self) -> bool:
        """Whether the page is being rendered for a watcher."""
        return self._renewing is not None and not self._renewing.done()

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield events for one watcher. Raises TooManyWatchers."""
        if self._watchers >= MOST_WATCHERS:
            raise TooManyWatchers(f"{MOST_WATCHERS} streams are open already, the most that this process serves")
        self._watchers += 1
        try:
            if not self.active:
                self._frame = 0  # the last rendering for earlier watchers may be stale
                self._renewing = asyncio.create_task(self._renew())
            yield b"retry: 2000\n\n"
            async for news in self._news():
                yield b"data: " + msgspec.json.encode(news) + b"\n\n"
        finally:
            self._watchers -= 1

    async def _news(self) -> AsyncIterator[News]:
        versions: dict[str, int] = {}
        frame, sent_at = 0, 0.0
        ends = time.monotonic() + WATCH_S
        while time.monotonic() < ends and not self._stopping():
            if not await self._newer(frame):
                continue
            first, frame, now = not versions, self._frame, self._now
            put = [(i, v, piece) for i, (v, _, piece) in self._pieces.items() if versions.get(i) != v]
            drop = [i for i in versions if i not in self._pieces]
            versions = {i: v for i, (v, _, _) in self._pieces.items()}
            parts = _parts([p for *_, p in put])
            for nth, part in enumerate(parts, 1):
                last = nth == len(parts)
                yield News(now, part, drop if last else [], whole=first and last)
                sent_at = time.monotonic()
            if (drop and not put) or time.monotonic() - sent_at > BEAT_S:
                yield News(now, drop=drop)
                sent_at = time.monotonic()

    async def _newer(self, frame: int) -> bool:
        """Wait one interval for a rendering newer than `frame`."""
        async with self._rendered:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._rendered.wait_for(lambda: self._frame > frame)
        return self._frame > frame

    async def _renew(self) -> None:
        """Render once a second while there are watchers."""
        while self._watchers:
            began = time.monotonic()
            try:
                await self._render(await self._read())
            except Exception as error:
                log.error("status_not_shown", exc_info=error)
            await asyncio.sleep(max(0.0, self._every_s - (time.monotonic() - began)))

    async def _render(self, snapshot: FleetSnapshot) -> None:
        """Render the changes in a thread, because inference shares this event loop."""
        frame = self._frame + 1
        self._pieces = await asyncio.to_thread(_pieces, snapshot, self._pieces, frame)
        self._frame, self._now = frame, snapshot.now
        async with self._rendered:
            self._rendered.notify_all()


def _pieces(snapshot: FleetSnapshot, before: Mapping[str, Versioned], frame: int) -> dict[str, Versioned]:
    """Return every piece; only those whose values changed are rendered again."""
    pieces = {}
    for new in fragments(picture(snapshot)):
        entry = before.get(new.id)
        if entry is None or entry[1] != new:
            entry = (frame, new, Piece(new.id, fragment(new, snapshot.now), new.into, new.order))
        pieces[new.id] = entry
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
