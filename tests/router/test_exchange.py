"""A request that breaks before it is served leaves nothing behind."""

from typing import Any, cast

import pytest

from cortex.functions.spec import Engine, Function
from cortex.platform.api_keys import anonymous
from cortex.router.directory import Target
from cortex.router.request.exchange import Call, Exchange, Services
from cortex.router.request.journey import Journey, Journeys


class BrokenTracing:
    """Tracing that fails on what a caller sent."""

    def __init__(self, journeys: Journeys) -> None:
        self._journeys = journeys
        self.live: list[Journey] = []

    def begun(self, journey: Journey, headers: object) -> dict[str, str]:
        self.live = self._journeys.live()
        raise ValueError("a header that means nothing")


async def test_a_request_whose_trace_cannot_begin_is_not_listed_as_under_way() -> None:
    ended: list[Journey] = []

    def note(journey: Journey) -> None:
        ended.append(journey)

    journeys = Journeys([note])
    tracing = BrokenTracing(journeys)
    nothing = cast(Any, None)
    services = Services(nothing, nothing, nothing, nothing, journeys, cast(Any, tracing))
    target = Target(Function(id="org/model", engine=Engine.FAKE), "revision")
    call = Call(dialect="chat", path="/v1/chat/completions", body=b"{}", reply=nothing)
    exchange = Exchange(services, target, call, "req_1", anonymous())

    with pytest.raises(ValueError, match="means nothing"):
        await exchange({"headers": []}, nothing, nothing)  # type: ignore[arg-type]

    assert tracing.live == [exchange.journey]
    assert journeys.live() == []
    assert ended == [exchange.journey]
