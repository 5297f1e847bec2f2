"""The receipts of one router worker, on their way into the record: bounded, in batches, never on the warm path.

A request that found its instance warm leaves none. What comes in floods (a thousand requests that wait for one start)
leaves so many a second, and one that says how many more there were.
"""

import time
from collections import deque
from typing import Any

from cortex.platform.decisions import DecisionRecord
from cortex.router.request.request_record import RequestRecord

MOST_A_SECOND = 20
MOST_WAITING = 1000
SAME_S = 30.0
OPERATOR = "operator"


class DecisionLog:
    """Takes note; `taken()` is for whoever writes them."""

    def __init__(self, router: str) -> None:
        self._by = f"router:{router}"
        self._waiting: deque[DecisionRecord] = deque(maxlen=MOST_WAITING)
        self._second, self._noted, self._more = 0, 0, 0
        self._said: dict[tuple[str, str], tuple[str, float]] = {}

    def note(self, what: str, function: str = "", *, by: str = "", **rest: Any) -> None:
        """Keep a receipt, unless there were too many this second."""
        now = time.time()
        if int(now) != self._second:
            self._second, self._noted = int(now), 0
        self._noted += 1
        if self._noted > MOST_A_SECOND and by != OPERATOR:
            self._more += 1
            return
        self._waiting.append(DecisionRecord(at=now, by=by or self._by, what=what, function=function, **rest))

    def asked(self, verb: str, function: str = "", *, host: str = "", request: str = "", **how: object) -> None:
        """Keep a receipt of what an operator asked for."""
        numbers = {k: v for k, v in how.items() if v not in (None, False)}
        self.note("asked", function, by=OPERATOR, host=host, request=request, why=verb[:50], numbers=numbers)

    def note_once(self, what: str, function: str, *, why: str) -> None:
        """Keep a receipt unless it says what the function's last one of its kind said half a minute ago."""
        now = time.monotonic()
        before, at = self._said.get((what, function), ("", 0.0))
        if before != why or now - at > SAME_S:
            self._said[what, function] = (why, now)
            self.note(what, function, why=why)

    def noted(self, journey: RequestRecord) -> None:
        """Keep receipts of a request that is over, if anything had to be decided for it."""
        where = {"function": journey.function, "request": journey.id}
        for broke in journey.tries:
            what = "replayed" if broke.replayed else "broke"
            self.note(what, **where, instance=broke.instance, host=broke.host, why=broke.why)
        if journey.fault and not journey.left:
            numbers = {"status": journey.status, "kind": journey.fault, "queued_ms": round(journey.queued_s * 1000)}
            self.note("not_served", **where, instance=journey.instance, why=journey.why, numbers=numbers)
        elif journey.cold:
            numbers = {"queued_ms": round(journey.queued_s * 1000), "status": journey.status}
            why = "its client left while it waited" if journey.left and not journey.instance else "nothing was ready"
            self.note("waited", **where, instance=journey.instance, host=journey.host, why=why, numbers=numbers)

    def taken(self) -> list[DecisionRecord]:
        """Return the receipts since the last call."""
        if self._more:
            why = f"{self._more} more receipts came in a flood and were not kept"
            self._waiting.append(DecisionRecord(at=time.time(), by=self._by, what="more", why=why))
            self._more = 0
        found = list(self._waiting)
        self._waiting.clear()
        return found
