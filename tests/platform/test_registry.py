"""The record in a real Redis: last uses by Redis' clock, and one host per name."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis.asyncio
from msgspec.structs import replace

from cortex.platform import clock
from cortex.platform.record import HostRecord, used_instance
from cortex.platform.record_keys import RecordKeys
from cortex.platform.registry import Registry
from tests.support.factories import HOST, a_host, an_instance

DAY_S = 86_400.0
ONE, TWO = used_instance("one"), used_instance("two")
SAME = pytest.approx(0.0, abs=0.5)


@pytest.fixture
async def server(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def registry(url: str, server: redis.asyncio.Redis) -> AsyncIterator[Registry]:
    registry = Registry(url)
    yield registry
    await registry.close()


@pytest.fixture
async def other(url: str, server: redis.asyncio.Redis) -> AsyncIterator[Registry]:
    registry = Registry(url)
    yield registry
    await registry.close()


async def idle_s(registry: Registry, member: str, now: float) -> float:
    """How long a member has been idle to a process whose clock says `now`."""
    return now - (await registry.fleet(now)).used[member]


async def step_of_redis_clock(server: redis.asyncio.Redis, by_s: float) -> None:
    """Have all scores be as far from Redis' time as after a step of its clock."""
    for member, score in (await scores(server)).items():
        await server.zadd(RecordKeys().used, {member: score - by_s})


async def scores(server: redis.asyncio.Redis) -> dict[str, float]:
    """Return last uses as Redis has them, by its own clock."""
    result: Any = await server.zrange(RecordKeys().used, 0, -1, withscores=True)
    return {member.decode(): score for member, score in result}


# Last uses.


@pytest.mark.parametrize("ahead_s", [-DAY_S, -60.0, 60.0, DAY_S])
async def test_an_age_is_equal_for_readers_with_any_clock(registry: Registry, other: Registry, ahead_s: float) -> None:
    await registry.touch({ONE: clock.now() - 100.0})

    assert await idle_s(other, ONE, clock.now() + ahead_s) - 100.0 == SAME


async def test_a_step_of_the_writers_wall_clock_does_not_change_a_use(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() - DAY_S)

    await registry.touch({ONE: clock.now() - 100.0})

    assert await idle_s(registry, ONE, clock.now()) - 100.0 == SAME


async def test_an_older_use_never_replaces_a_newer_one(registry: Registry, other: Registry) -> None:
    await registry.touch({ONE: clock.now() - 5.0})
    await registry.touch({ONE: clock.now() - 50.0})

    assert await idle_s(other, ONE, clock.now()) - 5.0 == SAME


async def test_uses_are_ordered_by_time(registry: Registry, other: Registry) -> None:
    now = clock.now()
    await registry.touch({ONE: now - 0.002, TWO: now - 0.001})

    used = (await other.fleet(clock.now())).used

    assert 0.0005 < used[TWO] - used[ONE] < 0.0015


@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
async def test_a_step_of_redis_clock_does_not_change_the_readers_uses(
    registry: Registry, server: redis.asyncio.Redis, step_s: float
) -> None:
    await registry.touch({ONE: clock.now() - 5.0})
    await registry.fleet(clock.now())

    await step_of_redis_clock(server, step_s)

    assert await idle_s(registry, ONE, clock.now()) - 5.0 == SAME


async def test_after_a_backward_step_of_redis_clock_uses_are_recorded_again(
    registry: Registry, other: Registry, server: redis.asyncio.Redis
) -> None:
    await registry.touch({ONE: clock.now() - 5.0, TWO: clock.now() - 5.0})
    await step_of_redis_clock(server, -DAY_S)

    await registry.touch({TWO: clock.now()})

    assert max((await scores(server)).values()) - time.time() <= 0.5
    assert await idle_s(other, TWO, clock.now()) == SAME
    assert await idle_s(other, ONE, clock.now()) == SAME


# Names.


def a_home(home: str, address: str, **rest: object) -> HostRecord:
    return replace(a_host(an_instance()), agent=f"agent-at-{home}", home=home, address=address, **rest)


