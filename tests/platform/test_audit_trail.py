"""The audit record in a real Redis: filters, bounds, and what other programs left in its key."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from cortex.platform import audit_trail
from cortex.platform.audit import AuditRecord
from cortex.platform.audit_trail import AuditTrail
from cortex.platform.registry import RecordUnavailable, Registry

NOW = time.time()


@pytest.fixture
async def trail(url: str, raw: redis.Redis) -> AsyncIterator[AuditTrail]:
    registry = Registry(url)
    yield AuditTrail(registry)
    await registry.close()


def entry(id: str, **values: Any) -> AuditRecord:
    fields = {"at": NOW, "by": "k1", "what": "function warm", "target": "one/open", "status": 200, **values}
    return AuditRecord(id=id, **fields)


async def test_entries_are_read_back_newest_first_and_whole(trail: AuditTrail) -> None:
    first = entry("1", at=NOW - 60, name="ci", session=True, address="::1", detail={"now": "1"}, took_s=0.5)
    second = entry("2")

    await trail.append([first, second])

    assert await trail.read(10) == [second, first]
    assert await trail.read(1) == [second]


async def test_entries_are_selected_by_time_key_action_and_noun(trail: AuditTrail) -> None:
    await trail.append(
        [
            entry("old", at=NOW - 100),
            entry("other", by="k2", name="ops"),
            entry("revoke", what="key revoke"),
        ]
    )

    async def ids(**filters: Any) -> set[str]:
        return {e.id for e in await trail.read(10, **filters)}

    assert await ids(since=NOW - 50) == {"other", "revoke"}
    assert await ids(by="k2") == await ids(by="ops") == {"other"}
    assert await ids(what="key revoke") == await ids(what="key") == {"revoke"}
    assert await ids(what="key rotate") == set()


async def test_an_entry_that_was_written_twice_is_read_once(trail: AuditTrail) -> None:
    await trail.append([entry("1")])
    await trail.append([entry("1"), entry("2")])

    assert sorted(e.id for e in await trail.read(10)) == ["1", "2"]


async def test_the_stream_is_bounded_by_count(
    trail: AuditTrail, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "MOST_ENTRIES", 100)

    await trail.append(entry(str(n)) for n in range(1000))

    assert 100 <= raw.xlen("cortex:audit") <= 300  # Redis trims whole nodes of a hundred entries
    assert (await trail.read(1))[0].at == NOW


async def test_entries_over_the_age_are_removed_with_the_next_write(trail: AuditTrail, raw: redis.Redis) -> None:
    long_ago = round((NOW - audit_trail.LONGEST_S - 3600) * 1000)
    for n in range(300):
        raw.xadd("cortex:audit", {"entry": "{}"}, id=f"{long_ago}-{n + 1}")

    await trail.append([entry("1")])

    assert raw.xlen("cortex:audit") <= 101
    assert [e.id for e in await trail.read(10)] == ["1"]


async def test_pages_of_entries_are_read_until_the_limit_is_reached(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "READ_AT_ONCE", 3)
    await trail.append(entry(str(n), at=NOW + n, by="k2" if n % 5 == 0 else "k1") for n in range(20))

    assert [e.id for e in await trail.read(3, by="k2")] == ["15", "10", "5"]


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b'{"id": 1}', b"[" * 100_000], ids=lambda v: repr(v[:8]))
async def test_invalid_entries_are_ignored(trail: AuditTrail, raw: redis.Redis, value: bytes) -> None:
    raw.xadd("cortex:audit", {b"entry": value})
    await trail.append([entry("1")])

    assert [e.id for e in await trail.read(10)] == ["1"]


async def test_a_key_of_a_wrong_type_fails_one_call_and_is_replaced(trail: AuditTrail, raw: redis.Redis) -> None:
    raw.set("cortex:audit", "x")
    with pytest.raises(RecordUnavailable):
        await trail.append([entry("1")])

    await trail.append([entry("2")])

    assert [e.id for e in await trail.read(10)] == ["2"]
