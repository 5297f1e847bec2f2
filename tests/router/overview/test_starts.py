"""Start times predicted from earlier starts."""

import pytest
from msgspec.structs import replace

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.platform.record import Instance, Tier
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.ledger import Entry
from cortex.router.api_types import DownloadView
from cortex.router.overview.starts import by_revision, fetched_at, last_start, ready_at
from tests.support.factories import an_instance


def entry(started_at: float, **rest: float) -> Entry:
    return Entry(starts=1, phases={"starting": 7.0}, started_at=started_at, **rest)  # type: ignore[arg-type]


def test_the_last_start_counts_whatever_device_it_was_on() -> None:
    result = by_revision({"r1|slow": entry(5.0), "r1|fast": entry(9.0), "r2|fast": Entry(memory_mb=1)})

    assert result == {"r1": entry(9.0)}


def test_the_last_start_is_from_the_live_instance() -> None:
    one = an_instance("one", ready=100.0, phases={"placing": 1.0, "starting": 4.0})

    last = last_start(one.revision, [one], entry(50.0))

    assert last is not None
    assert (last.at, last.total_s, last.phases) == (100.0, 5.0, {"placing": 1.0, "starting": 4.0})


def test_the_last_start_of_a_cold_function_is_from_the_ledger() -> None:
    last = last_start("r1", [], entry(50.0))

    assert last is not None
    assert (last.at, last.phases) == (50.0, {"starting": 7.0})
    assert last_start("r1", [], None) is None


def test_a_return_from_a_tier_is_no_start() -> None:
    one = an_instance("one", ready=100.0, phases={"placing": 1.0, "waking": 0.4}, path="sleep")

    last = last_start(one.revision, [one], entry(50.0))

    assert last is not None
    assert last.at == 50.0


@pytest.mark.parametrize(("measured", "ready"), [({Tier.SLEEP: 0.5}, 100.5), ({Tier.FREEZE: 2.0}, None), ({}, None)])
def test_the_end_of_a_return_follows_from_earlier_returns(measured: dict[Tier, float], ready: float | None) -> None:
    returning = an_instance(state=State.STARTING, started=100.0, parks_to=Tier.SLEEP, return_s=measured)

    assert ready_at(returning, entry(50.0, start_s=30.0), None) == ready


STARTING = an_instance(state=State.STARTING, started=100.0)
FETCHING = an_instance(state=State.FETCHING)
PLACING = an_instance(state=State.PLACING)


@pytest.mark.parametrize(
    ("instance", "start_s", "fetched", "ready"),
    [
        (STARTING, 30.0, None, 130.0),
        (STARTING, 0.0, None, None),
        (FETCHING, 30.0, 150.0, 180.0),
        (FETCHING, 0.0, 150.0, None),
        (FETCHING, 30.0, None, None),
        (PLACING, 30.0, None, None),
        (an_instance(ready=90.0), 30.0, None, None),
    ],
)
def test_the_end_of_a_start_follows_from_earlier_starts_and_from_the_download(
    instance: Instance, start_s: float, fetched: float | None, ready: float | None
) -> None:
    assert ready_at(instance, entry(50.0, start_s=start_s), fetched) == ready
    assert ready_at(instance, None, fetched) is None


def test_the_end_of_a_download_is_that_of_the_function_on_the_same_host() -> None:
    download = DownloadView(
        id="j", host="host-a", source="org/repo", state="fetching", active=True, functions=("org/model",), ends_at=160.0
    )

    assert fetched_at("host-a", FETCHING, [download]) == 160.0
    assert fetched_at("host-b", FETCHING, [download]) is None
    assert fetched_at("host-a", STARTING, [download]) is None


def test_a_new_start_is_averaged_with_earlier_ones() -> None:
    once = ledger.with_start(None, 10.0, {"starting": 10.0}, 100.0, 101.0)
    twice = ledger.with_start(once, 20.0, {"starting": 20.0}, 200.0, 201.0)

    assert (twice.start_s, twice.starts, twice.phases, twice.started_at) == (15.0, 2, {"starting": 20.0}, 200.0)


def test_a_start_is_expected_to_take_what_earlier_ones_in_its_mode_took() -> None:
    entry = Entry(start_s=20.0, starts=2)
    for mode, seconds in ((StartMode.FAST, 9.0), (StartMode.FULL, 34.0)):
        entry = ledger.with_mode(entry, mode, seconds, "0.26")

    times = {m: ready_at(replace(STARTING, start_mode=m), entry, None) for m in (StartMode.FAST, StartMode.FULL, None)}

    assert times == {m: STARTING.started + s for m, s in ((StartMode.FAST, 9.0), (StartMode.FULL, 34.0), (None, 20.0))}
