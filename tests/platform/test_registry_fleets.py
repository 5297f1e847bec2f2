"""The ownership of a record: fleets that share a Redis, and a token rotation."""

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis

from cortex.platform.api_keys import Limits
from cortex.platform.keys import FleetToken, fleet_mark
from cortex.platform.quota import Quota
from cortex.platform.record import HostRecord, Override, RouterReport
from cortex.platform.record_keys import RecordKeys
from cortex.platform.registry import ForeignFleet, Registry

HOST = HostRecord(name="a", address="http://a")


@pytest.fixture
async def process(url: str, raw: redis.Redis, tmp_path: Path) -> AsyncIterator[Callable[..., Registry]]:
    """Make the registry of a process that has these tokens."""
    numbers, registries = itertools.count(), list[Registry]()

    def make(*tokens: str, prefix: str = "cortex") -> Registry:
        path = tmp_path / f"{next(numbers)}.token"
        path.write_text("\n".join(tokens) + "\n")
        registries.append(Registry(url, prefix=prefix, token=FleetToken(path)))
        return registries[-1]

    yield make
    for registry in registries:
        await registry.close()


async def test_a_second_fleet_is_rejected_before_it_writes(process: Callable[..., Registry], raw: redis.Redis) -> None:
    ours, theirs = process("one"), process("two")
    await ours.publish_host(HOST, 60)
    before = sorted(raw.scan_iter())

    with pytest.raises(ForeignFleet, match=r"`\[redis\] prefix`.*`token_file`"):
        await theirs.publish_router(RouterReport(id="r"))

    assert sorted(raw.scan_iter()) == before
    assert raw.smembers("cortex:fleet") == {fleet_mark("one")}
    assert "prefix" in theirs.foreign
    assert ours.foreign == ""


async def test_a_fleet_is_accepted_after_the_other_has_been_removed(
    process: Callable[..., Registry], raw: redis.Redis
) -> None:
    ours, theirs = process("one"), process("two")
    await ours.ping()
    with pytest.raises(ForeignFleet):
        await theirs.ping()
    raw.delete("cortex:fleet")

    await theirs.ping()

    assert theirs.foreign == ""
    with pytest.raises(ForeignFleet):
        await ours.fleet(0.0)


async def test_fleets_with_different_prefixes_share_nothing(process: Callable[..., Registry], raw: redis.Redis) -> None:
    ours, theirs = process("one"), process("two", prefix="b")
    for number, registry in enumerate((ours, theirs)):
        await registry.publish_host(HostRecord(name="a", address=f"http://{number}"), 60)
        await registry.override("f", Override(min=number))
        await Quota(registry).take("k", Limits(rpm=1), "t", 1)

    fleets = [await r.fleet(0.0) for r in (ours, theirs)]
    leases = [await r.lease_sweep(name, 60) for r, name in ((ours, "r1"), (theirs, "r2"))]

    assert [f.hosts["a"].address for f in fleets] == ["http://0", "http://1"]
    assert [f.overrides["f"].min for f in fleets] == [0, 1]
    assert leases == [True, True]
    assert {str(name).partition(":")[0] for name in raw.scan_iter()} == {"cortex", "b"}


async def test_bells_of_another_prefix_are_not_heard(process: Callable[..., Registry]) -> None:
    ours, theirs = process("one"), process("two", prefix="b")
    bell = ours.bell()
    await anext(bell)
    await theirs.publish_host(HOST, 60)
    await ours.publish_router(RouterReport(id="r"))

    ring = await anext(bell)

    assert ring == "router:r"


STEPS: list[list[tuple[str, ...]]] = [
    [("old",), ("old",)],
    [("old", "new"), ("old",)],
    [("old", "new"), ("old", "new")],
    [("new", "old"), ("old", "new")],
    [("new", "old"), ("new", "old")],
    [("new",), ("new", "old")],
    [("new",), ("new",)],
]


@pytest.mark.parametrize("restarted", [True, False], ids=["each-step-restarts", "files-are-followed"])
async def test_during_a_token_rotation_no_process_is_rejected(
    process: Callable[..., Registry],
    raw: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    restarted: bool,
) -> None:
    monkeypatch.setattr("cortex.platform.keys.LOOK_S", -1.0)
    running = [process("old"), process("old")]

    for step in STEPS:
        for nth, tokens in enumerate(step):
            if restarted:
                running[nth] = process(*tokens)
            else:
                (tmp_path / f"{nth}.token").write_text("\n".join(tokens) + "\n")
        for registry in running * 2:
            await registry.publish_host(HOST, 60)
            await registry.fleet(0.0)

    await running[0].ping()
    assert raw.smembers("cortex:fleet") == {fleet_mark("new")}
    with pytest.raises(ForeignFleet):
        await process("old").ping()


async def test_an_emptied_redis_belongs_to_the_first_fleet(process: Callable[..., Registry], raw: redis.Redis) -> None:
    ours = process("one")
    await ours.fleet(0.0)
    raw.flushall()

    await ours.fleet(0.0)

    assert raw.smembers("cortex:fleet") == {fleet_mark("one")}


def test_prefixes_share_no_queue_and_every_key_has_its_prefix() -> None:
    names = RecordKeys("b")

    assert RecordKeys("b").queue("c-host") != RecordKeys("b_c").queue("host")
    assert all(key.startswith("b:") for key in (*names.types, names.changed, *names.quota("k"), names.claim("f")))