HERE, THERE = a_home("h1", "http://10.0.0.1:13131"), a_home("h2", "http://10.0.0.2:13131")


async def test_a_second_machine_with_a_name_gets_the_first_ones_record_and_is_listed(
    registry: Registry, other: Registry
) -> None:
    assert await registry.publish_host(HERE, 60.0) is None

    holder = await other.publish_host(THERE, 60.0)

    fleet = await registry.fleet(clock.now())
    assert holder == HERE
    assert fleet.hosts[HOST].address == HERE.address
    assert fleet.namesakes[HOST].address == THERE.address


async def test_the_next_agent_of_the_same_home_publishes(registry: Registry) -> None:
    await registry.publish_host(HERE, 60.0)

    assert await registry.publish_host(replace(HERE, agent="another", sequence=1), 60.0) is None
    assert (await registry.fleet(clock.now())).namesakes == {}


async def test_records_without_a_home_cause_no_conflict(registry: Registry) -> None:
    old = replace(HERE, home="", agent="")
    await registry.publish_host(old, 60.0)

    assert await registry.publish_host(THERE, 60.0) is None
    assert await registry.publish_host(old, 60.0) is None


async def test_an_invalid_record_is_replaced(registry: Registry, server: redis.asyncio.Redis) -> None:
    await server.set(f"cortex:host:{HOST}", b"\xff{")

    assert await registry.publish_host(HERE, 60.0) is None
    assert set((await registry.fleet(clock.now())).hosts) == {HOST}


async def test_a_name_is_free_after_its_host_has_left(
    registry: Registry, other: Registry, server: redis.asyncio.Redis
) -> None:
    await registry.publish_host(HERE, 60.0)
    await other.publish_host(THERE, 60.0)
    await registry.remove_host(HOST, HERE.home)

    assert await other.publish_host(THERE, 60.0) is None
    assert await server.exists(RecordKeys().namesake(HOST))  # a note of itself, for as long as it lives
    assert (await registry.fleet(clock.now())).namesakes == {}


async def test_an_agent_that_ends_does_not_remove_another_homes_record(registry: Registry, other: Registry) -> None:
    await registry.publish_host(HERE, 60.0)

    await other.remove_host(HOST, THERE.home)

    assert set((await registry.fleet(clock.now())).hosts) == {HOST}


# Whose record it is.


async def test_instances_are_of_the_host_below_whose_name_they_are_whatever_they_say(registry: Registry) -> None:
    await registry.publish_host(a_host(an_instance("one", host="host-b")), 60.0)

    one, (whole, *_) = await registry.host(HOST, clock.now()), (await registry.fleet(clock.now())).hosts.values()

    assert one is not None
    assert [i.host for record in (one, whole) for i in record.instances] == [HOST, HOST]


async def test_a_record_below_another_hosts_name_is_not_read(registry: Registry, server: redis.asyncio.Redis) -> None:
    forged = replace(a_host(an_instance("one")), name="host-b")
    await server.set(RecordKeys().host(HOST), msgspec.json.encode(forged), px=60_000)
    await server.sadd(RecordKeys().hosts, HOST)

    one, fleet = await registry.host(HOST, clock.now()), await registry.fleet(clock.now())

    assert (one, fleet.hosts) == (None, {})


async def test_only_records_of_hosts_that_changed_are_read_whole(
    registry: Registry, other: Registry, server: redis.asyncio.Redis
) -> None:
    names = [f"host-{n}" for n in range(20)]
    for name in names:
        await other.publish_host(replace(a_host(an_instance()), name=name, agent=name, at=1.0, sequence=1), 60.0)
    first = await registry.fleet(clock.now())
    await server.config_resetstat()

    unchanged = await registry.fleet(clock.now())
    read_for_none = await bytes_read(server)
    await other.publish_host(
        replace(a_host(an_instance("new")), name="host-3", agent="host-3", at=2.0, sequence=2), 60.0
    )
    await server.delete(RecordKeys().host("host-4"))
    changed = await registry.fleet(clock.now())

    assert read_for_none < 20 * 600 + 5000  # heads alone
    assert all(unchanged.hosts[n] is first.hosts[n] for n in names)
    assert [i.id for i in changed.hosts["host-3"].instances] == ["new"]
    assert changed.hosts.keys() == first.hosts.keys() - {"host-4"}


