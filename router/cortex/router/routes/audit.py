"""`/admin/audit`: what operators did."""

from typing import Annotated

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter

from cortex.platform.audit_trail import MOST_ENTRIES, AuditTrail
from cortex.platform.registry import RecordUnavailable
from cortex.router.api_types import AuditAnswer
from cortex.router.errors import RecordIsAway


def routes(trail: AuditTrail) -> list[HTTPRouteHandler]:
    """Return the route."""

    @get("/admin/audit", opt={"needs": "admin"})
    async def audit(
        since: Annotated[float, QueryParameter(ge=0)] = 0.0,
        by: FromQuery[str] = "",
        what: FromQuery[str] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=MOST_ENTRIES)] = 100,
    ) -> AuditAnswer:
        """List what operators did, newest first: from a Unix time on, by a key's id or name, of an action
        (`key revoke`) or a noun (`key`). For admins only: entries have addresses."""
        try:
            entries = await trail.read(limit, since=since, by=by, what=what)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=5) from None
        return AuditAnswer(entries=tuple(entries))

    return [audit]
