"""What instances took: the highest reading of the last starts, and whether it counts."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.platform.record import Tier
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.ledger import (
    STARTS,
    WAKING,
    Costs,
    Entry,
    Reading,
    about,
    placement_mb,
    with_memory,
    with_service,
    with_tiers,
)
from tests.support.factories import a_device, an_instance

DECLARED = 8000


def after(*readings: tuple[float, int], entry: Entry | None = None, **more: Any) -> Entry:
    """Return an entry after readings, each with the start it is of."""
    for number, (start, memory_mb) in enumerate(readings):
        entry = with_memory(entry, memory_mb, 1000.0 + number, start=start, **more) or entry
    assert entry is not None
    return entry


def test_the_highest_reading_of_a_start_counts() -> None:
    entry = after((1.0, 3000), (1.0, 5000), (1.0, 4000))

    assert entry.memory_mb == 5000
    assert [r.memory_mb for r in entry.readings] == [5000]


def test_one_wrong_reading_is_over_after_five_starts() -> None:
    entry = after((0.0, 23_000), *((float(n), 4100) for n in range(1, STARTS)))
    still = entry.memory_mb

    entry = after((float(STARTS), 4100), entry=entry)

    assert (still, entry.memory_mb) == (23_000, 4100)


def test_the_memory_beside_the_cache_is_the_highest_of_the_last_starts() -> None:
    entry = after((1.0, 9000), (1.0, 9900), cache_mb=6000)
    entry = after((2.0, 9200), entry=entry, cache_mb=6100)

    assert ledger.beside_cache_mb(entry, 1) == 3900


def test_what_a_fast_start_holds_beside_its_cache_is_too_little_for_a_full_one() -> None:
    fast = after((1.0, 9000), cache_mb=6000, fast=True)
    both = after((2.0, 9500), entry=fast, cache_mb=6000)

    assert [ledger.beside_cache_mb(e, 1) for e in (fast, both)] == [0, 3500]
    assert [ledger.beside_cache_mb(e, 1, fast=True) for e in (fast, both)] == [3000, 3500]


def test_the_usual_time_of_a_mode_is_the_median_of_its_last_starts_by_one_version() -> None:
    entry = Entry(start_s=20.0)
    for seconds in (34.0, 13.0, 14.0):
        entry = ledger.with_mode(entry, StartMode.FULL, seconds, "0.26")

    newer = ledger.with_mode(entry, StartMode.FULL, 40.0, "0.27")

    assert [ledger.expected_s(e, StartMode.FULL) for e in (entry, newer)] == [14.0, 40.0]
    assert [ledger.expected_s(entry, mode) for mode in (StartMode.FAST, None)] == [20.0, 20.0]
    assert ledger.with_mode(entry, None, 1.0, "0.26") == entry


def test_a_mode_has_the_times_of_its_last_five_starts() -> None:
    entry = Entry()
    for n in range(STARTS + 3):
        entry = ledger.with_mode(entry, StartMode.FAST, float(n), "0.26")

    assert entry.modes[StartMode.FAST].seconds == (3.0, 4.0, 5.0, 6.0, 7.0)


def test_the_memory_beside_the_cache_is_per_device_and_unknown_without_its_size() -> None:
    known, unknown = after((1.0, 18_001), cache_mb=6000), after((1.0, 9000))

    assert ledger.beside_cache_mb(known, 2) == 3001
    assert [ledger.beside_cache_mb(e, 1) for e in (unknown, None)] == [0, 0]


def test_without_a_start_each_reading_is_one_of_its_own() -> None:
    entry = with_memory(None, 23_000, 0.0)
    for day in range(1, 31):
        entry = with_memory(entry, 4100, day * 86_400.0) or entry

    assert entry is not None
    assert (entry.memory_mb, len(entry.readings)) == (4100, STARTS)


@pytest.mark.parametrize("memory_mb", [3000, 5000, 5200])
def test_a_reading_that_wavers_is_no_news(memory_mb: int) -> None:
    assert with_memory(after((1.0, 5000)), memory_mb, 2.0, start=1.0) is None


def test_a_reading_of_a_start_that_is_not_among_the_last_is_no_news() -> None:
    entry = after(*((float(n), 4000) for n in range(10, 10 + STARTS)))

    assert with_memory(entry, 20_000, 99.0, start=1.0) is None


def test_an_entry_of_an_earlier_release_is_the_reading_of_one_start() -> None:
    old = msgspec.json.decode(b'{"memory_mb":23000,"start_s":9.5,"starts":2,"started_at":1.5,"at":2.5}', type=Entry)

    assert placement_mb(old, 30_000) == 23_000
    assert after(*((float(n), 4100) for n in range(10, 10 + STARTS - 1)), entry=old).memory_mb == 23_000
    assert after(*((float(n), 4100) for n in range(10, 10 + STARTS)), entry=old).memory_mb == 4100


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 30_000)), min_size=1, max_size=60))
def test_memory_is_the_highest_of_the_last_starts_within_the_tolerance(readings: list[tuple[int, int]]) -> None:
    entry: Entry | None = None
    highest: dict[int, int] = {}
    for start, memory_mb in sorted(readings, key=lambda r: r[0]):  # starts come in order, their readings in any
        entry = with_memory(entry, memory_mb, 100.0, start=float(start)) or entry
        highest[start] = max(memory_mb, highest.get(start, 0))

    assert entry is not None
    true = max(highest[s] for s in sorted(highest)[-STARTS:])
    assert true / ledger.GROWN <= entry.memory_mb <= true
    assert len(entry.readings) == min(len(highest), STARTS)
    assert msgspec.json.decode(msgspec.json.encode(entry), type=Entry) == entry


@pytest.mark.parametrize(
    ("memory_mb", "declared", "served", "running", "used", "counts"),
    [
        pytest.param(1000, DECLARED, False, {"i"}, {}, False, id="idle and running"),
        pytest.param(1000, DECLARED, False, {"i"}, {"i:i": 9.0}, False, id="it has served, but not for a while yet"),
        pytest.param(1000, DECLARED, False, set(), {}, False, id="it ended and never served"),
        pytest.param(1000, DECLARED, False, set(), {"i:i": 4.0}, False, id="used before this start only"),
        pytest.param(1000, DECLARED, False, set(), {"i:i": 9.0}, True, id="it ended after it served"),
        pytest.param(1000, DECLARED, True, {"i"}, {}, True, id="it served for a while"),
        pytest.param(9000, DECLARED, False, {"i"}, {}, True, id="more than declared"),
        pytest.param(1000, 0, False, {"i"}, {}, True, id="nothing is declared"),
    ],
)
def test_less_than_declared_counts_only_when_it_was_measured_of_serving(
    memory_mb: int, declared: int, served: bool, running: set[str], used: dict[str, float], counts: bool
) -> None:
    entry = Entry(memory_mb=memory_mb, readings=(Reading(start=5.0, memory_mb=memory_mb, instance="i", served=served),))

    assert placement_mb(entry, declared, running, used) == (memory_mb if counts else 0)


def test_an_idle_reading_counts_once_its_instance_has_served() -> None:
    idle = after((1.0, 1000), instance="i", served=False)

    while_serving = with_memory(idle, 1000, 9.0, start=1.0, instance="i", served=True)

    assert while_serving is not None
    assert placement_mb(while_serving, DECLARED, {"i"}) == 1000
    assert placement_mb(with_service(idle, "i", 9.0), DECLARED, {"i"}) == 1000
    assert placement_mb(with_service(idle, "another", 9.0), DECLARED, {"i"}) == 0


def test_without_an_entry_no_memory_is_measured() -> None:
    assert placement_mb(None, 0) == placement_mb(Entry(starts=3), 0) == 0


def test_the_entries_of_a_function_are_those_that_name_it_and_those_of_its_revisions() -> None:
    device = a_device("GPU-1")
    entries = {
        ledger.key("now", device): Entry(),
        ledger.key("before", device): Entry(function="f"),
        ledger.key("other", device): Entry(function="g"),
    }

    assert {ledger.revision_of(field) for field in about(entries, "f", {"now"})} == {"now", "before"}


ASLEEP = an_instance(
    state=State.SLEEPING, parked=Tier.SLEEP, parks_to=Tier.SLEEP, parked_mb=1932, ram_mb=22_300, park_s=0.39
)
AWAKE = replace(ASLEEP, state=State.READY, parked=None, parks_to=None, path="sleep", phases={WAKING: 0.404})


def test_parking_and_returning_are_measured_by_tier() -> None:
    parked = with_tiers(Entry(start_s=60.0, starts=1), ASLEEP, 5.0)
    returned = with_tiers(parked, AWAKE, 6.0)

    assert parked is not None
    assert returned is not None
    assert parked.tiers == {Tier.SLEEP: Costs(park_s=0.39, device_mb=1932, ram_mb=22_300)}
    assert returned.tiers[Tier.SLEEP].return_s == 0.404
    assert (returned.start_s, returned.starts, returned.at) == (60.0, 1, 6.0), "a return is no start"
    assert with_tiers(returned, AWAKE, 7.0) is None, "nothing new"


def test_the_ram_of_a_frozen_instance_is_measured_while_it_is_frozen() -> None:
    frozen = replace(ASLEEP, state=State.FROZEN, parked=Tier.FREEZE, parks_to=Tier.FREEZE, ram_mb=24_000)
    back = replace(AWAKE, path="freeze", ram_mb=22_300)

    entry = with_tiers(with_tiers(None, frozen, 5.0), back, 6.0)

    assert entry is not None
    assert entry.tiers == {Tier.FREEZE: Costs(park_s=0.39, return_s=0.404, ram_mb=24_000)}


def test_an_instance_that_was_started_has_no_costs_of_a_tier() -> None:
    assert with_tiers(None, an_instance(path="warm", phases={"starting": 9.0}), 5.0) is None
