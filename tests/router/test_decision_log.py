"""What a router leaves receipts of, and that a flood stays bounded."""

from msgspec.structs import replace

from cortex.platform.record import Fleet, Use
from cortex.router.activation.load_balancing import considered
from cortex.router.decision_log import MOST_A_SECOND, DecisionLog
from tests.router.request.test_request_record import a_finished
from tests.support.factories import a_device, a_function, a_host, a_need, an_instance


def whats(receipts: DecisionLog) -> list[str]:
    return [r.what for r in receipts.taken()]


def test_a_request_that_found_its_instance_warm_leaves_none() -> None:
    receipts = DecisionLog("r")

    receipts.noted(a_finished())

    assert whats(receipts) == []


def test_waiting_replays_and_refusals_leave_a_receipt_with_the_request() -> None:
    receipts = DecisionLog("r")
    replayed = a_finished(id="req_2")
    replayed.forwarded("i-1", "here")
    replayed.broke("connection refused")

    receipts.noted(a_finished(id="req_1", cold=True, queued_s=2.5, instance="i-1", host="here"))
    receipts.noted(replayed)
    receipts.noted(a_finished(id="req_3", fault="rate_limited", status=429, why="2 requests wait already"))

    waited, broke, refused = receipts.taken()
    assert (waited.what, waited.request, waited.numbers["queued_ms"]) == ("waited", "req_1", 2500)
    assert (broke.what, broke.request, broke.instance, broke.why) == ("replayed", "req_2", "i-1", "connection refused")
    assert (refused.what, refused.request, refused.why) == ("not_served", "req_3", "2 requests wait already")


def test_a_flood_leaves_so_many_and_says_how_many_more() -> None:
    receipts = DecisionLog("r")

    for _ in range(MOST_A_SECOND * 10):
        receipts.noted(a_finished(cold=True))

    kept = receipts.taken()
    assert MOST_A_SECOND < len(kept) <= 2 * MOST_A_SECOND + 1  # a second may end on the way
    assert kept[-1].what == "more"


def test_the_same_refusal_is_noted_once_in_a_while() -> None:
    receipts = DecisionLog("r")

    for why in ("full", "full", "fuller", "full"):
        receipts.note_once("nowhere", "org/model", why=why)

    assert [r.why for r in receipts.taken()] == ["full", "fuller", "full"]


def test_every_host_is_named_with_what_it_was_good_for() -> None:
    full = replace(a_host(an_instance("one", memory_mb=9500)), name="full")
    small = replace(a_host(devices=(a_device(total_mb=100),)), name="small")
    fleet = Fleet(hosts={"full": full, "small": small})

    found = considered(a_need(1000), a_function("org/new"), fleet, Use(), 1000.0)

    assert [(c["host"], sorted(c)) for c in found] == [
        ("full", ["devices", "evict", "host"]),
        ("small", ["host", "why_not"]),
    ]
