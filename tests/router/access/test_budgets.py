"""Budgets at a router: who is refused, and until when."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
import structlog

from cortex.platform.api_keys import RIGHTS, Principal, Scope
from cortex.platform.budget import Budget, Spent
from cortex.platform.usage_record import UsageRecord
from cortex.router.access.budgets import Budgets
from cortex.router.dialects.core.errors import Kind
from cortex.router.errors import OverBudget

NOW, NEXT_MONTH = 1_795_814_051.0, 1_796_083_200.0  # 2026-11-27 21:14:11 and 2026-12-01
HOLDER = Principal(
    id="k1", name="holder", scope=Scope.INFERENCE, rights=RIGHTS[Scope.INFERENCE], budget=Budget(tokens=100)
)


class Record:
    """A record with what keys have spent."""

    def __init__(self, **spent: Spent) -> None:
        self.spending: Mapping[str, Spent] = spent
        self.reads = 0

    async def spent(self, now: float) -> Mapping[str, Spent]:
        self.reads += 1
        return self.spending


async def budgets(record: Record, *holders: Principal) -> Budgets:
    """Return budgets that have been read once."""
    result = Budgets(cast(UsageRecord, record), lambda: holders)
    await result.refresh(NOW)
    return result


async def test_a_key_whose_budget_is_exhausted_is_refused_until_the_next_month() -> None:
    refuses = await budgets(Record(k1=Spent(tokens=100)), HOLDER)

    with pytest.raises(OverBudget, match="accepted again from 2026-12-01") as refusal:
        refuses.check(HOLDER, NOW)

    fault = refusal.value.fault()
    assert (fault.kind, fault.code, fault.status("chat")) == (Kind.RATE_LIMITED, "budget_exhausted", 429)
    assert NOW + (fault.retry_after_s or 0) == pytest.approx(NEXT_MONTH, abs=1)
    refuses.check(HOLDER, NEXT_MONTH)


async def test_a_key_at_80_per_cent_of_its_budget_is_served_and_logged_once() -> None:
    record = Record(k1=Spent(tokens=80))

    with structlog.testing.capture_logs() as entries:
        goes = await budgets(record, HOLDER)
        await goes.refresh(NOW)
    goes.check(HOLDER, NOW)

    logged: list[Any] = [e for e in entries if e["event"] == "budget_low"]
    assert [(e["key"], e["spent"]) for e in logged] == [("k1", 0.8)]


async def test_without_a_budget_nothing_is_read() -> None:
    record = Record()

    await budgets(record, Principal(id="k2", name="free", scope=Scope.INFERENCE, rights=frozenset()))

    assert record.reads == 0


@pytest.mark.parametrize(
    ("tokens", "headers"),
    [
        (79, {}),
        (83, {b"x-cortex-budget-spent": b"0.83", b"x-cortex-budget-reset": b"2026-12-01T00:00:00Z"}),
    ],
)
async def test_from_80_per_cent_on_answers_have_headers(tokens: int, headers: dict[bytes, bytes]) -> None:
    known = await budgets(Record(k1=Spent(tokens=tokens)), HOLDER)

    assert dict(known.headers(HOLDER, NOW)) == headers
    assert known.headers(HOLDER, NEXT_MONTH) == []


async def test_low_budgets_are_listed_with_the_largest_share_first() -> None:
    other = Principal(
        id="k2", name="other", scope=Scope.INFERENCE, rights=RIGHTS[Scope.INFERENCE], budget=Budget(usd=1.0)
    )
    known = await budgets(Record(k1=Spent(tokens=90), k2=Spent(nano_usd=2 * 10**9)), HOLDER, other)

    assert [(low.name, low.share) for low in known.low(NOW)] == [("other", 2.0), ("holder", 0.9)]
    assert known.low(NEXT_MONTH) == []
