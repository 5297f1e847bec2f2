"""Start times predicted from earlier starts."""

from cortex.functions.lifecycle import State
from cortex.platform.record import Fleet
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.ledger import Entry
from cortex.router.overview.starts import by_revision, last_start, left_s
from tests.support.factories import a_host, an_instance


def entry(started_at: float, **rest: float) -> Entry:
    return Entry(starts=1, phases={"starting": 7.0}, started_at=started_at, **rest)  # type: ignore[arg-type]


def test_the_last_start_counts_whatever_device_it_was_on() -> None:
    found = by_revision({"r1|slow": entry(5.0), "r1|fast": entry(9.0), "r2|fast": Entry(memory_mb=1)})

    assert found == {"r1": entry(9.0)}


def test_the_last_start_is_from_the_live_instance() -> None:
    one = an_instance("one", ready=100.0, phases={"placing": 1.0, "starting": 4.0})
    host = a_host(one)

    last = last_start(one.revision, Fleet(hosts={host.name: host}), entry(50.0))

    assert last is not None
    assert (last.at, last.total_s, last.phases) == (100.0, 5.0, {"placing": 1.0, "starting": 4.0})


def test_the_last_start_of_a_cold_function_is_from_the_ledger() -> None:
    last = last_start("r1", Fleet(), entry(50.0))

    assert last is not None
    assert (last.at, last.phases) == (50.0, {"starting": 7.0})
    assert last_start("r1", Fleet(), None) is None


def test_the_remaining_time_of_a_start_follows_from_earlier_starts() -> None:
    earlier = entry(50.0, start_s=30.0)
    placing = an_instance(state=State.PLACING, phases={})
    starting = an_instance(state=State.STARTING, started=100.0)

    assert left_s(placing, earlier, 110.0) == 30.0
    assert left_s(starting, earlier, 110.0) == 20.0
    assert left_s(starting, earlier, 999.0) == 0.0
    assert left_s(starting, None, 110.0) is None
    assert left_s(an_instance(state=State.FETCHING), earlier, 110.0) is None


def test_a_new_start_is_averaged_with_earlier_ones() -> None:
    once = ledger.with_start(None, 10.0, {"starting": 10.0}, 100.0, 101.0)
    twice = ledger.with_start(once, 20.0, {"starting": 20.0}, 200.0, 201.0)

    assert (twice.start_s, twice.starts, twice.phases, twice.started_at) == (15.0, 2, {"starting": 20.0}, 200.0)
