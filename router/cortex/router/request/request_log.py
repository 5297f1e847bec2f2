"""Log one line per finished request: function, instance, times, outcome. Never its content."""

import logging

from cortex.platform import log
from cortex.router.request_record import Finished, RequestRecord


def note(finished: Finished) -> None:
    """Log finished requests, in one piece."""
    log.lines("request", [_line(request_record) for request_record in finished])


def _line(request_record: RequestRecord) -> tuple[int, dict[str, object]]:
    began, first = request_record.began, request_record.first
    event: dict[str, object] = {
        "request": request_record.id,
        "function": request_record.function,
        "dialect": request_record.dialect,
        "stream": request_record.streams,
        "instance": request_record.instance,
        "host": request_record.host,
        "start": request_record.start,
        "queued_ms": round(request_record.queued_s * 1000),
        "first_ms": round((first - began) * 1000) if first else None,
        "took_ms": round((request_record.ended - began) * 1000),
        "tokens_in": request_record.tokens_in,
        "tokens_out": request_record.tokens_out,
        "cached": request_record.cached,
        "status": request_record.status,
    }
    if request_record.model != request_record.function:
        event["model"] = request_record.model
    if request_record.trace:
        event["trace"] = request_record.trace
    if request_record.who:
        event["key"] = request_record.who
    if request_record.tries:
        event["broke"] = [t.instance for t in request_record.tries]
    if request_record.fault:
        event |= {"fault": request_record.fault, "why": request_record.why}
    return logging.WARNING if request_record.failed else logging.INFO, event
