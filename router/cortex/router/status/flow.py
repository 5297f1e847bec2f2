"""The last hour's requests, by minute, and how each function has been answered lately. Pure.

A minute ends where a bucket ends, so that none is shown half full.
"""

from collections.abc import Mapping, Sequence

from cortex.router.status.known import Rates
from cortex.router.status.model import Flow, Series
from cortex.router.traffic import BUCKET_S, LATELY, Bucket

MINUTES = 60
LATELY_S = LATELY * BUCKET_S


def flow(hour: Sequence[Bucket], now: float) -> Flow:
    """Return the hour as series, and the last minutes as figures. Before the first request nothing is known."""
    if not hour:
        return Flow()
    ends = int(now) // BUCKET_S * BUCKET_S
    minutes: list[list[Bucket]] = [[] for _ in range(MINUTES)]
    for bucket in hour:
        nth = MINUTES - 1 - (ends - bucket.at - 1) // 60
        if bucket.at < ends and nth >= 0:
            minutes[nth].append(bucket)
    first = next((n for n, found in enumerate(minutes) if found), MINUTES)
    lately = [b for b in hour if ends - LATELY_S <= b.at < ends]
    asked = sum(b.requests for b in lately)
    return Flow(
        minutes=LATELY_S // 60,
        rate_per_min=asked * 60 / LATELY_S,
        errors_per_min=sum(b.errors for b in lately) * 60 / LATELY_S,
        first_token_ms=_mean_ms(sum(b.first_s for b in lately), sum(b.firsts for b in lately)),
        duration_ms=_mean_ms(sum(b.duration_s for b in lately), asked),
        tokens_per_s=sum(b.tokens_out for b in lately) / LATELY_S,
        requests=_series([float(sum(b.requests for b in m)) for m in minutes], first, ends),
        errors=_series([float(sum(b.errors for b in m)) for m in minutes], first, ends),
        first_token=_series(
            [_mean_ms(sum(b.first_s for b in m), sum(b.firsts for b in m)) for m in minutes], first, ends
        ),
        duration=_series(
            [_mean_ms(sum(b.duration_s for b in m), sum(b.requests for b in m)) for m in minutes], first, ends
        ),
    )


def rates(lately: Mapping[str, Bucket]) -> dict[str, Rates]:
    """Return for every function that was asked lately how fast it answered."""
    return {
        function: Rates(
            first_token_ms=_mean_ms(bucket.first_s, bucket.firsts),
            tokens_per_s=bucket.timed_tokens / bucket.timed_s if bucket.timed_s else None,
        )
        for function, bucket in lately.items()
    }


def _series(values: Sequence[float | None], first: int, ends: float) -> Series:
    known = [None if n < first else v for n, v in enumerate(values)]
    return Series(values=tuple(known), step_s=60.0, ends=ends)


def _mean_ms(total_s: float, number: int) -> float | None:
    return 1000 * total_s / number if number else None
