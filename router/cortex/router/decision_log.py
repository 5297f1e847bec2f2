"""Buffers the decisions of one router worker until they are written to the record: bounded, in batches.

Requests on the warm path add no entry. Under load (a thousand requests that wait for one start) at most
`MOST_A_SECOND` entries a second are stored, plus one with the number of dropped entries.
"""

import enum
import time
from collections import deque
from typing import Any

from cortex.platform.decisions import DecisionRecord
from cortex.router.request_record import Finished, RequestRecord

MOST_A_SECOND = 20
MOST_BUFFERED = 1000
SAME_S = 30.0
OPERATOR = "operator"


class RouterDecision(enum.StrEnum):
    """What a router decided: `what` in its `DecisionRecord`."""

    PROPOSED = "proposed"
    """A host accepted a start."""
    NO_HOST = "no_host"
    """Every host rejected a start."""
    WAITED = "waited"
    """A request waited for an instance."""
    SUBSTITUTED = "substituted"
    """A request was answered by the substitute of its alias, because its function was not ready."""
    NOT_SERVED = "not_served"
    REPLAYED = "replayed"
    """An attempt failed before the answer began, so the request was sent again."""
    BROKE = "broke"
    """An attempt failed."""
    DEATH = "death"
    """A worker died with a request in flight."""
    SUSPECTED = "suspected"
    """So many workers died with a request in flight that requests like it are refused."""
    ACTION = "action"
    """An operator's; `why` has its name."""
    DROPPED = "dropped"
    """Decisions exceeded the rate limit."""


class DecisionLog:
    """Collects entries; `take()` returns them for writing."""

    def __init__(self, router: str) -> None:
        self._by = f"router:{router}"
        self._buffer: deque[DecisionRecord] = deque(maxlen=MOST_BUFFERED)
        self._second, self._count, self._dropped = 0, 0, 0
        self._latest: dict[tuple[RouterDecision, str], tuple[str, float]] = {}

    def note(self, what: RouterDecision, function: str = "", *, by: str = "", **rest: Any) -> None:
        """Add an entry, unless this second has too many."""
        now = time.time()
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        if self._count > MOST_A_SECOND and by != OPERATOR:
            self._dropped += 1
            return
        self._buffer.append(DecisionRecord(at=now, by=by or self._by, what=what, function=function, **rest))

    def operator_action(
        self, verb: str, function: str = "", *, host: str = "", request: str = "", **options: object
    ) -> None:
        """Add an entry for an operator's action."""
        inputs = {k: v for k, v in options.items() if v not in (None, False)}
        self.note(
            RouterDecision.ACTION, function, by=OPERATOR, host=host, request=request, why=verb[:50], inputs=inputs
        )

    def note_once(self, what: RouterDecision, function: str, *, why: str) -> None:
        """Add an entry unless the function's last one of this kind has the same reason and is under `SAME_S` old."""
        now = time.monotonic()
        reason, at = self._latest.get((what, function), ("", 0.0))
        if reason != why or now - at > SAME_S:
            self._latest[what, function] = (why, now)
            self.note(what, function, why=why)

    def note_requests(self, finished: Finished) -> None:
        """Add entries for finished requests that were replayed, rejected or had to wait."""
        for request in finished:
            if request.substitute_for or request.tries or request.fault or request.cold:
                self._note_request(request)

    def _note_request(self, request: RequestRecord) -> None:
        where = {"function": request.function, "request": request.id}
        if request.substitute_for:
            why = f"it was not ready: {request.function} answered in its place"
            place = {"instance": request.instance, "host": request.host}
            function = request.substitute_for
            self.note(RouterDecision.SUBSTITUTED, function, request=request.id, why=why, **place)
        for attempt in request.tries:
            what = RouterDecision.REPLAYED if attempt.replayed else RouterDecision.BROKE
            self.note(what, **where, instance=attempt.instance, host=attempt.host, why=attempt.why)
        if request.fault and not request.left:
            inputs = {
                "status": request.status,
                "kind": request.fault,
                "queued_ms": round(request.queued_s * 1000),
                "took_ms": round(request.duration_s * 1000),
            }
            self.note(RouterDecision.NOT_SERVED, **where, instance=request.instance, why=request.why, inputs=inputs)
        elif request.cold:
            inputs = {
                "queued_ms": round(request.queued_s * 1000),
                "took_ms": round(request.duration_s * 1000),
                "status": request.status,
            }
            why = "the client left while it waited" if request.left and not request.instance else "nothing was ready"
            self.note(
                RouterDecision.WAITED, **where, instance=request.instance, host=request.host, why=why, inputs=inputs
            )

    def take(self) -> list[DecisionRecord]:
        """Return and remove the buffered entries."""
        if self._dropped:
            why = f"{self._dropped} more decisions exceeded the rate limit and were dropped"
            self._buffer.append(DecisionRecord(at=time.time(), by=self._by, what=RouterDecision.DROPPED, why=why))
            self._dropped = 0
        entries = list(self._buffer)
        self._buffer.clear()
        return entries
