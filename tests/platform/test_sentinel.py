"""The record behind Sentinels: addresses, and what a failover costs. The Sentinels are real."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.sources import Demo
from cortex.platform import redis_clients
from cortex.platform.record import HostRecord
from cortex.platform.redis_address import BadAddress, Sentinels, sentinels
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.weights.jobs import Jobs
from tests.support import sentinels as servers

HOST = HostRecord(name="a", address="http://a")
BOUND_S = 15.0


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis+sentinel://h/m", Sentinels(hosts=(("h", 26379),), master="m")),
        (
            "redis+sentinel://u:p%2F%40@a:1,b,[::1]:3/my%20master/2",
            Sentinels(
                hosts=(("a", 1), ("b", 26379), ("::1", 3)), master="my master", db=2, username="u", password="p/@"
            ),
        ),
        (
            "rediss+sentinel://:p@a/m?sentinel_username=s&sentinel_password=q%26&ssl_ca_certs=/ca.pem",
            Sentinels(
                hosts=(("a", 26379),), master="m", tls=True, password="p", sentinel_username="s",
                sentinel_password="q&", ssl={"ssl_ca_certs": "/ca.pem"},
            ),
        ),
    ],
)  # fmt: skip
def test_an_address_of_sentinels_is_read(url: str, address: Sentinels) -> None:
    assert sentinels(url) == address


@pytest.mark.parametrize(
    ("rest", "wrong"),
    [
        ("h1,h2", "the master.s name is missing"),
        ("h1/", "the master.s name is missing"),
        ("/m", "Sentinel number 1 does not have the form"),
        ("h1,,h3/m", "Sentinel number 2 does not have the form"),
        ("h1:x/m", "Sentinel number 1 does not have the form"),
        ("h1,h2:70000/m", "the port of Sentinel number 2"),
        ("h1:0/m", "the port of Sentinel number 1"),
        ("h1/m/first", "the database"),
        ("h1/m?sentinel_pass=x", "unknown option after the \\?"),
        ("u:hunter2/@h1/m", "write it as %2F"),
    ],
)
def test_a_wrong_part_of_an_address_is_named_and_nothing_is_repeated(rest: str, wrong: str) -> None:
    with pytest.raises(BadAddress, match=wrong) as raised:
        sentinels(f"redis+sentinel://{rest}")

    assert "hunter2" not in str(raised.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(rest: str) -> None:
    try:
        address = sentinels(f"redis+sentinel://{rest}")
    except BadAddress:
        return

    assert address.hosts
    assert all(0 < port < 65536 for _, port in address.hosts)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[servers.Sentinels]:
    with servers.sentinels(tmp_path, "hunter2") as fleet:
        yield fleet


async def until_done(call: Callable[[], Awaitable[object]]) -> float:
    """Call until Redis answers; return for how long it did not."""
    began = time.monotonic()
    while True:
        try:
            await call()
            return time.monotonic() - began
        except RecordUnavailable:
            assert time.monotonic() - began < BOUND_S
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="hangs", marks=pytest.mark.long),
    ],
)
async def test_a_failover_is_followed_by_calls_bells_and_jobs(
    fleet: servers.Sentinels, tell: Callable[[str], None], how: signal.Signals
) -> None:
    registry, jobs = Registry(fleet.url), Jobs(fleet.url, "cortex-a")
    await registry.publish_host(HOST, 60)
    await asyncio.to_thread(jobs.ask, Demo("harbour"))
    bell = registry.bell()
    await anext(bell)
    old = fleet.kill_master(how)

    away_s = await until_done(lambda: registry.publish_host(HOST, 60))
    with pytest.raises(RecordUnavailable):
        while True:
            await anext(bell)
    new = registry.bell()
    await anext(new)
    await registry.publish_host(HOST, 60)
    ring = await anext(new)
    job = await asyncio.to_thread(ask, jobs)

    assert fleet.master() != old
    assert list((await registry.fleet(0.0)).hosts) == ["a"]
    assert ring == "host:a"
    assert [f.id for f in jobs.all()] == [job]
    tell(f"a master that {how.name} met: writes failed for {away_s:.1f} s")
    await asyncio.wait_for(registry.close(), 5)
    jobs.close()


def ask(jobs: Jobs) -> str:
    """Ask until Redis answers."""
    began = time.monotonic()
    while True:
        try:
            return jobs.ask(Demo("harbour"))
        except redis.RedisError:
            assert time.monotonic() - began < BOUND_S


async def test_a_planned_failover_loses_no_call(fleet: servers.Sentinels, tell: Callable[[str], None]) -> None:
    registry = Registry(fleet.url)
    await registry.publish_host(HOST, 60)
    await asyncio.to_thread(fleet.fail_over)

    away_s = await until_done(lambda: registry.publish_host(HOST, 60))

    with fleet.client(fleet.master()) as master:
        assert master.smembers("cortex:hosts") == {b"a"}
    tell(f"a planned failover: writes failed for {away_s:.1f} s")
    await registry.close()


async def test_two_sentinels_that_are_dead_cost_little_and_all_three_an_answer_in_time(
    fleet: servers.Sentinels,
) -> None:
    first, second, third = fleet.sentinel_ports
    fleet.servers[first].kill()
    fleet.servers[second].send_signal(signal.SIGSTOP)
    registry = Registry(fleet.url)

    await registry.publish_host(HOST, 60)
    fleet.servers[third].kill()
    fresh = Registry(fleet.url)
    began = time.monotonic()
    with pytest.raises(RecordUnavailable, match=r"no Sentinel that answers|no answer"):
        await fresh.publish_host(HOST, 60)

    assert time.monotonic() - began < 3
    await registry.close()
    await fresh.close()


def test_a_client_of_threads_meets_a_sentinel_that_asks_for_a_password(fleet: servers.Sentinels) -> None:
    with fleet.client(fleet.sentinel_ports[0]) as sentinel:
        sentinel.execute_command("ACL", "SETUSER", "guest", "on", ">word", "+@all", "allchannels")
        sentinel.execute_command("ACL", "SETUSER", "default", "off")
    one = f"127.0.0.1:{fleet.sentinel_ports[0]}"
    url = f"redis+sentinel://:hunter2@{one}/{servers.MASTER}"

    with redis_clients.client(f"{url}?sentinel_username=guest&sentinel_password=word") as client:
        pong = client.ping()
    with redis_clients.client(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()

    assert pong