async def test_a_record_of_an_earlier_release_is_read_whole_each_time(
    registry: Registry, server: redis.asyncio.Redis
) -> None:
    def as_written(instance: str) -> bytes:
        fields = msgspec.to_builtins(a_host(an_instance(instance)))
        return msgspec.json.encode({**{k: v for k, v in fields.items() if k != "sequence"}, "sequence": 1})

    await server.set(RecordKeys().host(HOST), as_written("one"))
    await server.sadd(RecordKeys().hosts, HOST)
    await registry.fleet(clock.now())
    await server.set(RecordKeys().host(HOST), as_written("two"))  # its beginning is the same

    fleet = await registry.fleet(clock.now())

    assert [i.id for i in fleet.hosts[HOST].instances] == ["two"]


async def test_a_heartbeat_is_not_read_and_the_change_after_it_is(registry: Registry, other: Registry) -> None:
    def write(sequence: int, change: str, instance: str) -> HostRecord:
        return replace(a_host(an_instance(instance)), agent="agent-1", change=change, at=sequence, sequence=sequence)

    seen = []
    for record in (write(1, "agent-1.1", "one"), write(2, "agent-1.1", "unread"), write(3, "agent-1.3", "two")):
        await other.publish_host(record, 60.0)
        fleet = await registry.fleet(clock.now())
        seen.append([i.id for i in fleet.hosts[HOST].instances])

    assert seen == [["one"], ["one"], ["two"]]


async def test_hosts_that_were_read_lately_are_not_read_again_and_those_that_are_gone_are_left_out(
    registry: Registry, other: Registry, server: redis.asyncio.Redis
) -> None:
    for sequence, name in enumerate(("host-a", "host-b"), 1):
        await other.publish_host(replace(a_host(), name=name, agent=name, sequence=sequence), 60.0)
    first = await registry.fleet(clock.now(), 60.0)
    await other.publish_host(replace(a_host(an_instance()), name="host-a", agent="host-a", sequence=3), 60.0)
    await other.remove_host("host-b")

    again = await registry.fleet(clock.now(), 60.0)
    anew = await registry.fleet(clock.now())
    await server.flushall()
    emptied = await registry.fleet(clock.now(), 60.0)

    assert list(first.hosts) == ["host-a", "host-b"]
    assert again.hosts == {"host-a": first.hosts["host-a"]}
    assert [i.id for i in anew.hosts["host-a"].instances] == [an_instance().id]
    assert emptied.hosts == {}, "an agent notices that the record has lost its host"


async def test_a_name_in_the_index_that_is_no_text_hides_no_other_host(
    registry: Registry, server: redis.asyncio.Redis
) -> None:
    await registry.publish_host(a_host(), 60.0)
    await server.sadd(RecordKeys().hosts, b"\xff\xfe", "a\0b")

    assert list((await registry.fleet(clock.now())).hosts) == [HOST]


async def bytes_read(server: redis.asyncio.Redis) -> int:
    return int((await server.info("stats"))["total_net_output_bytes"])


async def test_a_heartbeat_rings_apart_from_changes(registry: Registry, server: redis.asyncio.Redis) -> None:
    first = replace(a_host(), agent="a", change="a.1", sequence=1)
    beat, change = replace(first, at=2.0, sequence=2), replace(first, at=3.0, sequence=3, change="a.3")
    async with server.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(RecordKeys().changed)
        await pubsub.get_message(timeout=1.0)
        for record in (first, beat, change):
            await registry.publish_host(record, 60.0)
        messages = [m["data"].decode() for _ in range(3) if (m := await pubsub.get_message(timeout=5.0))]

    assert messages == [f"host:{HOST}", f"beat:2:2.0:a.1:{HOST}", f"host:{HOST}"]
