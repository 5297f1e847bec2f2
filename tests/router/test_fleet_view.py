"""The fleet view is correct in whatever order its reads of the record end, and follows what operators change."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from msgspec.structs import replace

from cortex.platform import clock
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, used_instance
from cortex.platform.record_codec import Beat
from cortex.platform.record_reader import RecordReader
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry
from cortex.router.fleet_view import OWN_USES_S, FleetView
from tests.support.factories import a_host, an_instance

ONE = used_instance("one")


class Reads:
    """A record whose full reads end when the test resolves them."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, asyncio.Future[Fleet]]] = []

    async def fleet(self, now: float) -> Fleet:
        future: asyncio.Future[Fleet] = asyncio.get_running_loop().create_future()
        self.pending.append((now, future))
        return replace(await future, at=now)


async def start_read(view: FleetView, reads: Reads) -> tuple[asyncio.Task[Fleet], asyncio.Future[Fleet]]:
    """Begin a full read; return its task and the future that ends it."""
    read = asyncio.create_task(view.refresh())
    await asyncio.sleep(0)
    return read, reads.pending[-1][1]


async def test_calls_during_a_read_share_the_next_one() -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    first, end_first = await start_read(view, reads)
    others = [asyncio.create_task(view.refresh()) for _ in range(5)]
    await asyncio.sleep(0)
    begun = len(reads.pending)
    end_first.set_result(Fleet())
    await first
    await asyncio.sleep(0)
    reads.pending[-1][1].set_result(Fleet(cordoned=frozenset({"host-a"})))

    fleets = await asyncio.gather(*others)

    assert (begun, len(reads.pending)) == (1, 2)
    assert {f.cordoned for f in fleets} == {frozenset({"host-a"})}


async def test_calls_that_share_a_read_share_its_failure_and_a_later_call_reads_again() -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    first, end_first = await start_read(view, reads)
    others = [asyncio.create_task(view.refresh()) for _ in range(3)]
    await asyncio.sleep(0)
    end_first.set_result(Fleet())
    await first
    await asyncio.sleep(0)
    reads.pending[-1][1].set_exception(RecordUnavailable("Redis does not answer"))
    failures = await asyncio.gather(*others, return_exceptions=True)
    later, end_later = await start_read(view, reads)
    end_later.set_result(Fleet(cordoned=frozenset({"host-a"})))

    assert [type(f) for f in failures] == [RecordUnavailable] * 3
    assert (await later).cordoned == {"host-a"}
    assert len(reads.pending) == 3


async def test_a_read_whose_caller_leaves_is_made_again_for_the_others() -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    first, _ = await start_read(view, reads)
    other = asyncio.create_task(view.refresh())
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.sleep(0)
    reads.pending[-1][1].set_result(Fleet(cordoned=frozenset({"host-a"})))

    assert (await other).cordoned == {"host-a"}


async def test_a_heartbeat_changes_the_host_and_a_new_instance_the_choice_too() -> None:
    view = FleetView(cast(Registry, Reads()), "router-1")
    ready = an_instance("one")
    view.apply_host("host-a", a_host(ready, at=1.0))

    view.apply_host("host-a", a_host(ready, at=2.0))
    at, first = view.fleet.hosts["host-a"].at, view.ready(ready.function, ready.revision)
    view.apply_host("host-a", a_host(ready, an_instance("two"), at=3.0))
    second = view.ready(ready.function, ready.revision)
    view.apply_host("host-a", None)

    assert (at, [i.id for i in first], [i.id for i in second]) == (2.0, ["one"], ["one", "two"])
    assert "host-a" not in view.fleet.hosts


async def test_an_own_use_survives_a_read_that_lacks_it() -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    now = clock.now()
    read, end = await start_read(view, reads)
    view.note_uses({ONE: now})
    end.set_result(Fleet(used={ONE: now - 100.0}))
    await read

    assert view.fleet.used == {ONE: now}


async def test_own_uses_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    now = clock.now()
    view.note_uses({ONE: now})
    monkeypatch.setattr(clock, "now", lambda: now + OWN_USES_S + 1)
    view.note_uses({})
    read, end = await start_read(view, reads)
    end.set_result(Fleet())
    await read

    assert view.fleet.used == {}


@pytest.mark.parametrize(
    ("key_host", "former_home", "names"),
    [
        ("", None, ("host-b",)),
        ("host-b", None, ("host-b",)),
        ("host-a", None, ("host-b", "host-a")),
        ("host-a", "h1", ("host-b", "host-a")),
        ("host-a", "h2", ("host-b",)),
    ],
    ids=["unknown", "its own name", "a name that is gone", "a name of this home", "another machine's name"],
)
async def test_a_key_follows_from_an_earlier_name_unless_another_machine_has_it(
    key_host: str, former_home: str | None, names: tuple[str, ...]
) -> None:
    reads = Reads()
    view = FleetView(cast(Registry, reads), "router-1")
    hosts = {"host-b": replace(a_host(), name="host-b", home="h1")}
    if former_home is not None:
        hosts["host-a"] = replace(a_host(), name="host-a", home=former_home)
    read, end = await start_read(view, reads)
    end.set_result(Fleet(hosts=hosts))
    await read

    assert view.key_hosts(replace(an_instance(), host="host-b", key_host=key_host)) == names


