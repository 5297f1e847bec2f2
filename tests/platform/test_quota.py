"""The usage of keys, counted in a real Redis: over routers, over time, after crashes."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from cortex.platform import quota
from cortex.platform.api_keys import Limits
from cortex.platform.quota import Quota, Verdict
from cortex.platform.registry import RecordUnavailable, Registry


@pytest.fixture
async def counts(url: str) -> AsyncIterator[Quota]:
    registry = Registry(url)
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.flushall()
    yield Quota(registry)
    await registry.close()


async def take(counts: Quota, limits: Limits, times: int = 1, *, key: str = "k", tokens: int = 10) -> list[Verdict]:
    return [await counts.take(key, limits, f"{key}{n}", tokens) for n in range(times)]


async def test_over_the_request_limit_the_verdict_has_the_wait(counts: Quota) -> None:
    *well, over = await take(counts, Limits(rpm=3), 4)

    assert [v.short for v in well] == ["", "", ""]
    assert [v.requests_left for v in well] == [2, 1, 0]
    assert over.short == "requests"
    assert 15 < over.wait_s <= 20


async def test_limits_are_counted_per_key(counts: Quota) -> None:
    await take(counts, Limits(rpm=1), key="a")

    (other,) = await take(counts, Limits(rpm=1), key="b")

    assert other.short == ""


async def test_settling_returns_unused_tokens(counts: Quota) -> None:
    limits = Limits(tpm=1000)
    (first,) = await take(counts, limits, tokens=100)
    await counts.settle("k", limits, "k0", first.taken, 40)
    (second,) = await take(counts, limits, tokens=100)

    assert first.tokens_left == 900
    assert 860 <= second.tokens_left <= 870
    assert 5 < second.tokens_full_s < 9


async def test_after_a_long_answer_the_key_waits_for_its_debt(counts: Quota) -> None:
    limits = Limits(tpm=1000)
    (first,) = await take(counts, limits, tokens=100)
    await counts.settle("k", limits, "k0", first.taken, 3000)

    (second,) = await take(counts, limits, tokens=1)

    assert second.short == "tokens"
    assert 115 < second.wait_s <= 121


async def test_a_prompt_over_the_bucket_size_is_served_from_a_full_bucket(counts: Quota) -> None:
    first, second = await take(counts, Limits(tpm=50), 2, tokens=1000)

    assert (first.short, second.short) == ("", "tokens")
    assert first.taken == 50


async def test_a_refused_request_takes_nothing(counts: Quota) -> None:
    limits = Limits(rpm=100, tpm=1000, concurrent=1)
    (held,) = await take(counts, limits, tokens=100)
    refused = await counts.take("k", limits, "other", 100)
    await counts.settle("k", limits, "k0", held.taken, 100)
    after = await counts.take("k", limits, "third", 100)

    assert refused.short == "concurrent"
    assert after.requests_left == 98
    assert 795 <= after.tokens_left <= 805


async def test_a_returned_ticket_admits_the_next_request(counts: Quota) -> None:
    limits = Limits(concurrent=2)
    verdicts = await take(counts, limits, 3)
    await counts.settle("k", limits, "k0", 0, 0)

    assert [v.short for v in verdicts] == ["", "", "concurrent"]
    assert (await counts.take("k", limits, "next", 1)).short == ""


async def test_concurrent_requests_are_counted_exactly(counts: Quota) -> None:
    verdicts = await asyncio.gather(*(counts.take("k", Limits(concurrent=7), f"t{n}", 1) for n in range(40)))

    assert sum(not v.short for v in verdicts) == 7


async def test_tickets_expire_unless_they_are_renewed(counts: Quota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "LEASE_S", 0.3)
    limits = Limits(concurrent=1)
    await take(counts, limits)
    renewed_until = time.monotonic() + 0.6
    while time.monotonic() < renewed_until:
        await counts.renew("k", ["k0"])
        assert (await counts.take("k", limits, "second", 1)).short == "concurrent"

    died = time.monotonic()
    while (await counts.take("k", limits, "third", 1)).short:
        assert time.monotonic() - died < 2

    assert time.monotonic() - died > 0.2


async def test_a_late_renewal_does_not_restore_a_returned_ticket(counts: Quota) -> None:
    limits = Limits(concurrent=1)
    await take(counts, limits)
    await counts.settle("k", limits, "k0", 0, 0)

    await counts.renew("k", ["k0"])

    assert (await counts.take("k", limits, "next", 1)).short == ""


async def test_all_counters_expire(counts: Quota, url: str) -> None:
    await take(counts, Limits(rpm=10, tpm=10, concurrent=10))

    async with redis.asyncio.Redis.from_url(url) as client:
        lives = {name: await client.pttl(name) async for name in client.scan_iter("cortex:*")}

    assert len(lives) == 2
    assert all(0 < ms <= 120_000 for ms in lives.values())


async def test_without_redis_every_call_raises_record_unavailable() -> None:
    registry = Registry("unix:///nowhere.sock")

    with pytest.raises(RecordUnavailable):
        await Quota(registry).take("k", Limits(rpm=1), "t", 1)
    await registry.close()


async def test_a_request_with_n_answers_counts_as_n_requests(counts: Quota) -> None:
    limits = Limits(rpm=6, concurrent=5)

    first = await counts.take("k", limits, "a", 1, 4)
    second = await counts.take("k", limits, "b", 1, 2)
    await counts.settle("k", limits, "a", first.taken, 0, 4)
    third = await counts.take("k", limits, "c", 1, 2)

    assert (first.short, first.requests_left) == ("", 2)
    assert second.short == "concurrent"
    assert (third.short, third.requests_left) == ("", 0)
