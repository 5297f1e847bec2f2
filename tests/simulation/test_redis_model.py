"""The model of Redis and a real Redis answer the registry alike."""

import asyncio
import time
from collections.abc import Awaitable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support  # noqa: F401
from cortex.platform import clock, record_connection
from cortex.platform.decisions import DecisionRecord
from cortex.platform.record import HostRecord, Override, RouterReport
from cortex.platform.registry import Registry
from cortex.platform.scheduling.ledger import Entry
from tests.simulation.network import Network
from tests.simulation.redis_client import Client, Command, Server
from tests.simulation.redis_model import Model
from tests.simulation.virtual_time import VirtualLoop, replaced
from tests.support.stack import own_redis

NAMES = ("a", "b")
SOON_S = 60.0


class Direct(Client):
    """A client that the model answers at once."""

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        return self._server.carry_out(self._place, commands)


OPERATIONS = st.one_of(
    st.tuples(st.just("claim"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("release"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("sweep"), st.sampled_from(NAMES)),
    st.tuples(st.just("host"), st.sampled_from(NAMES), st.sampled_from(("", "home 1", "home 2")), st.integers(1, 3)),
    st.tuples(st.just("remove host"), st.sampled_from(NAMES), st.sampled_from(("", "home 1", "home 2"))),
    st.tuples(st.just("router"), st.sampled_from(NAMES), st.integers(0, 2)),
    st.tuples(st.just("remove router"), st.sampled_from(NAMES)),
    st.tuples(st.just("used"), st.sampled_from(NAMES), st.sampled_from((0.0, 10.0, 20.0))),
    st.tuples(st.just("forget used"), st.sampled_from(NAMES)),
    st.tuples(st.just("override"), st.sampled_from(NAMES), st.sampled_from((None, 0, 2))),
    st.tuples(st.just("cordon"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("learn"), st.sampled_from(NAMES), st.sampled_from((None, True, False))),
    st.tuples(st.just("unlearn"), st.sampled_from(NAMES)),
    st.tuples(st.just("decided"), st.sampled_from(NAMES)),
)


async def carry_out(registry: Registry, operation: tuple[Any, ...]) -> object:
    work: Awaitable[object]
    match operation:
        case ("claim", function, token):
            work = registry.claim(function, token, SOON_S)
        case ("release", function, token):
            work = registry.release(function, token)
        case ("sweep", router):
            work = registry.lease_sweep(router, SOON_S)
        case ("host", name, home, sequence):
            record = HostRecord(name=name, address=f"http://{name}", home=home, sequence=sequence, agent="one")
            work = registry.publish_host(record, SOON_S)
        case ("remove host", name, home):
            work = registry.remove_host(name, home)
        case ("router", id, number):
            work = registry.publish_router(RouterReport(id=id, in_flight={"i": number}))
        case ("remove router", id):
            work = registry.remove_router(id)
        case ("used", member, age_s):
            work = registry.touch({f"f:{member}": clock.now() - age_s})
        case ("forget used", member):
            work = registry.forget_used([f"f:{member}"])
        case ("override", function, most):
            work = registry.override(function, Override(max=most))
        case ("cordon", host, cordoned):
            work = registry.cordon(host, cordoned=cordoned)
        case ("learn", field, new):
            work = registry.learn(field, Entry(memory_mb=5), new=new)
        case ("unlearn", field):
            work = registry.unlearn([field])
        case ("decided", function):
            work = registry.log_decisions([DecisionRecord(at=1.0, by="x", what="placed", function=function)])
        case _:
            raise AssertionError(operation)
    return await work


async def reading(registry: Registry) -> tuple[object, ...]:
    """Return all that a reader sees, with ages instead of times."""
    fleet, now = await registry.fleet(0.0), 0.0
    used = {member: round(now - at) for member, at in fleet.used.items()}
    decisions = [(d.what, d.function) for d in await registry.decisions({}, 10)]
    return (
        sorted(fleet.hosts), [h.sequence for _, h in sorted(fleet.hosts.items())], sorted(fleet.routers.items()), used,
        fleet.cordoned, fleet.overrides, sorted(fleet.namesakes), await registry.ledger(), decisions,
    )  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("r")) as address:
        yield address


@given(operations=st.lists(OPERATIONS, max_size=15))
@settings(max_examples=12)
def test_the_model_answers_as_redis_does(url: str, operations: list[tuple[Any, ...]]) -> None:
    async def both() -> None:
        raw = redis.Redis.from_url(url)
        raw.flushall()
        loop = VirtualLoop()
        server = Server(loop, Network(Random(0)), Random(0), time.time)
        real = Registry(url)
        with replaced([(record_connection, "async_client", lambda *_: Direct(server, "here"))]):
            simulated = Registry(url)
        for operation in operations:
            answers = [await outcome(carry_out(r, operation)) for r in (real, simulated)]
            assert answers[0] == answers[1], operation
        readings = [await outcome(reading(r)) for r in (real, simulated)]
        await real.close()
        raw.close()
        loop.close()
        assert readings[0] == readings[1]

    asyncio.run(both())


async def outcome(work: Any) -> object:
    try:
        return await work
    except Exception as error:
        return type(error)


def test_a_key_expires_by_the_clock_of_the_model() -> None:
    now = [100.0]
    model = Model(lambda: now[0], lambda _channel, _message: 0)
    model.call("SET", "key", "value", "PX", 500)

    before, now[0] = model.call("GET", "key"), 100.6

    assert (before, model.call("GET", "key"), model.call("PTTL", "key")) == (b"value", None, -2)
