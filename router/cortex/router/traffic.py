"""The last hour of a router worker: requests, errors, times and tokens, in buckets of ten seconds. Pure.

Bounded: an hour of buckets for everything together, and five minutes per function of the catalogue.
"""

from collections import deque
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from cortex.router.journey import Journey

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
    longest_s: float = 0.0
    firsts: int = 0
    """Streams that had a first piece, and how long that took."""
    first_s: float = 0.0
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

    def note(self, journey: Journey, now: float) -> None:
        """Count a journey that is over."""
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
            f: _sum(b for b in buckets if b.at > now - LATELY * BUCKET_S) for f, buckets in self._functions.items()
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
    return [replace(_sum(b), at=at) for at, b in sorted(hours.items())], {f: _sum(b) for f, b in functions.items()}


def _count(buckets: Iterable[Bucket], journey: Journey) -> None:
    took, failed = journey.duration_s, journey.failed
    tokens_in, tokens_out = journey.tokens_in, journey.tokens_out
    streamed = journey.streams and journey.first
    for bucket in buckets:
        bucket.requests += 1
        bucket.errors += failed
        bucket.cold += journey.cold
        bucket.duration_s += took
        bucket.longest_s = max(bucket.longest_s, took)
        bucket.tokens_in += tokens_in
        bucket.tokens_out += tokens_out
        if streamed:
            bucket.firsts += 1
            bucket.first_s += journey.first - journey.began
            if journey.last > journey.first:
                bucket.timed_tokens += max(0, tokens_out - 1)
                bucket.timed_s += journey.last - journey.first


def _sum(buckets: Iterable[Bucket]) -> Bucket:
    total = Bucket()
    for b in buckets:
        total = Bucket(
            at=max(total.at, b.at),
            requests=total.requests + b.requests,
            errors=total.errors + b.errors,
            cold=total.cold + b.cold,
            duration_s=total.duration_s + b.duration_s,
            longest_s=max(total.longest_s, b.longest_s),
            firsts=total.firsts + b.firsts,
            first_s=total.first_s + b.first_s,
            tokens_in=total.tokens_in + b.tokens_in,
            tokens_out=total.tokens_out + b.tokens_out,
            timed_tokens=total.timed_tokens + b.timed_tokens,
            timed_s=total.timed_s + b.timed_s,
        )
    return total
