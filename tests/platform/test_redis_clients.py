"""After a demotion, connections leave the replica and find the new master."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from cortex.functions.sources import Demo
from cortex.platform import redis_clients
from cortex.platform.api_keys import Limits
from cortex.platform.quota import Quota
from cortex.platform.record import HostRecord, RouterReport
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry
from cortex.platform.weights.jobs import Jobs
from tests.support.stack import eventually, own_redis

HOST = HostRecord(name="a", address="http://a")
NOWHERE = 1
"""A port at which no master is."""


class Pair:
    """Two masters, and an address that leads to one of them, as a DNS name or a virtual IP does."""

    def __init__(self, folder: Path, one: str, two: str) -> None:
        self._at = folder / "address.sock"
        self.url = f"unix://{self._at}"
        self.one, self.two = (redis.Redis.from_url(url, decode_responses=True) for url in (one, two))
        self._targets = {id(self.one): one.removeprefix("unix://"), id(self.two): two.removeprefix("unix://")}
        self._lead_to(self.one)

    def _lead_to(self, client: redis.Redis) -> None:
        self._at.unlink(missing_ok=True)
        self._at.symlink_to(self._targets[id(client)])

    def fail_over(self) -> None:
        """Demote the first; the address leads to the second from now on. Open connections stay open."""
        self._lead_to(self.two)
        self.one.replicaof("127.0.0.1", NOWHERE)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    one, two = (tmp_path_factory.mktemp("r") for _ in range(2))
    with own_redis(one) as first, own_redis(two) as second:
        yield first, second


@pytest.fixture
def pair(tmp_path: Path, servers: tuple[str, str]) -> Iterator[Pair]:
    pair = Pair(tmp_path, *servers)
    with pair.one, pair.two:
        for client in (pair.one, pair.two):
            client.replicaof("NO", "ONE")
            client.flushall()
            client.script_flush()
        yield pair


@pytest.fixture
async def registry(pair: Pair) -> AsyncIterator[Registry]:
    registry = Registry(pair.url)
    yield registry
    await registry.close()


async def test_the_first_write_after_a_demotion_reaches_the_new_master(pair: Pair, registry: Registry) -> None:
    await registry.publish_host(HOST, 60)
    pair.fail_over()

    await registry.publish_host(HOST, 60)

    assert pair.two.smembers("cortex:hosts") == {"a"}


async def test_after_a_demotion_all_connections_leave_the_replica(pair: Pair, registry: Registry) -> None:
    await asyncio.gather(*(registry.fleet(0.0) for _ in range(5)))
    pair.fail_over()
    await registry.publish_router(RouterReport(id="r"))

    fleets = await asyncio.gather(*(registry.fleet(0.0) for _ in range(5)))

    assert [list(f.routers) for f in fleets] == [["r"]] * 5


async def test_a_bell_ends_after_a_demotion_and_the_next_one_rings(pair: Pair, registry: Registry) -> None:
    await registry.ping()
    await asyncio.gather(*(registry.publish_host(HOST, 60) for _ in range(2)))
    old = registry.bell()
    await anext(old)
    pair.fail_over()
    await registry.publish_host(HOST, 60)

    with pytest.raises(RecordUnavailable, match="another Redis"):
        await anext(old)

    new = registry.bell()
    await anext(new)
    await registry.publish_host(HOST, 60)
    assert await anext(new) == "host:a"


async def test_a_bell_tells_of_each_subscription(pair: Pair, registry: Registry) -> None:
    bell = registry.bell()
    first = await anext(bell)
    await registry.publish_host(HOST, 60)
    ring = await anext(bell)
    pair.one.client_kill_filter(_type="pubsub")
    again = await anext(bell)
    await registry.publish_host(HOST, 60)

    assert (first, ring, again, await anext(bell)) == (SUBSCRIBED, "host:a", SUBSCRIBED, "host:a")


async def test_a_bell_at_a_redis_without_writers_ends(
    pair: Pair, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.platform.registry.SILENCE_S", 0.1)
    bell = registry.bell()
    await anext(bell)  # its connection is the only one
    pair.fail_over()

    with pytest.raises(RecordUnavailable, match="does not ring at this Redis"):
        while True:
            await anext(bell)


async def test_scripts_work_at_a_new_master(pair: Pair, registry: Registry) -> None:
    quota = Quota(registry)
    await registry.claim("f", "one", 60)
    await quota.take("k", Limits(rpm=2), "t", 1)
    pair.fail_over()

    claimed, verdict = await registry.claim("g", "two", 60), await quota.take("k", Limits(rpm=2), "t", 1)

    assert claimed
    assert verdict.short == ""
    assert pair.two.get("cortex:claim:g") == "two"


async def test_a_blocking_call_continues_at_the_new_master(pair: Pair, registry: Registry) -> None:
    waiting = asyncio.create_task(registry.next_answer("t", 2.0))
    await asyncio.to_thread(eventually, lambda: "blpop" in {c["cmd"] for c in pair.one.client_list()})
    pair.fail_over()
    await registry.answer("t", b"yes")

    answer = await waiting

    assert answer == b"yes"


@pytest.mark.parametrize("serve_stale", ["yes", "no"])
async def test_without_a_master_a_call_fails_within_the_time_limit(
    pair: Pair, registry: Registry, serve_stale: str
) -> None:
    await registry.ping()
    pair.one.config_set("replica-serve-stale-data", serve_stale)
    pair.one.replicaof("127.0.0.1", NOWHERE)
    began = time.monotonic()

    with pytest.raises(RecordUnavailable, match="it accepts no writes"):
        await registry.publish_host(HOST, 60)

    assert time.monotonic() - began < 2.5
    pair.one.replicaof("NO", "ONE")
    await registry.publish_host(HOST, 60)


def test_jobs_are_written_to_the_new_master(pair: Pair) -> None:
    jobs = Jobs(pair.url, "cortex-a")
    jobs.ask(Demo("harbour"))
    pair.fail_over()

    name = jobs.ask(Demo("harbour"))

    assert [f.id for f in jobs.all()] == [name]
    assert pair.two.exists(f"rq:job:{name}")
    jobs.close()


def test_a_reading_thread_leaves_the_replica_after_another_threads_error(pair: Pair) -> None:
    with redis_clients.client(pair.url) as client, contextlib.ExitStack() as stack:
        pool = client.connection_pool
        idle = [pool.get_connection() for _ in range(3)]
        for one in idle:
            stack.callback(one.disconnect)
            pool.release(one)
        pair.fail_over()
        client.set("written", "two")

        values = [client.get("written") for _ in range(3)]

    assert values == [b"two"] * 3


def test_a_threads_listener_moves_to_the_new_master_after_another_threads_error(pair: Pair) -> None:
    with redis_clients.client(pair.url) as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        pool = client.connection_pool
        for one in [pool.get_connection() for _ in range(2)]:
            pool.release(one)
        listener.subscribe("orders")
        listener.get_message(timeout=1)
        pair.fail_over()
        client.set("written", "two")
        listener.get_message(timeout=0.1)
        eventually(lambda: pair.two.pubsub_numsub("orders") == [("orders", 1)], what="the subscription")
        pair.two.publish("orders", "stop")

        message = eventually(lambda: listener.get_message(timeout=1), what="the message")

    assert message["data"] == b"stop"
