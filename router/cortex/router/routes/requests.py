"""`/admin/requests` and `/admin/traffic`: what all router workers are busy with, and were in the last hour."""

import time
from typing import Annotated, Any

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from msgspec import to_builtins

from cortex.router.errors import RequestNotFound, SharedRequestId
from cortex.router.metrics.latency import percentiles
from cortex.router.metrics.traffic import BUCKET_S, Bucket, total
from cortex.router.runtime import Runtime

Key = Annotated[str | None, Parameter(max_length=200)]
"""The name of an API key; "" stands for callers without one."""


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the routes about requests."""

    @get("/admin/requests", opt={"needs": "status"})
    async def requests(function: str = "") -> dict[str, Any]:
        """List the requests under way, oldest first, over all workers of all routers."""
        wanted = runtime.live_catalogue.resolve(function).function.id if function else ""
        found = [t for t in await runtime.peers.requests() if not wanted or t.function == wanted]
        return {"requests": to_builtins(found)}

    @get("/admin/requests/{id:str}", opt={"needs": "status"})
    async def request_(id: str, key: Key = None) -> dict[str, Any]:
        """Say how a request went or goes: one that is under way, or one of the last few hundred. Clients choose ids:
        there may be several, of several keys (`who`); `key` leaves those of one."""
        found = [t for t in await runtime.peers.find(id) if key is None or t.who == key]
        if not found:
            raise RequestNotFound(id)
        return {"requests": to_builtins(found)}

    @post("/admin/requests/{id:str}/cancel", status_code=200, opt={"needs": "admin"})
    async def cancel(id: str, key: Key = None) -> dict[str, Any]:
        """Cancel a request, wherever it is served. Its client is told, and the worker stops. Where requests of
        several keys have the id, `key` says whose is meant."""
        if key is None:
            owners = sorted({t.who for t in await runtime.peers.find(id) if t.phase != "over"})
            if len(owners) > 1:
                raise SharedRequestId(id, owners)
            if not owners:
                raise RequestNotFound(id)
            key = owners[0]
        runtime.decision_log.operator_action("cancel", request=id[:128])
        number = await runtime.peers.cancel(id, key)
        if not number:
            raise RequestNotFound(id)
        return {"cancelled": number}

    @get("/admin/traffic", opt={"needs": "status"})
    async def traffic() -> dict[str, Any]:
        """The last hour as a whole and in buckets of ten seconds, and per function the last five minutes."""
        hour, lately = await runtime.peers.traffic()
        return {
            "now": round(time.time(), 3),
            "bucket_s": BUCKET_S,
            "last_hour": _told(total(hour)),
            "hour": [_said(b) for b in hour],
            "functions": {f: _told(b) for f, b in lately.items()},
        }

    return [requests, request_, cancel, traffic]


def _said(bucket: Bucket) -> dict[str, Any]:
    """Return a bucket with its means; None where nothing was measured."""
    return {
        "at": bucket.at,
        "requests": bucket.requests,
        "errors": bucket.errors,
        "cold": bucket.cold,
        "mean_s": _mean(bucket.duration_s, bucket.requests),
        "longest_s": round(bucket.longest_s, 3),
        "first_s": _mean(bucket.first_s, bucket.firsts),
        "tokens_in": bucket.tokens_in,
        "tokens_out": bucket.tokens_out,
        "tokens_per_s": _mean(bucket.timed_tokens, bucket.timed_s),
    }


def _told(bucket: Bucket) -> dict[str, Any]:
    """Return a longer time than ten seconds with its percentiles, in seconds; None where nothing was measured."""
    spread = {"duration": percentiles(bucket.durations), "first": percentiles(bucket.first_tokens)}
    return {**_said(bucket), "percentiles": spread}


def _mean(total: float, number: float) -> float | None:
    return round(total / number, 4) if number else None
