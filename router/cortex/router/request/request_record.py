"""What is noted of one request on its way: times, tokens, how it ended. Never what it says.

An Exchange writes it down as it goes, with nothing but assignments; when it is over, `Journeys` tells everybody
who counts: metrics, the last hour's traffic, the log. Journeys under way can be listed and cancelled. Times that
are compared with each other are monotonic.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import Struct

from cortex.platform.metrics import INTER_TOKEN

RECENT = 500
"""RequestRecords that are remembered when they are over."""
COUNT_TOKENS = "count_tokens"
"""The dialect of a request that only counts: it is no part of what is measured of answers."""
_EDGES = INTER_TOKEN.buckets


class Try(Struct, frozen=True):
    """An instance that broke before it answered, and how."""

    instance: str
    host: str
    why: str
    replayed: bool = True
    """The request was sent again."""


class RequestRecord:
    """One request. Whoever serves it fills it in."""

    __slots__ = (
        "asked",
        "at",
        "began",
        "cached",
        "cancel",
        "choose_s",
        "cold",
        "dialect",
        "ended",
        "fault",
        "first",
        "function",
        "gaps",
        "gaps_s",
        "head",
        "host",
        "id",
        "instance",
        "last",
        "left",
        "phase",
        "pieces",
        "queued_s",
        "read_s",
        "rough_tokens",
        "span",
        "status",
        "streams",
        "tokens_in",
        "tokens_out",
        "trace",
        "translate_s",
        "tries",
        "who",
        "why",
    )  # fmt: skip

    def __init__(self, id: str, function: str, asked: str, dialect: str, *, streams: bool, read_s: float) -> None:
        self.id, self.function, self.asked, self.dialect, self.streams = id, function, asked, dialect, streams
        self.at, self.began, self.read_s = time.time(), time.monotonic() - read_s, read_s
        self.phase = "choosing"
        self.cold = self.left = self.head = False
        self.instance = self.host = self.fault = self.who = self.why = self.trace = ""
        self.span: object = None
        self.queued_s = self.choose_s = self.translate_s = self.gaps_s = 0.0
        self.first = self.last = self.ended = 0.0
        self.pieces = self.status = 0
        self.tokens_in = self.tokens_out = self.cached = self.rough_tokens = 0
        self.gaps: list[int] | None = None
        self.tries: tuple[Try, ...] = ()
        self.cancel: Callable[[], None] | None = None

    def forwarded(self, instance: str, host: str) -> None:
        """It goes to an instance now."""
        self.instance, self.host, self.phase = instance, host, "forwarded"
        if not self.choose_s:
            self.choose_s = time.monotonic() - self.began - self.read_s - self.queued_s

    def broke(self, why: str, *, replayed: bool = True) -> None:
        """The worker broke before it answered; the request is sent again, or not."""
        self.tries += (Try(self.instance, self.host, why[:300], replayed),)

    def piece(self, now: float) -> None:
        """A piece of the answer came from the worker."""
        if self.pieces == 0:
            self.first, self.phase = now, "streaming"
        else:
            gap = now - self.last
            if self.gaps is None:
                self.gaps = [0] * (len(_EDGES) + 1)
            self.gaps[bisect_left(_EDGES, gap)] += 1
            self.gaps_s += gap
        self.pieces += 1
        self.last = now

    @property
    def duration_s(self) -> float:
        """From arrival to the end, or to now."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def first_s(self) -> float | None:
        """From arrival to the worker's first piece."""
        return self.first - self.began if self.first else None

    @property
    def tokens_per_s(self) -> float | None:
        """How fast the answer came, from its first token to its last."""
        if self.tokens_out < 2 or self.last <= self.first:
            return None
        return (self.tokens_out - 1) / (self.last - self.first)

    @property
    def failed(self) -> bool:
        """Whether it ended badly for a reason that is not the client's."""
        return self.status >= 500 or (self.status == 200 and self.fault not in ("", "client_gone"))


class RequestSummary(Struct, frozen=True, kw_only=True):
    """A journey, as it is shown."""

    id: str
    function: str
    asked: str
    """The name the client used: the function's, or an alias."""
    dialect: str
    stream: bool
    instance: str
    host: str
    phase: str
    """choosing, waiting, forwarded, streaming or over."""
    at: float
    age_s: float
    start: str
    queued_ms: int
    first_ms: int | None
    tokens_in: int
    tokens_out: int
    """Of a stream under way: its pieces so far, which are about as many."""
    tries: tuple[Try, ...]
    """Workers that broke before this one answered."""
    status: int
    fault: str
    why: str
    who: str
    router: str


def summary(journey: RequestRecord, router: str) -> RequestSummary:
    """Return a journey as a value."""
    first = journey.first_s
    return RequestSummary(
        id=journey.id,
        function=journey.function,
        asked=journey.asked,
        dialect=journey.dialect,
        stream=journey.streams,
        instance=journey.instance,
        host=journey.host,
        phase=journey.phase,
        at=round(journey.at, 3),
        age_s=round(journey.duration_s, 3),
        start="cold" if journey.cold else "hot",
        queued_ms=round(journey.queued_s * 1000),
        first_ms=None if first is None else round(first * 1000),
        tokens_in=journey.tokens_in,
        tokens_out=journey.tokens_out if journey.ended else max(journey.tokens_out, journey.pieces),
        tries=journey.tries,
        status=journey.status,
        fault=journey.fault,
        why=journey.why,
        who=journey.who,
        router=router,
    )


class Ended(Protocol):
    """Whoever wants to know of a journey that is over."""

    def __call__(self, request_record: RequestRecord, /) -> None: ...


class RequestRecords:
    """The requests of one router worker: those under way, and the last few that are over."""

    def __init__(self, listeners: Iterable[Ended]) -> None:
        self._listeners = tuple(listeners)
        self._live: dict[int, RequestRecord] = {}
        self._over: deque[RequestRecord] = deque(maxlen=RECENT)

    def begun(self, journey: RequestRecord) -> None:
        """A request is under way."""
        self._live[id(journey)] = journey

    def over(self, journey: RequestRecord) -> None:
        """A request has come to its end, whichever."""
        if self._live.pop(id(journey), None) is None:
            return
        journey.ended, journey.phase, journey.cancel = time.monotonic(), "over", None
        self._over.append(journey)
        for listener in self._listeners:
            listener(journey)

    def live(self) -> list[RequestRecord]:
        """Return the requests under way, oldest first."""
        return list(self._live.values())

    def find(self, id: str) -> list[RequestRecord]:
        """Return the requests of an id, those under way first. Clients choose ids: there may be several."""
        return [j for j in (*self._live.values(), *reversed(self._over)) if j.id == id]

    def cancel(self, id: str, who: str | None = None) -> int:
        """Cancel the requests of an id, all or those of one key; return how many."""
        found = [
            j for j in self._live.values() if j.id == id and j.cancel is not None and (who is None or j.who == who)
        ]
        for journey in found:
            assert journey.cancel is not None
            journey.cancel()
        return len(found)
