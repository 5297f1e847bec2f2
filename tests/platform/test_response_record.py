"""Stored responses in a real Redis: lifetimes, bounds, owners and leases."""

from collections.abc import AsyncIterator

import pytest
import redis

from cortex.platform import response_record
from cortex.platform.registry import Registry
from cortex.platform.response_cipher import ResponseCipher
from cortex.platform.response_record import ResponseRecord

CIPHER, OTHER = ResponseCipher("secret of one key"), ResponseCipher("secret of another key")
TTL_S = 100


@pytest.fixture
async def record(url: str, raw: redis.Redis) -> AsyncIterator[ResponseRecord]:
    registry = Registry(url)
    yield ResponseRecord(registry, TTL_S, most_bytes=1000)
    await registry.close()


async def test_a_value_is_read_by_its_own_key_alone(record: ResponseRecord) -> None:
    assert await record.write(CIPHER, "resp_1", b"value", "set")

    assert await record.read(CIPHER, "resp_1") == b"value"
    assert await record.read(OTHER, "resp_1") is None
    assert await record.read(CIPHER, "resp_2") is None


async def test_every_key_in_redis_expires_and_shows_no_value(record: ResponseRecord, url: str) -> None:
    await record.write(CIPHER, "resp_1", b"the harbour", "set")
    await record.write(CIPHER, "conv_1", b"the harbour", "create")
    await record.begin(CIPHER, "resp_1")

    with redis.Redis.from_url(url) as client:
        keys = [key for key in client.scan_iter() if b":response" in key]
        assert len(keys) == 5
        assert all(0 < client.ttl(key) <= TTL_S for key in keys)
        assert not any(b"harbour" in (client.dump(key) or b"") for key in keys)


async def test_a_value_moved_to_another_name_is_unreadable(record: ResponseRecord, raw: redis.Redis) -> None:
    await record.write(CIPHER, "resp_1", b"value", "set")
    raw.rename(f"cortex:response:{{{CIPHER.owner}}}:resp_1", f"cortex:response:{{{CIPHER.owner}}}:resp_2")

    assert await record.read(CIPHER, "resp_2") is None


async def test_the_oldest_are_deleted_above_the_bound_of_their_owner(record: ResponseRecord) -> None:
    await record.write(OTHER, "resp_other", b"x" * 400, "set")
    for number in range(4):
        await record.write(CIPHER, f"resp_{number}", b"x" * 300, "set")

    remaining = [number for number in range(4) if await record.read(CIPHER, f"resp_{number}")]

    assert 3 in remaining and len(remaining) == 3
    assert await record.read(OTHER, "resp_other") is not None


async def test_a_deleted_value_is_not_replaced(record: ResponseRecord) -> None:
    await record.write(CIPHER, "resp_1", b"value", "set")
    assert await record.delete(CIPHER, "resp_1")

    assert not await record.write(CIPHER, "resp_1", b"later", "replace")
    assert await record.read(CIPHER, "resp_1") is None
    assert not await record.delete(CIPHER, "resp_1")


async def test_a_value_that_is_deleted_before_it_is_written_is_not_written(
    record: ResponseRecord, raw: redis.Redis
) -> None:
    assert not await record.delete(CIPHER, "resp_1")

    assert not await record.write(CIPHER, "resp_1", b"value", "set")
    assert await record.read(CIPHER, "resp_1") is None
    assert await record.write(OTHER, "resp_1", b"value", "set")
    assert 0 < raw.ttl(f"cortex:responses:deleted:{{{CIPHER.owner}}}") <= TTL_S


async def test_the_ids_of_values_that_were_deleted_early_are_bounded(
    record: ResponseRecord, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_record, "MOST_DELETED", 2)
    for number in range(4):
        await record.delete(CIPHER, f"resp_{number}")

    assert raw.zcard(f"cortex:responses:deleted:{{{CIPHER.owner}}}") == 2


async def test_a_lease_that_redis_has_lost_is_renewed(record: ResponseRecord, raw: redis.Redis) -> None:
    await record.begin(CIPHER, "resp_1")
    raw.flushall()
    assert not await record.runs(CIPHER, "resp_1")

    assert not await record.is_cancelled(CIPHER, "resp_1")

    assert await record.runs(CIPHER, "resp_1")


async def test_a_response_with_a_lease_does_not_expire(record: ResponseRecord, raw: redis.Redis) -> None:
    owner = f"{{{CIPHER.owner}}}"
    names = [f"cortex:response:{owner}:resp_1", f"cortex:responses:{owner}", f"cortex:responses:sizes:{owner}"]
    await record.begin(CIPHER, "resp_1")
    await record.write(CIPHER, "resp_1", b"value", "set")
    assert all(raw.expire(name, TTL_S // 4) for name in names)

    await record.is_cancelled(CIPHER, "resp_1")

    assert all(raw.ttl(name) > TTL_S // 2 for name in names)


async def test_a_lease_does_not_bring_back_a_deleted_response(record: ResponseRecord) -> None:
    await record.begin(CIPHER, "resp_1")
    await record.write(CIPHER, "resp_1", b"value", "set")
    await record.delete(CIPHER, "resp_1")

    await record.is_cancelled(CIPHER, "resp_1")

    assert await record.read(CIPHER, "resp_1") is None


async def test_a_conversation_takes_turns_up_to_its_bound(
    record: ResponseRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_record, "MOST_TURNS", 3)
    await record.write(CIPHER, "conv_1", b"head", "create")

    added = [await record.write(CIPHER, "conv_1", b"%d" % number, "append") for number in range(3)]

    assert added == [True, True, False]
    assert await record.read_list(CIPHER, "conv_1") == [b"head", b"0", b"1"]
    assert await record.read_list(OTHER, "conv_1") == []
    assert not await record.write(CIPHER, "conv_2", b"x", "append")


async def test_a_lease_shows_that_a_response_runs_or_is_cancelled(record: ResponseRecord) -> None:
    assert not await record.runs(CIPHER, "resp_1")
    assert not await record.cancel(CIPHER, "resp_1")

    await record.begin(CIPHER, "resp_1")
    assert await record.runs(CIPHER, "resp_1")
    assert not await record.is_cancelled(CIPHER, "resp_1")

    assert await record.cancel(CIPHER, "resp_1")
    assert await record.is_cancelled(CIPHER, "resp_1")

    await record.end(CIPHER, "resp_1")
    assert not await record.runs(CIPHER, "resp_1")
