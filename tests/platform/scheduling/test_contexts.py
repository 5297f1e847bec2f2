"""Whether conversations are saved before a worker leaves."""

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, RouterReport
from cortex.platform.scheduling.contexts import unseated_of
from cortex.platform.scheduling.state import HostState, Rules
from tests.support.factories import HOST, a_function, a_host, an_instance

INSTANCE = an_instance(id="i1", state=State.DRAINING, epoch=7, server="xllamacpp")
DONE = RouterReport(id="r1", seen={HOST: 7}, unseated={"i1": 2, "i2": 9})
OTHER = RouterReport(id="r2", seen={HOST: 7}, unseated={})


def state_of(*reports: RouterReport, fleet: bool = True, keeps: bool = True) -> HostState:
    """Return the state of a host that drains the instance."""
    state = HostState(host=a_host(), rules=Rules())
    state.instances["i1"] = INSTANCE
    state.functions["i1"] = a_function(engine=Engine.LLAMACPP, keep_context=keeps)
    state.reports.fleet = Fleet(routers={r.id: r for r in reports}) if fleet else None
    return state


def test_the_conversations_of_a_drained_instance_are_saved_unless_requests_without_a_seat_replaced_them() -> None:
    assert unseated_of(state_of(DONE, OTHER), INSTANCE) == {"r1": 2, "r2": 0}
    assert unseated_of(state_of(), INSTANCE) == {}


@pytest.mark.parametrize(
    "reports",
    [
        (replace(DONE, seen={HOST: 6}),),
        (replace(DONE, in_flight={"i1": 1}),),
        (DONE, replace(OTHER, seen={})),
        (DONE, replace(OTHER, in_flight={"i1": 1})),
        (DONE, replace(OTHER, unseated=None)),
    ],
)
def test_nothing_is_saved_unless_every_report_is_final_and_of_this_release(
    reports: tuple[RouterReport, ...],
) -> None:
    assert unseated_of(state_of(*reports), INSTANCE) is None


def test_nothing_is_saved_without_reports_or_without_the_setting_or_of_another_server() -> None:
    assert unseated_of(state_of(DONE, fleet=False), INSTANCE) is None
    assert unseated_of(state_of(DONE, keeps=False), INSTANCE) is None
    assert unseated_of(state_of(DONE), replace(INSTANCE, server="llama_cpp.server")) is None
    assert unseated_of(state_of(DONE), replace(INSTANCE, reason=DrainReason.SUPERSEDED)) is None


@pytest.mark.parametrize("state", [s for s in State if s is not State.DRAINING])
def test_nothing_is_saved_of_an_instance_that_was_not_drained(state: State) -> None:
    assert unseated_of(state_of(DONE), replace(INSTANCE, state=state)) is None
