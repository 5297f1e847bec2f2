"""One line in the log for every request, when it is over: what, where, how long, how it ended. Never what it says."""

import logging

from cortex.platform import log
from cortex.router.request.request_record import RequestRecord


def note(journey: RequestRecord) -> None:
    """Log a journey that is over."""
    first_s = journey.first_s
    event: dict[str, object] = {
        "request": journey.id,
        "function": journey.function,
        "dialect": journey.dialect,
        "stream": journey.streams,
        "instance": journey.instance,
        "host": journey.host,
        "start": "cold" if journey.cold else "hot",
        "queued_ms": round(journey.queued_s * 1000),
        "first_ms": None if first_s is None else round(first_s * 1000),
        "took_ms": round(journey.duration_s * 1000),
        "tokens_in": journey.tokens_in,
        "tokens_out": journey.tokens_out,
        "cached": journey.cached,
        "status": journey.status,
    }
    if journey.asked != journey.function:
        event["asked"] = journey.asked
    if journey.trace:
        event["trace"] = journey.trace
    if journey.who:
        event["key"] = journey.who
    if journey.tries:
        event["broke"] = [t.instance for t in journey.tries]
    if journey.fault:
        event |= {"fault": journey.fault, "why": journey.why}
    log.line("request", event, logging.WARNING if journey.failed else logging.INFO)
