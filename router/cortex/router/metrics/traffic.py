"""The last hour of a router worker: requests, errors, times and tokens, in buckets of ten seconds. Pure.

Bounded: one hour of buckets in total, and five minutes per function of the catalogue.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from cortex.router.metrics import latency
from cortex.router.request_record import COUNT_TOKENS, Finished, RequestRecord

BUCKET_S = 10
HOUR = 360
LATELY = 30
"""Buckets per function: five minutes."""
MOST_FUNCTIONS = 5000


class Bucket(Struct, kw_only=True):
    """Requests that ended within ten seconds, as sums, so that buckets of several processes can be added."""

    at: int = 0
    """Start, in Unix seconds."""
    requests: int = 0
    errors: int = 0
    cold: int = 0
    duration_s: float = 0.0
    durations: latency.Histogram = {}
    longest_s: float = 0.0
    firsts: int = 0
    """Streams with a first piece; `first_s` sums the time to it."""
    first_s: float = 0.0
    first_tokens: latency.Histogram = {}
    tokens_in: int = 0
    tokens_out: int = 0
    timed_tokens: int = 0
    """Tokens of streams; `timed_s` sums the time from first to last."""
    timed_s: float = 0.0


class Traffic:
    """The buckets of one process."""

    def __init__(self) -> None:
        self._all: deque[Bucket] = deque(maxlen=HOUR)
        self._functions: dict[str, deque[Bucket]] = {}

    def add(self, finished: Finished, now: float) -> None:
        """Count finished requests, unless they have no function or only count tokens."""
        at = int(now) // BUCKET_S * BUCKET_S
        for requests in finished.alike:
            function = requests[0].function
            if not function or requests[0].dialect == COUNT_TOKENS:
                continue
            lately = self._functions.get(function)
            if lately is None:
                if len(self._functions) >= MOST_FUNCTIONS:
                    self._functions.clear()
                lately = self._functions[function] = deque(maxlen=LATELY)
            for buckets in (self._all, lately):
                if not buckets or buckets[-1].at != at:
                    buckets.append(Bucket(at=at))
                _count(buckets[-1], requests)

    def since(self, now: float) -> tuple[list[Bucket], dict[str, Bucket]]:
        """Return the buckets of the last hour, and per function the sum of the last five minutes."""
        hour = [b for b in self._all if b.at > now - HOUR * BUCKET_S]
        lately = {
            f: total(b for b in buckets if b.at > now - LATELY * BUCKET_S) for f, buckets in self._functions.items()
        }
        return hour, {f: b for f, b in lately.items() if b.requests}


def merge(parts: Iterable[tuple[list[Bucket], dict[str, Bucket]]]) -> tuple[list[Bucket], dict[str, Bucket]]:
    """Merge the traffic of several processes."""
    hours: dict[int, list[Bucket]] = {}
    functions: dict[str, list[Bucket]] = {}
    for hour, lately in parts:
        for bucket in hour:
            hours.setdefault(bucket.at, []).append(bucket)
        for function, bucket in lately.items():
            functions.setdefault(function, []).append(bucket)
    return [replace(total(b), at=at) for at, b in sorted(hours.items())], {f: total(b) for f, b in functions.items()}


def _count(bucket: Bucket, requests: Sequence[RequestRecord]) -> None:
    """Count requests that are alike."""
    durations = [r.ended - r.began for r in requests]
    bucket.requests += len(requests)
    bucket.errors += len(requests) if requests[0].failed else 0
    bucket.cold += sum([r.cold for r in requests])
    bucket.duration_s += sum(durations)
    latency.add(bucket.durations, *durations)
    bucket.longest_s = max(bucket.longest_s, *durations)
    bucket.tokens_in += sum([r.tokens_in for r in requests])
    bucket.tokens_out += sum([r.tokens_out for r in requests])
    firsts = [r.first - r.began for r in requests if r.first and r.streams]
    if firsts:
        bucket.firsts += len(firsts)
        bucket.first_s += sum(firsts)
        latency.add(bucket.first_tokens, *firsts)
        for request_record in requests:
            if request_record.streams and request_record.last > request_record.first > 0:
                bucket.timed_tokens += max(0, request_record.tokens_out - 1)
                bucket.timed_s += request_record.last - request_record.first


def total(buckets: Iterable[Bucket]) -> Bucket:
    """Return the sum of buckets."""
    parts = list(buckets)
    return Bucket(
        at=max((b.at for b in parts), default=0),
        requests=sum(b.requests for b in parts),
        errors=sum(b.errors for b in parts),
        cold=sum(b.cold for b in parts),
        duration_s=sum(b.duration_s for b in parts),
        durations=latency.merge(b.durations for b in parts),
        longest_s=max((b.longest_s for b in parts), default=0.0),
        firsts=sum(b.firsts for b in parts),
        first_s=sum(b.first_s for b in parts),
        first_tokens=latency.merge(b.first_tokens for b in parts),
        tokens_in=sum(b.tokens_in for b in parts),
        tokens_out=sum(b.tokens_out for b in parts),
        timed_tokens=sum(b.timed_tokens for b in parts),
        timed_s=sum(b.timed_s for b in parts),
    )
