"""`/admin/requests` and `/admin/traffic`: the live requests and the last hour of all router workers."""

import time
from typing import Annotated

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter

from cortex.router.api_types import CancelAnswer, RequestsAnswer, TrafficAnswer
from cortex.router.decision_log import DecisionLog
from cortex.router.errors import RequestNotFound, SharedRequestId
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.overview.traffic import traffic_answer
from cortex.router.peers import Peers

Key = Annotated[str | None, QueryParameter(max_length=200)]
"""The name of an API key; "" stands for callers without one."""


def routes(catalogue: LiveCatalogue, peers: Peers, decision_log: DecisionLog) -> list[HTTPRouteHandler]:
    """Return the routes about requests."""

    @get("/admin/requests", opt={"needs": "status"})
    async def requests(function: FromQuery[str] = "") -> RequestsAnswer:
        """List the live requests of all router workers, oldest first."""
        id = catalogue.resolve(function).function.id if function else ""
        summaries = [t for t in await peers.requests() if not id or t.function == id]
        return RequestsAnswer(requests=tuple(summaries))

    @get("/admin/requests/{id:str}", opt={"needs": "status"})
    async def request_(id: FromPath[str], key: Key = None) -> RequestsAnswer:
        """Return the live and recent requests with an id. Clients choose ids, so several keys (`who`) may use the same
        one; `key` selects one key's."""
        summaries = [t for t in await peers.find(id) if key is None or t.who == key]
        if not summaries:
            raise RequestNotFound(id)
        return RequestsAnswer(requests=tuple(summaries))

    @post("/admin/requests/{id:str}/cancel", status_code=200, opt={"needs": "admin"})
    async def cancel(id: FromPath[str], key: Key = None) -> CancelAnswer:
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
        return CancelAnswer(cancelled=number)

    @get("/admin/traffic", opt={"needs": "status"})
    async def traffic() -> TrafficAnswer:
        """Return the last hour in total and in buckets of ten seconds, and the last five minutes by function."""
        return traffic_answer(*await peers.traffic(), time.time())

    return [requests, request_, cancel, traffic]