class Cordoning:
    """A record in which an operator cordons a host once a router listens."""

    def __init__(self) -> None:
        self._cordoned: frozenset[str] = frozenset()
        self._over = asyncio.Event()

    async def fleet(self, now: float) -> Fleet:
        return Fleet(cordoned=self._cordoned, at=now)

    async def bell(self) -> AsyncIterator[str]:
        yield SUBSCRIBED
        self._cordoned = frozenset({"a"})
        yield "cordon:a"
        await self._over.wait()


async def test_a_cordon_by_another_router_is_seen_at_once() -> None:
    view = FleetView(cast(Registry, Cordoning()), "router-1")
    following = asyncio.create_task(view.follow())
    while not view.fleet.cordoned:
        assert await view.wait_for_change(10), "the cordon is not seen"

    assert view.fleet.cordoned == {"a"}
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


class Changing:
    """A record that changes just before each subscription is confirmed, and rings for none of it: a host is added, then
    removed by an operator."""

    def __init__(self) -> None:
        self._hosts = {"host-a": a_host()}
        self.over = asyncio.Event()

    async def fleet(self, now: float) -> Fleet:
        return Fleet(hosts=self._hosts, at=now)

    async def bell(self) -> AsyncIterator[str]:
        self._hosts = {**self._hosts, "host-b": replace(a_host(), name="host-b")}
        yield SUBSCRIBED
        self._hosts = {"host-b": self._hosts["host-b"]}
        yield SUBSCRIBED
        self.over.set()
        await asyncio.Event().wait()


async def test_a_change_before_a_subscription_is_confirmed_is_read() -> None:
    record = Changing()
    view = FleetView(cast(Registry, record), "router-1")
    following = asyncio.create_task(view.follow())
    await asyncio.wait_for(record.over.wait(), 10)

    assert (list(view.fleet.hosts), list(view.fleet.silent), view.away) == (["host-b"], ["host-a"], False)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


class Removing:
    """A record from which an operator removes a host when a full read is due."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch, self._hosts = monkeypatch, {"host-a": a_host()}
        self.over = asyncio.Event()

    async def fleet(self, now: float) -> Fleet:
        return Fleet(hosts=self._hosts, at=now)

    async def bell(self) -> AsyncIterator[str]:
        yield SUBSCRIBED
        self._hosts = {}
        self._monkeypatch.setattr("cortex.router.fleet_view.FULL_READ_S", -1.0)
        yield "removed:host-a"
        yield "ask:1"
        self.over.set()
        await asyncio.Event().wait()


async def test_a_message_is_applied_when_a_full_read_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Removing(monkeypatch)
    view = FleetView(cast(Registry, record), "router-1")
    questions: list[str] = []
    view.on_question = questions.append
    following = asyncio.create_task(view.follow())
    await asyncio.wait_for(record.over.wait(), 10)

    assert (dict(view.fleet.hosts), dict(view.fleet.silent), questions) == ({}, {}, ["1"])
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


class Beating:
    """A record with one host, which sends heartbeats: one of what a router has read, and one of a later change."""

    def __init__(self) -> None:
        self._reader = RecordReader()
        self.reads = 0

    async def fleet(self, now: float) -> Fleet:
        return Fleet(hosts=self._reader.hosts([self._record(1)], now, now), at=now)

    async def host(self, name: str, now: float) -> HostRecord | None:
        self.reads += 1
        return self._reader.host(name, self._record(4), now, now)

    def after(self, beat: Beat, now: float) -> HostRecord | None:
        return self._reader.after(beat, now)

    async def bell(self) -> AsyncIterator[str]:
        yield SUBSCRIBED
        for sequence in (2, 3):
            yield Beat(sequence, 10.0 + sequence, "a.1", a_host().name).message()
        yield "beat:what?"
        yield Beat(5, 15.0, "a.4", a_host().name).message()
        await asyncio.Event().wait()

    @staticmethod
    def _record(sequence: int) -> HostRecord:
        return replace(a_host(), agent="a", change=f"a.{sequence}", sequence=sequence, at=10.0 + sequence)


async def test_a_heartbeat_needs_a_read_only_after_a_missed_change() -> None:
    record = Beating()
    view = FleetView(cast(Registry, record), "router-1")
    following = asyncio.create_task(view.follow())
    while not record.reads:
        assert await view.wait_for_change(10), "the change is not read"

    assert (record.reads, view.fleet.hosts[a_host().name].change) == (1, "a.4")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
