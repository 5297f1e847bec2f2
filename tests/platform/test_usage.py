"""Usage in a real Redis: sums, batches that are sent again, bounds, and keys whose usage is deleted."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from msgspec.structs import astuple

from cortex.functions.capabilities import Cost
from cortex.platform import usage_record
from cortex.platform.budget import Spent, month
from cortex.platform.registry import Registry
from cortex.platform.usage import DAY_S, HOUR_S, Place, Row, Sums, cost_nano_usd, date, group
from cortex.platform.usage_record import HOURS_S, Batch, UsageRecord

NOW = time.time()
TODAY = int(NOW // DAY_S) * DAY_S
END = TODAY + DAY_S - 1


@pytest.fixture
async def record(url: str, raw: redis.Redis) -> AsyncIterator[UsageRecord]:
    registry = Registry(url)
    yield UsageRecord(registry, "r1")
    await registry.close()


def row(key: str = "k1", hour: int = 3, day: int = TODAY, function: str = "a/b", **sums: int) -> Row:
    return Row(at=day + hour * HOUR_S, place=Place(key, function, "h"), sums=Sums(**{"requests": 1, **sums}))


async def add(record: UsageRecord, number: int, *rows: Row, day: int = TODAY, **names: str) -> None:
    await record.add(Batch(number, day, rows), names)


async def test_batches_add_up_by_hour_and_are_read_by_time_and_key(record: UsageRecord) -> None:
    await add(record, 1, row(tokens_in=10), row("k2", 4))
    await add(record, 2, row(tokens_in=5, tokens_out=7, cached=1, cold_starts=1, nano_usd=2**50))

    rows = await record.read(TODAY, END, NOW)

    expected = {"requests": 2, "tokens_in": 15, "tokens_out": 7, "cached": 1, "cold_starts": 1, "nano_usd": 2**50}
    assert rows[0].sums == Sums(**expected)
    assert [r.place.key for r in rows] == ["k1", "k2"]
    assert [r.place.key for r in await record.read(TODAY + 4 * HOUR_S, END, NOW)] == ["k1", "k2"][1:]
    assert [r.place.key for r in await record.read(TODAY, END, NOW, "k2")] == ["k2"]


async def test_a_batch_that_is_sent_again_is_counted_once(record: UsageRecord) -> None:
    await add(record, 1, row())
    await add(record, 1, row())
    await add(record, 2, row())

    assert [r.sums.requests for r in await record.read(TODAY, END, NOW)] == [2]


async def test_hours_expire_before_days_whose_sums_are_the_same(record: UsageRecord, raw: redis.Redis) -> None:
    day = TODAY - HOURS_S
    await add(record, 1, row(day=day), row(hour=4, day=day), day=day)

    rows = await record.read(day, END, NOW)

    assert [(r.at, r.sums.requests) for r in rows] == [(day, 2)]
    assert 0 < raw.ttl(f"cortex:usage:hours:{date(day)}") <= HOURS_S
    assert HOURS_S < raw.ttl(f"cortex:usage:day:{date(day)}") <= usage_record.DAYS_S


async def test_rows_over_the_bound_are_added_to_one_row(
    record: UsageRecord, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_record, "MOST_OF_DAY", 3)
    monkeypatch.setattr(usage_record, "MOST_OF_HOURS", 3)

    await add(record, 1, *(row(f"k{n}") for n in range(10)))
    rows = await record.read(TODAY, END, NOW)

    assert sum(r.sums.requests for r in rows) == 10
    assert {r.place.key: r.sums.requests for r in rows}["other"] == 7
    assert raw.hlen(f"cortex:usage:day:{date(TODAY)}") == 4


async def test_forgetting_a_key_deletes_its_rows_and_name_only(record: UsageRecord) -> None:
    old = TODAY - 100 * DAY_S
    await add(record, 1, row(), row("k2"), k1="one", k2="two")
    await add(record, 2, row(day=old), day=old)

    number = await record.forget("k1", NOW)

    assert number == 4  # of two days, by hour and by day
    assert [r.place.key for r in await record.read(old, END, NOW)] == ["k2"]
    assert await record.names() == {"k2": "two"}


@pytest.mark.parametrize("value", ["", "[", "[1,", '["x"]', "{}", "null"])
async def test_invalid_values_are_replaced_and_invalid_fields_ignored(
    record: UsageRecord, raw: redis.Redis, value: str
) -> None:
    await add(record, 1, row())
    hours = f"cortex:usage:hours:{date(TODAY)}"
    for field in (*raw.hkeys(hours), "x", "zz[]"):
        raw.hset(hours, field, value)

    await add(record, 2, row(tokens_in=3))

    assert [r.sums.tokens_in for r in await record.read(TODAY, END, NOW)] == [3]


@pytest.mark.parametrize(
    ("cost", "usd"),
    [
        (Cost(), 0.0),
        (Cost(input=3.0, output=15.0), 3.0 + 15.0),
        (Cost(input=3.0, output=15.0, cache_read=0.3), 1.5 + 0.15 + 15.0),
        (Cost(output=1.0, cache_read=0.0), 1.0),
    ],
)
def test_a_million_tokens_cost_their_price(cost: Cost, usd: float) -> None:
    assert cost_nano_usd(cost, 1_000_000, 1_000_000, 500_000) == round(usd * 1e9)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("key", {"k2": 1, "one (k1)": 2}),
        ("function", {"z": 1, "a/b": 2}),
        ("host", {"h": 3}),
        ("day", {"1970-01-01": 1, "1970-01-02": 2}),
        ("hour", {"1970-01-01 03:00": 1, "1970-01-02 03:00": 1, "1970-01-02 05:00": 1}),
    ],
)
def test_groups_have_the_largest_first_and_times_in_order(by: Any, groups: dict[str, int]) -> None:
    rows = [row(day=DAY_S, hour=5), row("k2", function="z", day=0, tokens_in=9), row(day=DAY_S)]

    result = group(rows, by, {"k1": "one"})

    assert [(name, sums.requests) for name, sums in result.items()] == list(groups.items())


async def test_what_keys_spend_adds_up_over_the_month_and_outlives_their_usage(
    record: UsageRecord, raw: redis.Redis
) -> None:
    await add(record, 1, row(tokens_in=10, tokens_out=5, nano_usd=2**50), row("k2", tokens_in=1))
    await add(record, 1, row(tokens_in=10, tokens_out=5, nano_usd=2**50))
    await add(record, 2, row(function="c/d", tokens_in=1, nano_usd=7))

    await record.forget("k1", NOW)

    assert await record.spent(TODAY) == {"k1": Spent(nano_usd=2**50 + 7, tokens=16), "k2": Spent(tokens=1)}
    assert 0 < raw.ttl(f"cortex:usage:spent:{month(TODAY)}") <= usage_record.SPENT_S


def test_sums_add_every_field() -> None:
    one = Sums(**{name: number for number, name in enumerate(Sums.__struct_fields__, 1)})

    one.add(one)

    assert astuple(one) == tuple(2 * number for number in range(1, len(Sums.__struct_fields__) + 1))
