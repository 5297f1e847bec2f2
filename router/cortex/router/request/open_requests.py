"""The open requests at each instance, as one router worker sees them, and for how long the instance has been silent.

A request is open from the moment it is sent until its answer ends. The cost per request is two dict operations; the
rest is computed for the report, once a second.
"""

import asyncio
import time
from collections.abc import Collection, Sequence

from cortex.platform.record import Silence
from cortex.router.metrics import latency
from cortex.router.request.upstream import Broken
from cortex.router.request_record import Finished, RequestRecord

WORTH_REPORTING_S = 10.0
"""A shorter silence is normal."""
LATER_S = 0.5
"""A request sent this much later than the one that hung a worker is a bystander."""
MOST_TIMES = 1000
"""Times to the first byte to count per function before halving the counts, so that old ones fade."""
_UNANSWERED = (asyncio.CancelledError, TimeoutError, Broken)


class _Instance:
    """The open requests of one instance."""

    __slots__ = ("function", "left_waiting", "live", "lost", "oldest", "progress_at")

    def __init__(self, function: str) -> None:
        self.function = function
        self.live: dict[int, tuple[RequestRecord, float]] = {}
        self.progress_at = 0.0
        """When an answer last ended."""
        self.left_waiting = 0.0
        """Send time of the oldest request that ended without an answer and may still occupy the worker."""
        self.lost = 0
        """Open requests when the first connection was lost."""
        self.oldest = 0.0
        """Send time of the oldest unanswered request at that moment."""


class OpenRequests:
    """The requests at all instances."""

    def __init__(self) -> None:
        self._instances: dict[str, _Instance] = {}
        self._usual: dict[str, latency.Histogram] = {}
        self._numbers: dict[str, int] = {}
        """How many times each of these has counted."""

    def track(self, instance: str, request_record: RequestRecord) -> "_Open":
        """Return a context in which a request counts as open at an instance."""
        entry = self._instances.get(instance)
        if entry is None:
            entry = self._instances[instance] = _Instance(request_record.function)
        return _Open(self, instance, entry, request_record)

    def lose(self, instance: str) -> int:
        """Return the number of open requests at an instance when its first connection was lost."""
        entry = self._instances.get(instance)
        if entry is None:
            return 1
        if not entry.lost:
            entry.lost, entry.oldest = len(entry.live), min(_unanswered(entry), default=0.0)
        return max(entry.lost, 1)

    def came_later(self, instance: str, sent_at: float) -> bool:
        """Whether another request had waited for an answer when one was sent at `sent_at`."""
        entry = self._instances.get(instance)
        return entry is not None and 0.0 < entry.oldest < sent_at - LATER_S

    def reset(self, instance: str) -> None:
        """Reset the loss: the instance is alive, only a connection broke."""
        if entry := self._instances.get(instance):
            entry.lost = 0

    def silences(self, now: float, present: Collection[str]) -> dict[str, Silence]:
        """Return the instances with a long silence; drop instances that are not in `present`."""
        silences = {}
        for instance, entry in list(self._instances.items()):
            if instance not in present and not entry.live:
                del self._instances[instance]
            elif (silent_s := _silent_s(entry, now)) >= WORTH_REPORTING_S:
                usual = self._usual.get(entry.function, {})
                silences[instance] = Silence(for_s=round(silent_s, 1), usual_s=latency.percentile(usual, 0.95) or 0.0)
        return silences

    def finished(self, finished: Finished) -> None:
        """Count the times from sending to the first byte of finished requests."""
        for requests in finished.alike:
            times = [r.first - r.sent_at for r in requests if r.first > r.sent_at > 0]
            if times:
                self._count(requests[0].function, times)

    def _count(self, function: str, times: Sequence[float]) -> None:
        usual = self._usual.get(function)
        if usual is None:
            usual = self._usual[function] = {}
        latency.add(usual, *times)
        number = self._numbers[function] = self._numbers.get(function, 0) + len(times)
        if number > MOST_TIMES:
            self._usual[function] = halved = {step: count // 2 for step, count in usual.items() if count > 1}
            self._numbers[function] = sum(halved.values())


class _Open:
    """One request at one instance."""

    __slots__ = ("_entry", "_instance", "_open_requests", "_record", "_sent_at")

    def __init__(self, open_requests: OpenRequests, instance: str, entry: _Instance, record: RequestRecord) -> None:
        self._open_requests, self._instance, self._entry, self._record = open_requests, instance, entry, record

    def __enter__(self) -> None:
        self._sent_at = time.monotonic()
        self._entry.live[id(self._record)] = self._record, self._sent_at

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        entry, record, sent_at = self._entry, self._record, self._sent_at
        if isinstance(error, Broken):
            error.sent_at = sent_at
            self._open_requests.lose(self._instance)
        del entry.live[id(record)]
        record.sent_at = sent_at
        if not isinstance(error, _UNANSWERED):
            entry.progress_at = time.monotonic()
        elif record.last > sent_at:
            entry.progress_at = max(entry.progress_at, record.last)
        elif not entry.left_waiting or entry.left_waiting < entry.progress_at:
            entry.left_waiting = sent_at


def _unanswered(entry: _Instance) -> list[float]:
    """Return the send times of unanswered requests, including those whose clients have disconnected."""
    unanswered = [sent_at for _, sent_at in entry.live.values()]
    return [*unanswered, entry.left_waiting] if entry.left_waiting > _progress_at(entry) else unanswered


def _progress_at(entry: _Instance) -> float:
    return max([entry.progress_at, *(j.last for j, _ in entry.live.values())])


def _silent_s(entry: _Instance, now: float) -> float:
    """Return for how long an instance with unanswered requests has sent no byte; 0 without such requests."""
    unanswered = _unanswered(entry)
    return now - max(_progress_at(entry), min(unanswered)) if unanswered else 0.0
