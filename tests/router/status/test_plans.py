"""Plans as the page shows them."""

import pytest

from cortex.router.api_types import EvictionCandidate
from cortex.router.plan_types import Action, AffectedInstance, Effect, Eviction, Move, Outcome, Plan, PlannedStart
from cortex.router.status.plans import card

NOW = 10_000.0
BUSY = AffectedInstance(instance="one", function="org/model", host="host-a", state="ready", in_flight=3)


def a_plan(action: Action, effect: Effect = Effect.CHANGE, **rest: object) -> Plan:
    target = {"function": "org/model"} if action in ("warm", "cool", "pin", "unpin") else {"host": "host-a"}
    return Plan(action=action, effect=effect, now=NOW, **target, **rest)  # type: ignore[arg-type]


def test_a_warm_shows_the_start_and_the_reason_of_each_eviction() -> None:
    start = PlannedStart(
        host="host-a", devices=("gpu-0",), memory_mb=2048, memory_from="measured", retry_at=NOW + 30
    )  # fmt: skip
    pinned = EvictionCandidate(
        rank=3, instance="three", function="org/pinned", memory_mb=1, idle_since=0.0, priority=0, protection="pinned"
    )
    plan = a_plan(
        Action.WARM,
        start=start,
        evictions=(
            Eviction(instance="old", function="org/old", idle_s=90.0, rank=2),
            Eviction(instance="late", function="org/late", idle_s=5.0),
        ),
        stays=(pinned,),
        refusals={"host-b": "the host is cordoned"},
    )

    shown = card(plan)

    why = "used later than 1 other; earlier ones do not free enough memory"
    assert (shown.title, shown.verb, shown.possible) == ("Warm org/model", "Warm", True)
    assert shown.says == "It would start on host-a, after making room."
    assert shown.losses == (f"org/old, idle for 1 min 30 s: {why}", "org/late, idle for 5 s")
    assert shown.stay == ("org/pinned: pinned",)
    assert ("Memory", "2.0 GiB measured") in shown.facts
    assert dict(shown.facts)["Back-off"] == "another 30 s; warming ignores it"
    assert shown.refused == (("host-b", "the host is cordoned"),)
    assert shown.path == "admin/functions/org%2Fmodel/warm"


def test_a_cool_offers_to_cut_requests_in_flight() -> None:
    shown = card(a_plan(Action.COOL, instances=(BUSY,)))

    assert shown.losses == ("one on host-a: 3 requests in flight, which may finish",)
    assert [(o.name, o.label) for o in shown.options] == [("now", "At once: cut 3 requests")]


def test_a_drain_shows_what_becomes_of_each_function() -> None:
    moves = (
        Move(function="a", outcome=Outcome.MOVES, to="host-b", evicts=("org/old",), in_flight=1),
        Move(function="b", outcome=Outcome.COLD),
        Move(function="c", outcome=Outcome.STOPS),
        Move(function="d", outcome=Outcome.CANCELLED),
    )

    assert card(a_plan(Action.DRAIN, moves=moves)).losses == (
        "a: moves to host-b, where org/old would be evicted; 1 request in flight, which may finish",
        "b: no other host has room, so it goes cold; idle",
        "c: not in the catalogue any more, so it stops; idle",
        "d: its start is cancelled",
    )


@pytest.mark.parametrize(
    ("plan", "says", "possible"),
    [
        (a_plan(Action.WARM, Effect.IMPOSSIBLE), "No host can run it now.", False),
        (
            a_plan(Action.WARM, Effect.NOTHING, start=PlannedStart(host="host-a", instance="one")),
            "An instance is ready or starting on host-a: nothing would change.",
            False,
        ),
        (a_plan(Action.WARM, start=PlannedStart(host="host-a")), "It would start on host-a in free room.", True),
        (a_plan(Action.COOL, Effect.NOTHING), "It is cold: nothing would change.", False),
        (
            a_plan(Action.COOL, instances=(BUSY,)),
            "1 instance would be drained; the next request starts the function again.",
            True,
        ),
        (
            a_plan(Action.COOL, instances=(BUSY,), restarts=2),
            "1 instance would be drained and started again, because `min` is 2.",
            True,
        ),
        (a_plan(Action.PIN), "Its instances would not be evicted or reaped until it is unpinned.", True),
        (
            a_plan(Action.UNPIN, idle_after_s=300.0),
            "Its instances could be evicted, and reaped after 5 min 00 s without a request.",
            True,
        ),
        (
            a_plan(Action.CORDON, instances=(BUSY,)),
            "Nothing new would be placed on it until it is uncordoned. 1 instance on it would keep serving.",
            True,
        ),
        (a_plan(Action.UNCORDON), "New instances may be placed on it.", True),
        (a_plan(Action.DRAIN), "It would be cordoned. Nothing runs on it.", True),
    ],
)
def test_every_plan_has_a_sentence_and_only_a_change_can_be_made(plan: Plan, says: str, possible: bool) -> None:
    assert (card(plan).says, card(plan).possible) == (says, possible)
