"""Which decisions a router records, and the bound on their rate."""

from msgspec.structs import replace

from cortex.platform.fleet import Fleet
from cortex.platform.record import Use
from cortex.router.activation.load_balancing import candidates, hosts_to_ask
from cortex.router.decision_log import MOST_A_SECOND, DecisionLog, RouterDecision
from cortex.router.request_record import Finished
from tests.router.test_request_record import a_finished
from tests.support.factories import a_device, a_function, a_host, a_need, an_instance


def kinds(decisions: DecisionLog) -> list[str]:
    return [r.what for r in decisions.take()]


def test_a_warm_request_records_no_decision() -> None:
    decisions = DecisionLog("r")

    decisions.note_requests(Finished([a_finished()]))

    assert kinds(decisions) == []


def test_waits_replays_and_rejections_record_a_decision_with_the_request_id() -> None:
    decisions = DecisionLog("r")
    replayed = a_finished(id="req_2")
    replayed.forward("i-1", "here")
    replayed.broke("connection refused")

    decisions.note_requests(Finished([a_finished(id="req_1", cold=True, queued_s=2.5, instance="i-1", host="here")]))
    decisions.note_requests(Finished([replayed]))
    decisions.note_requests(
        Finished([a_finished(id="req_3", fault="rate_limited", status=429, why="2 requests wait already")])
    )

    waited, retry, rejected = decisions.take()
    assert (waited.what, waited.request, waited.inputs["queued_ms"]) == ("waited", "req_1", 2500)
    assert (retry.what, retry.request, retry.instance, retry.why) == (
        "replayed",
        "req_2",
        "i-1",
        "connection refused",
    )
    assert (rejected.what, rejected.request, rejected.why) == ("not_served", "req_3", "2 requests wait already")


def test_decisions_above_the_rate_limit_are_counted_in_one_entry() -> None:
    decisions = DecisionLog("r")

    for _ in range(MOST_A_SECOND * 10):
        decisions.note_requests(Finished([a_finished(cold=True)]))

    entries = decisions.take()
    assert MOST_A_SECOND < len(entries) <= 2 * MOST_A_SECOND + 1  # two seconds, if one ends during the loop
    assert entries[-1].what == RouterDecision.DROPPED


def test_a_repeated_decision_is_recorded_once_until_its_reason_changes() -> None:
    decisions = DecisionLog("r")

    for why in ("full", "full", "fuller", "full"):
        decisions.note_once(RouterDecision.NO_HOST, "org/model", why=why)

    assert [r.why for r in decisions.take()] == ["full", "fuller", "full"]


def test_every_host_is_listed_with_its_placement_or_the_reason_against_it() -> None:
    full = replace(a_host(an_instance("one", memory_mb=9500)), name="full")
    small = replace(a_host(devices=(a_device(total_mb=100),)), name="small")
    fleet = Fleet(hosts={"full": full, "small": small})

    order = hosts_to_ask(a_need(1000), a_function("org/new"), fleet, Use(), 1000.0)
    listing = candidates(a_need(1000), order, fleet, Use(), 1000.0)

    assert [(c["host"], sorted(c)) for c in listing] == [
        ("full", ["devices", "evict", "host"]),
        ("small", ["host", "why_not"]),
    ]
