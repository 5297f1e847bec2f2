"""`/admin/usage` and `/v1/usage`: what requests used, of all keys and of the caller's own."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter
from msgspec.structs import asdict

from cortex.platform.registry import RecordUnavailable
from cortex.platform.usage import By, Sums, group
from cortex.platform.usage_record import DAYS_S, UsageRecord
from cortex.router.access.auth import caller
from cortex.router.api_types import ForgetUsageAnswer, UsageAnswer, UsageGroup
from cortex.router.errors import BadRequest, RecordIsAway

T = TypeVar("T")
MONTH_S = 30 * 86400
Time = Annotated[float, QueryParameter(ge=0, le=1e11)]


def routes(record: UsageRecord, current_names: Callable[[], Mapping[str, str]]) -> list[HTTPRouteHandler]:
    """Return the routes. `current_names` has those of the keys that exist, by id; the record has those of revoked ones,
    and earlier ones."""

    async def key_names() -> dict[str, str]:
        return {**await _await_record(record.names()), **current_names()}

    async def answer(by: By, since: float, until: float, key: str) -> UsageAnswer:
        now = time.time()
        since, until = since or now - MONTH_S, until or now
        if until < since:
            raise BadRequest("`until` is before `since`")
        since, until = max(since, now - DAYS_S), min(until, now)
        names = await key_names()
        rows = await _await_record(record.read(since, until, now, key)) if since <= until else []
        groups = [UsageGroup(name=n, **_fields(s)) for n, s in group(rows, by, names).items()]
        total = Sums()
        for row in rows:
            total.add(row.sums)
        return UsageAnswer(
            by=by, since=since, until=until, groups=tuple(groups), total=UsageGroup(name="total", **_fields(total))
        )

    @get("/admin/usage", opt={"needs": "status"})
    async def usage(
        by: FromQuery[By] = "key", since: Time = 0.0, until: Time = 0.0, key: FromQuery[str] = ""
    ) -> UsageAnswer:
        """Return what requests used between two Unix times (the last 30 days, if none are given), in groups by `key`,
        `function`, `host`, `day` or `hour`; of one key, by its id, or of all. Hours and days are UTC; hours exist
        for a month, days for 400."""
        return await answer(by, since, until, key)

    @get("/v1/usage", opt={"needs": "inference"})
    async def own(
        request: Request[Any, Any, Any], by: FromQuery[By] = "day", since: Time = 0.0, until: Time = 0.0
    ) -> UsageAnswer:
        """Return what the caller's key used, like `/admin/usage`."""
        return await answer("day" if by == "host" else by, since, until, caller(request).id)

    @post("/admin/usage/forget", status_code=200, opt={"needs": "admin"})
    async def forget(key: FromQuery[str]) -> ForgetUsageAnswer:
        """Delete the usage of a key, by its id. What was counted as `other` stays."""
        names = await key_names()
        ids = [id for id, name in names.items() if key in (id, name)] or [key]
        number = sum([await _await_record(record.forget(id, time.time())) for id in ids])
        return ForgetUsageAnswer(keys=tuple(ids), rows=number)

    return [usage, own, forget]


def _fields(sums: Sums) -> dict[str, Any]:
    fields = asdict(sums)
    usd, joules = fields.pop("nano_usd") / 1e9, fields.pop("mj") / 1000
    gpu_s, audio_s = fields.pop("gpu_ms") / 1000, fields.pop("audio_ms") / 1000
    return {**fields, "usd": usd, "gpu_s": gpu_s, "joules": joules, "audio_s": audio_s}


async def _await_record(work: Awaitable[T]) -> T:
    try:
        return await work
    except RecordUnavailable as error:
        raise RecordIsAway(str(error), retry_after=5) from None
