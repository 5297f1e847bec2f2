"""The last hour of a router worker: requests, errors, times and tokens, in buckets of ten seconds. Pure.

Bounded: an hour of buckets for everything together, and five minutes per function of the catalogue.
"""

from collections import deque
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from cortex.router.metrics import latency
from cortex.router.request.request_record import COUNT_TOKENS, RequestRecord

BUCKET_S = 10
HOUR = 360
LATELY = 30
"""Buckets kept per function: five minutes."""
MOST_FUNCTIONS = 5000


class Bucket(Struct, kw_only=True):
    """What ended in ten seconds. Sums, so that several processes' buckets can be added up."""

    at: int = 0
    """When it began."""
    requests: int = 0
    errors: int = 0
    cold: int = 0
    duration_s: float = 0.0
    durations: latency.Spread = {}
    longest_s: float = 0.0
    firsts: int = 0
    """Streams that had a first piece, and how long that took."""
    first_s: float = 0.0
    first_tokens: latency.Spread = {}
    tokens_in: int = 0
    tokens_out: int = 0
    timed_tokens: int = 0
    """Tokens of streams, and how long they took from the first to the last."""
    timed_s: float = 0.0


class Traffic:
    """One process's buckets."""

    def __init__(self) -> None:
        self._all: deque[Bucket] = deque(maxlen=HOUR)
        self._functions: dict[str, deque[Bucket]] = {}

    def note(self, journey: RequestRecord, now: float) -> None:
        """Count a journey that is over, unless it reached no function or only counted tokens."""
        if not journey.function or journey.dialect == COUNT_TOKENS:
            return
        lately = self._functions.get(journey.function)
        if lately is None:
            if len(self._functions) >= MOST_FUNCTIONS:
                self._functions.clear()
            lately = self._functions[journey.function] = deque(maxlen=LATELY)
        at = int(now) // BUCKET_S * BUCKET_S
        for buckets in (self._all, lately):
            if not buckets or buckets[-1].at != at:
                buckets.append(Bucket(at=at))
        _count((self._all[-1], lately[-1]), journey)

    def since(self, now: float) -> tuple[list[Bucket], dict[str, Bucket]]:
        """Return the buckets of the last hour, and per function the sum of the last five minutes."""
        hour = [b for b in self._all if b.at > now - HOUR * BUCKET_S]
        lately = {
            f: whole(b for b in buckets if b.at > now - LATELY * BUCKET_S) for f, buckets in self._functions.items()
        }
        return hour, {f: b for f, b in lately.items() if b.requests}


def together(parts: Iterable[tuple[list[Bucket], dict[str, Bucket]]]) -> tuple[list[Bucket], dict[str, Bucket]]:
    """Add up what several processes say."""
    hours: dict[int, list[Bucket]] = {}
    functions: dict[str, list[Bucket]] = {}
    for hour, lately in parts:
        for bucket in hour:
            hours.setdefault(bucket.at, []).append(bucket)
        for function, bucket in lately.items():
            functions.setdefault(function, []).append(bucket)
    return [replace(whole(b), at=at) for at, b in sorted(hours.items())], {f: whole(b) for f, b in functions.items()}


def _count(buckets: Iterable[Bucket], journey: RequestRecord) -> None:
    took, failed = journey.duration_s, journey.failed
    tokens_in, tokens_out = journey.tokens_in, journey.tokens_out
    streamed = journey.streams and journey.first
    for bucket in buckets:
        bucket.requests += 1
        bucket.errors += failed
        bucket.cold += journey.cold
        bucket.duration_s += took
        latency.note(bucket.durations, took)
        bucket.longest_s = max(bucket.longest_s, took)
        bucket.tokens_in += tokens_in
        bucket.tokens_out += tokens_out
        if streamed:
            bucket.firsts += 1
            bucket.first_s += journey.first - journey.began
            latency.note(bucket.first_tokens, journey.first - journey.began)
            if journey.last > journey.first:
                bucket.timed_tokens += max(0, tokens_out - 1)
                bucket.timed_s += journey.last - journey.first


def whole(buckets: Iterable[Bucket]) -> Bucket:
    """Add buckets up."""
    parts = list(buckets)
    return Bucket(
        at=max((b.at for b in parts), default=0),
        requests=sum(b.requests for b in parts),
        errors=sum(b.errors for b in parts),
        cold=sum(b.cold for b in parts),
        duration_s=sum(b.duration_s for b in parts),
        durations=latency.together(b.durations for b in parts),
        longest_s=max((b.longest_s for b in parts), default=0.0),
        firsts=sum(b.firsts for b in parts),
        first_s=sum(b.first_s for b in parts),
        first_tokens=latency.together(b.first_tokens for b in parts),
        tokens_in=sum(b.tokens_in for b in parts),
        tokens_out=sum(b.tokens_out for b in parts),
        timed_tokens=sum(b.timed_tokens for b in parts),
        timed_s=sum(b.timed_s for b in parts),
    )
