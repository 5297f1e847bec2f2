"""The record in a real Redis, read through indexes, with any other keys in the database."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
import redis
from msgspec.structs import replace

from cortex.platform.api_keys import ApiKey, digest
from cortex.platform.record import HostRecord, Override, RouterReport
from cortex.platform.record_codec import key_fields
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry

HOST = HostRecord(name="a", address="http://a", at=1.0)
KEY = ApiKey(digest=digest("secret"), id="1", name="one")


@pytest.fixture
async def registry(url: str, raw: redis.Redis) -> AsyncIterator[Registry]:
    registry = Registry(url)
    yield registry
    await registry.close()


def calls(raw: redis.Redis, command: str) -> int:
    """Return how often a command has run since the test began."""
    stats = raw.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


def write_as_an_earlier_release(raw: redis.Redis) -> None:
    raw.set("cortex:host:a", msgspec.json.encode(HOST), px=60_000)
    raw.set("cortex:router:r", msgspec.json.encode(RouterReport(id="r")), px=60_000)
    raw.hset("cortex:override:f", mapping={"min": 2})
    for field, value in key_fields(KEY).items():
        raw.hset(f"cortex:key:{KEY.digest}", field, value)


async def test_values_are_read_back_without_a_scan(registry: Registry, raw: redis.Redis) -> None:
    await registry.fleet(0.0)
    await registry.api_keys.all()
    scans = calls(raw, "scan")
    await registry.publish_host(HOST, 60)
    await registry.publish_router(RouterReport(id="r"))
    await registry.override("f", Override(min=2))
    await registry.api_keys.put(KEY)

    fleet, keys = await registry.fleet(5.0), await registry.api_keys.all()

    assert (list(fleet.hosts), list(fleet.routers), fleet.overrides) == (["a"], ["r"], {"f": Override(min=2)})
    assert keys == [KEY]
    assert calls(raw, "scan") == scans
    assert calls(raw, "keys") == 0


async def test_a_keys_group_can_change_and_a_deleted_key_stays_deleted(registry: Registry, raw: redis.Redis) -> None:
    gone = replace(KEY, digest=digest("gone"), id="2", name="gone")
    await registry.api_keys.put(KEY, gone)
    await registry.api_keys.delete([gone.digest])

    await registry.api_keys.change([KEY.digest, gone.digest], {"group": "search"})

    assert await registry.api_keys.all() == [replace(KEY, group="search")]
    assert raw.exists(f"cortex:key:{gone.digest}") == 0


async def test_removal_deletes_all_keys_and_index_entries(registry: Registry, raw: redis.Redis) -> None:
    await registry.publish_host(HOST, 60)
    await registry.publish_router(RouterReport(id="r"))
    await registry.override("f", Override(min=2))
    await registry.api_keys.put(KEY)
    await registry.api_keys.all()

    await registry.remove_host("a")
    await registry.remove_router("r")
    await registry.override("f", Override())
    await registry.api_keys.delete([KEY.digest])

    fleet = await registry.fleet(0.0)
    assert (fleet.hosts, fleet.routers, fleet.overrides, await registry.api_keys.all()) == ({}, {}, {}, [])
    assert set(raw.keys()) == {"cortex:overrides", "cortex:keys"}
    assert raw.smembers("cortex:overrides") == raw.smembers("cortex:keys") == {""}


async def test_a_reader_removes_names_of_expired_records_from_the_index(registry: Registry, raw: redis.Redis) -> None:
    await registry.publish_host(HOST, 60)
    await registry.publish_host(replace(HOST, name="b"), 60)
    raw.delete("cortex:host:b")

    fleet = await registry.fleet(0.0)

    assert list(fleet.hosts) == ["a"]
    assert raw.smembers("cortex:hosts") == {"a"}


async def test_a_host_that_registers_during_the_removal_of_its_name_stays(registry: Registry, raw: redis.Redis) -> None:
    raw.sadd("cortex:hosts", "a")
    settle = registry._indexes._settle

    async def registers_first(keys: Sequence[str], args: Sequence[str]) -> object:
        await registry.publish_host(HOST, 60)
        return await settle(keys, args)

    registry._indexes._settle = registers_first
    before = await registry.fleet(0.0)

    after = await registry.fleet(0.0)

    assert (list(before.hosts), list(after.hosts)) == ([], ["a"])


async def test_the_first_read_builds_missing_indexes(registry: Registry, raw: redis.Redis) -> None:
    write_as_an_earlier_release(raw)
    for n in range(50):
        raw.set(f"other:{n}", "x")

    fleet, keys = await registry.fleet(0.0), await registry.api_keys.all()

    assert (list(fleet.hosts), list(fleet.routers), fleet.overrides) == (["a"], ["r"], {"f": Override(min=2)})
    assert keys == [KEY]


async def test_slow_indexing_continues_with_the_next_call(
    url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.platform.record_indexes.SCAN_COUNT", 10)
    with raw.pipeline() as pipe:
        for n in range(8_000):
            pipe.set(f"other:{n}", "x")
        pipe.execute()
    write_as_an_earlier_release(raw)
    registry = Registry(url, timeout_s=0.1)
    answers: list[object] = []

    while not answers or isinstance(answers[-1], RecordUnavailable):
        assert len(answers) < 200
        try:
            answers.append(await registry.api_keys.all())
        except RecordUnavailable as error:
            answers.append(error)
    await registry.close()

    assert len(answers) > 1
    assert answers[-1] == [KEY]


async def test_a_lost_index_is_rebuilt(registry: Registry, raw: redis.Redis) -> None:
    await registry.api_keys.put(KEY)
    await registry.override("f", Override(min=2))
    await registry.fleet(0.0)
    await registry.api_keys.all()
    raw.delete("cortex:keys", "cortex:overrides")

    fleet, keys = await registry.fleet(0.0), await registry.api_keys.all()

    assert (fleet.overrides, keys) == ({"f": Override(min=2)}, [KEY])


async def test_a_value_of_an_earlier_release_is_indexed_at_its_bell(registry: Registry, raw: redis.Redis) -> None:
    await registry.fleet(0.0)
    await registry.api_keys.all()
    bell = registry.bell()
    await anext(bell)
    write_as_an_earlier_release(raw)
    for name in ("host:a", "router:r", "override:f", "key:"):
        raw.publish("cortex:changed", name)
        while await anext(bell) != name:
            pass

    fleet, keys = await registry.fleet(0.0), await registry.api_keys.all()

    assert (list(fleet.hosts), list(fleet.routers), fleet.overrides) == (["a"], ["r"], {"f": Override(min=2)})
    assert keys == [KEY]


async def test_an_emptied_redis_is_refilled_by_the_next_reports(registry: Registry, raw: redis.Redis) -> None:
    await registry.publish_host(HOST, 60)
    await registry.fleet(0.0)
    raw.flushall()
    empty = await registry.fleet(60.0)

    await registry.publish_host(HOST, 60)
    await registry.publish_router(RouterReport(id="r"))
    await registry.api_keys.put(KEY)

    fleet = await registry.fleet(120.0)
    assert empty.hosts == {}
    assert (list(fleet.hosts), list(fleet.routers), await registry.api_keys.all()) == (["a"], ["r"], [KEY])


GARBAGE = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"name": 1}', b"9" * 5000]


@pytest.mark.parametrize("value", GARBAGE, ids=lambda v: repr(v[:8]))
async def test_invalid_values_are_ignored(registry: Registry, raw: redis.Redis, value: bytes) -> None:
    await registry.publish_host(HOST, 60)
    for key in ("cortex:host:x", "cortex:router:x", "cortex:counts:x"):
        raw.set(key, value)
    raw.hset("cortex:override:x", mapping={b"min": value})
    raw.hset("cortex:key:x", mapping={b"name": value})
    raw.hset("cortex:ledger", mapping={b"x": value})
    raw.xadd("cortex:decisions", {b"what": value, value or b"x": b"y"})
    for index in ("cortex:hosts", "cortex:routers", "cortex:overrides", "cortex:keys", "cortex:cordon"):
        raw.sadd(index, value, b"x")
    raw.zadd("cortex:used", {value: 1.0})

    fleet = await registry.fleet(0.0)

    assert list(fleet.hosts) == ["a"]
    assert (fleet.routers, await registry.api_keys.all()) == ({}, [])
    assert isinstance(await registry.ledger(), dict)
    assert len(await registry.read_counts(["x"])) <= 1
    assert await registry.host("x", 0.0) is None
    assert await registry.router("x") is None
    assert len(await registry.decisions({}, 10)) <= 1


@pytest.mark.parametrize("kind", ["string", "list"])
async def test_keys_of_a_wrong_type_fail_one_call_and_are_replaced(
    registry: Registry, raw: redis.Redis, kind: str
) -> None:
    names = registry.names
    single = [key for key, right in names.types.items() if right != kind]
    for key in (*single, *(f(n) for f in (names.host, names.router, names.override, names.api_key) for n in "ax")):
        raw.delete(key)
        raw.set(key, "x") if kind == "string" else raw.rpush(key, "x")
    work = {
        "publish_host": lambda: registry.publish_host(HOST, 60),
        "publish_router": lambda: registry.publish_router(RouterReport(id="r")),
        "touch": lambda: registry.touch({"f:f": 1.0}),
        "fleet": lambda: registry.fleet(0.0),
        "keys": registry.api_keys.all,
        "host": lambda: registry.host("x", 0.0),
        "router": lambda: registry.router("x"),
        "sweep": lambda: registry.lease_sweep("r", 5),
        "claim": lambda: registry.claim("f", "t", 5),
        "ledger": registry.ledger,
        "cordon": lambda: registry.cordon("a", cordoned=True),
        "decisions": lambda: registry.decisions({}, 1),
        "jobs": registry.jobs,
    }
    for call in work.values():
        try:
            await call()
        except RecordUnavailable:
            await call()

    fleet = await registry.fleet(0.0)

    assert (list(fleet.hosts), list(fleet.routers), fleet.cordoned) == (["a"], ["r"], frozenset("a"))
    assert list(fleet.used) == ["f:f"]


async def test_a_lease_or_claim_without_an_expiry_is_ignored(registry: Registry, raw: redis.Redis) -> None:
    raw.set("cortex:sweep", "a dead router")
    raw.set("cortex:claim:f", "a dead router")

    assert await registry.lease_sweep("r", 5)
    assert await registry.claim("f", "t", 5)
    assert not await registry.lease_sweep("another", 5)
    assert not await registry.claim("f", "another", 5)
    assert raw.pttl("cortex:sweep") > 0
    assert raw.pttl("cortex:claim:f") > 0


async def test_a_claim_of_before_a_backward_step_of_redis_clock_ends_a_lifetime_later(
    registry: Registry, raw: redis.Redis
) -> None:
    await registry.claim("f", "a dead router", 5)
    raw.pexpire("cortex:claim:f", 3_600_000)  # as after a step of an hour

    taken = await registry.claim("f", "t", 5)

    assert not taken
    assert 0 < raw.pttl("cortex:claim:f") <= 5000


async def test_only_the_fleets_own_queues_are_counted(registry: Registry, raw: redis.Redis) -> None:
    raw.sadd("rq:queues", "rq:queue:cortex-a", "rq:queue:mail", "rq:queue:staging-a")
    raw.rpush("rq:queue:cortex-a", "1")

    numbers = await registry.jobs()

    assert {queue for queue, _ in numbers} == {"cortex-a"}
    assert numbers["cortex-a", "queued"] == 1


async def test_a_hung_bell_is_detected(url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.platform.registry.SILENCE_S", 0.0)
    registry = Registry(url, timeout_s=1.5)
    bell = registry.bell()
    rings = [await anext(bell) for _ in range(4)]
    raw.client_pause(6000, all=True)
    began = time.monotonic()

    with pytest.raises(RecordUnavailable, match="no answer"):
        while True:
            await anext(bell)

    assert set(rings) == {SUBSCRIBED, "listening:"}
    assert time.monotonic() - began < 6
    await asyncio.wait_for(registry.close(), 3)
