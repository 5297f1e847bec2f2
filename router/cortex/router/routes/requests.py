"""`/admin/requests` and `/admin/traffic`: the live requests and the last hour of all router workers."""

import time
from typing import Annotated, Any

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from msgspec import to_builtins

from cortex.router.decision_log import DecisionLog
from cortex.router.errors import RequestNotFound, SharedRequestId
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.metrics.latency import percentiles
from cortex.router.metrics.traffic import BUCKET_S, Bucket, total
from cortex.router.peers import Peers

Key = Annotated[str | None, Parameter(max_length=200)]
"""The name of an API key; "" stands for callers without one."""


def routes(catalogue: LiveCatalogue, peers: Peers, decision_log: DecisionLog) -> list[HTTPRouteHandler]:
    """Return the routes about requests."""

    @get("/admin/requests", opt={"needs": "status"})
    async def requests(function: str = "") -> dict[str, Any]:
        """List the live requests of all router workers, oldest first."""
        id = catalogue.resolve(function).function.id if function else ""
        summaries = [t for t in await peers.requests() if not id or t.function == id]
        return {"requests": to_builtins(summaries)}

    @get("/admin/requests/{id:str}", opt={"needs": "status"})
    async def request_(id: str, key: Key = None) -> dict[str, Any]:
        """Return the live and recent requests with an id. Clients choose ids, so several keys (`who`) may use the same
        one; `key` selects one key's."""
        summaries = [t for t in await peers.find(id) if key is None or t.who == key]
        if not summaries:
            raise RequestNotFound(id)
        return {"requests": to_builtins(summaries)}

    @post("/admin/requests/{id:str}/cancel", status_code=200, opt={"needs": "admin"})
    async def cancel(id: str, key: Key = None) -> dict[str, Any]:
        """Cancel a request on any router worker; its client receives an error, and the worker stops. If requests of
        several keys have the id, `key` is required."""
        if key is None:
            owners = sorted({t.who for t in await peers.find(id) if t.phase != "over"})
            if len(owners) > 1:
                raise SharedRequestId(id, owners)
            if not owners:
                raise RequestNotFound(id)
            key = owners[0]
        decision_log.operator_action("cancel", request=id[:128])
        number = await peers.cancel(id, key)
        if not number:
            raise RequestNotFound(id)
        return {"cancelled": number}

    @get("/admin/traffic", opt={"needs": "status"})
    async def traffic() -> dict[str, Any]:
        """Return the last hour in total and in buckets of ten seconds, and the last five minutes by function."""
        hour, lately = await peers.traffic()
        return {
            "now": round(time.time(), 3),
            "bucket_s": BUCKET_S,
            "last_hour": _total(total(hour)),
            "hour": [_bucket(b) for b in hour],
            "functions": {f: _total(b) for f, b in lately.items()},
        }

    return [requests, request_, cancel, traffic]


def _bucket(bucket: Bucket) -> dict[str, Any]:
    """Return a bucket with its means; None without data."""
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


def _total(bucket: Bucket) -> dict[str, Any]:
    """Return a sum of buckets with its percentiles in seconds; None without data."""
    percentile_fields = {"duration": percentiles(bucket.durations), "first": percentiles(bucket.first_tokens)}
    return {**_bucket(bucket), "percentiles": percentile_fields}


def _mean(total: float, number: float) -> float | None:
    return round(total / number, 4) if number else None
