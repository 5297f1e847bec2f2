"""An agent's counters."""

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.platform.agent.counts import REGRET_S, AgentCounts
from cortex.platform.fleet import Fleet
from cortex.platform.record import DrainReason, Instance, RouterReport, Tier, used_function
from cortex.platform.scheduling.effects import Decision
from cortex.platform.scheduling.reasons import DecisionKind
from tests.support.factories import HOST, a_host, an_instance

EVICTED = Decision(DecisionKind.EVICTED, "org/model", "one", "for org/other")


def counted(counts: AgentCounts) -> dict[str, float]:
    return {f"{c.name} {' '.join(c.labels)}": c.value for c in counts.snapshot().counts}


def evicted_at(now: float, *others: Instance) -> AgentCounts:
    counts = AgentCounts(HOST)
    counts.count_decision(EVICTED, a_host(an_instance("one", state=State.DRAINING), *others), None, now)
    return counts


def test_a_start_is_counted_with_its_path_and_phases() -> None:
    counts = AgentCounts(HOST)
    plain = an_instance("one", phases={"placing": 0.0, "starting": 4.0})
    fetched = an_instance("two", phases={"fetching": 60.0, "placing": 0.0, "starting": 4.0})
    made_room = an_instance("three", phases={"placing": 2.0, "starting": 4.0})
    host = a_host(plain, fetched, made_room)

    for instance in host.instances:
        counts.count_decision(Decision(DecisionKind.READY, "org/model", instance.id, ""), host, None, 0.0)

    assert {k: v for k, v in counted(counts).items() if "starts" in k} == {
        f"cortex_cold_starts_total org/model {HOST}": 3,
        f"cortex_starts_total {HOST} org/model plain": 1,
        f"cortex_starts_total {HOST} org/model fetched": 1,
        f"cortex_starts_total {HOST} org/model evicted": 1,
    }
    phases = {s.labels[2]: sum(s.counts) for s in counts.snapshot().spreads if "phase" in s.name}
    assert phases == {"fetching": 1, "placing": 3, "starting": 3}


def test_the_time_of_a_start_is_counted_by_its_mode() -> None:
    counts = AgentCounts(HOST)
    modes = (StartMode.FAST, StartMode.FULL, None)
    host = a_host(*(an_instance(str(n), start_mode=m, started=1.0, ready=10.0) for n, m in enumerate(modes)))

    for instance in host.instances:
        counts.count_decision(Decision(DecisionKind.READY, "org/model", instance.id, ""), host, None, 0.0)

    spreads = [s for s in counts.snapshot().spreads if s.name == "cortex_start_seconds"]
    assert {s.labels[2]: s.sum for s in spreads} == {"fast": 9.0, "full": 9.0, "one": 9.0}


def test_a_return_is_counted_by_its_tier_and_is_no_cold_start() -> None:
    counts = AgentCounts(HOST)
    returned = an_instance("one", path="sleep", phases={"placing": 2.0, "waking": 0.5})

    counts.count_decision(Decision(DecisionKind.READY, "org/model", "one", ""), a_host(returned), None, 0.0)

    assert {k: v for k, v in counted(counts).items() if "decisions" not in k} == {
        f"cortex_starts_total {HOST} org/model sleep": 1
    }
    (spread,) = counts.snapshot().spreads
    assert (spread.name, spread.labels, spread.sum) == (
        "cortex_return_seconds", (HOST, "org/model", "sleep"), 0.5
    )  # fmt: skip


def test_a_parking_is_measured_by_its_tier() -> None:
    counts = AgentCounts(HOST)
    parked = an_instance("one", state=State.FROZEN, parked=Tier.FREEZE, park_s=1.25)

    counts.count_decision(Decision(DecisionKind.PARKED, "org/model", "one", ""), a_host(parked), None, 0.0)

    (spread,) = counts.snapshot().spreads
    assert (spread.name, spread.labels, spread.sum) == (
        "cortex_park_seconds", (HOST, "org/model", "freeze"), 1.25
    )  # fmt: skip


def test_an_eviction_is_regretted_when_the_function_is_used_again_soon() -> None:
    counts = evicted_at(100.0)

    counts.count_regrets(Fleet(used={used_function("org/model"): 99.0}), 120.0)
    assert f"cortex_evictions_regretted_total org/model {HOST}" not in counted(counts)

    counts.count_regrets(Fleet(used={used_function("org/model"): 130.0}), 131.0)
    counts.count_regrets(Fleet(used={used_function("org/model"): 140.0}), 141.0)
    assert counted(counts)[f"cortex_evictions_regretted_total org/model {HOST}"] == 1


def test_an_eviction_is_regretted_as_soon_as_a_request_waits() -> None:
    counts = evicted_at(100.0)

    counts.count_regrets(Fleet(routers={"r": RouterReport(id="r", waiting={"org/model": 1})}), 101.0)

    assert counted(counts)[f"cortex_evictions_regretted_total org/model {HOST}"] == 1


def test_an_eviction_is_not_regretted_later_or_with_another_instance_ready() -> None:
    late, spare = evicted_at(100.0), evicted_at(100.0, an_instance("two"))

    late.count_regrets(Fleet(), 100.0 + REGRET_S + 1)
    late.count_regrets(Fleet(used={used_function("org/model"): 900.0}), 901.0)
    spare.count_regrets(Fleet(used={used_function("org/model"): 130.0}), 131.0)

    for counts in (late, spare):
        assert f"cortex_evictions_regretted_total org/model {HOST}" not in counted(counts)


def test_drains_are_counted_by_reason_whatever_their_text() -> None:
    counts = AgentCounts(HOST)
    host = a_host(an_instance())
    drains = [("moved to gpu-7", DrainReason.MOVED), ("idle, by a text that changes", DrainReason.COOL), ("idle", None)]

    for why, reason in drains:
        counts.count_decision(Decision(DecisionKind.DRAINING, "org/model", "one", why, reason), host, None, 0.0)

    reasons = {k.split()[-1] for k in counted(counts) if k.startswith("cortex_drains_total")}
    assert reasons == {"moved", "cool", "other"}
