"""The record of one request: times, tokens, outcome. Never its content.

An Exchange fills it in by plain assignments; at the end, `RequestRecords` gives it to its listeners: metrics, the last
hour's traffic, the log. Active requests can be listed and cancelled. Times that are compared are monotonic.
"""

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from operator import attrgetter

from cortex.platform.faults import Faults
from cortex.platform.metrics import INTER_TOKEN
from cortex.platform.record import Tier
from cortex.router.api_types import RequestSummary, Try
from cortex.router.dialects.core.errors import Kind

SETTLE_S = 0.1
RECENT = 500
"""Finished requests to keep."""
COUNT_TOKENS = "count_tokens"
"""The dialect of a token-count request, which is not part of the metrics of answers."""
_EDGES = INTER_TOKEN.buckets


class RequestRecord:
    """One request; the code that serves it fills it in."""

    __slots__ = (
        "at",
        "audio_s",
        "began",
        "cached",
        "cancel",
        "characters",
        "choose_s",
        "cold",
        "dialect",
        "ended",
        "fault",
        "first",
        "function",
        "gaps",
        "gaps_s",
        "host",
        "id",
        "images",
        "instance",
        "key",
        "last",
        "left",
        "model",
        "path",
        "phase",
        "pieces",
        "queued_s",
        "read_s",
        "restored",
        "rough_tokens",
        "sent_at",
        "span",
        "status",
        "streams",
        "substitute_for",
        "tokens_in",
        "tokens_out",
        "trace",
        "translate_s",
        "tries",
        "who",
        "why",
    )  # fmt: skip

    def __init__(self, id: str, function: str, model: str, dialect: str, *, streams: bool, read_s: float) -> None:
        self.id, self.function, self.model, self.dialect, self.streams = id, function, model, dialect, streams
        self.at, self.began, self.read_s = time.time(), time.monotonic() - read_s, read_s
        self.phase = "choosing"
        self.cold = self.left = False
        self.instance = self.host = self.path = self.fault = self.who = self.why = self.trace = self.substitute_for = ""
        self.key = ""
        self.span: object = None
        self.queued_s = self.choose_s = self.translate_s = self.gaps_s = 0.0
        self.first = self.last = self.ended = self.sent_at = 0.0
        self.pieces = self.status = 0
        self.tokens_in = self.tokens_out = self.cached = self.rough_tokens = 0
        self.restored = 0
        """Tokens of a saved conversation that were restored for it."""
        self.audio_s, self.characters, self.images = 0.0, 0, 0
        self.gaps: list[int] | None = None
        self.tries: tuple[Try, ...] = ()
        self.cancel: Callable[[], None] | None = None

    def forward(self, instance: str, host: str, path: str = "") -> None:
        """Record the instance that the request is sent to; `path` is how it was started."""
        self.instance, self.host, self.path, self.phase = instance, host, path, "forwarded"
        if not self.choose_s:
            self.choose_s = time.monotonic() - self.began - self.read_s - self.queued_s

    def broke(self, why: str, *, replayed: bool = True) -> None:
        """Record a worker that broke before it answered."""
        self.tries += (Try(self.instance, self.host, why[:300], replayed),)

    def reject(self, status: int, fault: str, why: str) -> None:
        """Record the status and kind of the error that the client receives, and the reason for the log."""
        self.status, self.fault, self.why = status, fault, why

    def piece(self, now: float) -> None:
        """Record a piece of the worker's answer."""
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
    def start(self) -> str:
        """What the request had to wait for: nothing (hot), a return of an instance (its tier), or a start (cold)."""
        if not self.cold:
            return "hot"
        return self.path if self.path in (Tier.SLEEP, Tier.FREEZE) else "cold"

    @property
    def duration_s(self) -> float:
        """Seconds from arrival to the end, or to now."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def first_s(self) -> float | None:
        """Seconds from arrival to the worker's first piece."""
        return self.first - self.began if self.first else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second, from the first piece to the last."""
        if self.tokens_out < 2 or self.last <= self.first:
            return None
        return (self.tokens_out - 1) / (self.last - self.first)

    @property
    def will_return(self) -> bool:
        """Whether it is a line of a batch that may not run now: its batch worker sends it again."""
        return self.fault == Kind.BATCH_WAITS

    @property
    def failed(self) -> bool:
        """Whether it failed for a reason other than the client."""
        return self.status >= 500 or (self.status == 200 and self.fault not in ("", "client_gone"))


def summary(request_record: RequestRecord, router: str) -> RequestSummary:
    """Return the summary of a request."""
    first = request_record.first_s
    return RequestSummary(
        id=request_record.id,
        function=request_record.function,
        substitute_for=request_record.substitute_for,
        model=request_record.model,
        dialect=request_record.dialect,
        stream=request_record.streams,
        instance=request_record.instance,
        host=request_record.host,
        phase=request_record.phase,
        at=round(request_record.at, 3),
        age_s=round(request_record.duration_s, 3),
        start=request_record.start,
        queued_ms=round(request_record.queued_s * 1000),
        first_ms=None if first is None else round(first * 1000),
        tokens_in=request_record.tokens_in,
        tokens_out=request_record.tokens_out
        if request_record.ended
        else max(request_record.tokens_out, request_record.pieces),
        tries=request_record.tries,
        status=request_record.status,
        fault=request_record.fault,
        why=request_record.why,
        who=request_record.who,
        router=router,
    )


class Finished(tuple[RequestRecord, ...]):
    """Requests that finished within `SETTLE_S`, in the order of their ends."""

    @cached_property
    def alike(self) -> Sequence[Sequence[RequestRecord]]:
        """The same requests in groups that agree in all that requests are counted by: each group is counted at once."""
        groups: dict[object, list[RequestRecord]] = {}
        for request_record in self:
            likeness = _likeness(request_record)
            group = groups.get(likeness)
            if group is None:
                groups[likeness] = [request_record]
            else:
                group.append(request_record)
        return list(groups.values())


_likeness = attrgetter("key", "function", "host", "instance", "dialect", "status", "fault")

Listener = Callable[[Finished], None]
"""Takes finished requests."""


class RequestRecords:
    """The requests of one router worker: the active ones and the last finished ones.

    Listeners get those that finish within `SETTLE_S` together, so that metrics and log cost a request no time.
    """

    def __init__(
        self, listeners: Iterable[Listener], outcomes: Iterable[Listener] = (), faults: Faults | None = None
    ) -> None:
        """The listeners of `outcomes` do not get the requests that will return: they have no outcome yet, and may be
        many. `faults` notes what a listener raises; the others get the requests all the same."""
        self._listeners, self._outcomes = tuple(listeners), tuple(outcomes)
        self._faults = faults or Faults()
        self._unsettled: list[RequestRecord] = []
        self._live: dict[int, RequestRecord] = {}
        self._over: deque[RequestRecord] = deque(maxlen=RECENT)

    def begin(self, request_record: RequestRecord) -> None:
        """Add an active request."""
        self._live[id(request_record)] = request_record

    def over(self, request_record: RequestRecord) -> None:
        """Finish a request; the listeners get it within `SETTLE_S`."""
        if self._live.pop(id(request_record), None) is None:
            return
        request_record.ended, request_record.phase, request_record.cancel = time.monotonic(), "over", None
        if not (request_record.fault and request_record.will_return):
            self._over.append(request_record)
        self._unsettled.append(request_record)
        if len(self._unsettled) == 1:
            asyncio.get_running_loop().call_later(SETTLE_S, self.settle)

    def settle(self) -> None:
        """Give the finished requests to the listeners now."""
        finished, self._unsettled = Finished(self._unsettled), []
        returning = [r for r in finished if r.fault and r.will_return]
        outcomes = Finished(r for r in finished if not r.will_return) if returning else finished
        for request_records, listeners in ((finished, self._listeners), (outcomes, self._outcomes)):
            for listener in listeners if request_records else ():
                with self._faults.guard("requests"):
                    listener(request_records)

    def live(self) -> list[RequestRecord]:
        """Return the active requests, oldest first."""
        return list(self._live.values())

    def find(self, id: str) -> list[RequestRecord]:
        """Return the requests with an id, active ones first. Clients choose ids, so there may be several."""
        return [j for j in (*self._live.values(), *reversed(self._over)) if j.id == id]

    def cancel(self, id: str, who: str | None = None) -> int:
        """Cancel the active requests with an id, all or those of one key. Return how many."""
        matches = [
            j for j in self._live.values() if j.id == id and j.cancel is not None and (who is None or j.who == who)
        ]
        for request_record in matches:
            assert request_record.cancel is not None
            request_record.cancel()
        return len(matches)
