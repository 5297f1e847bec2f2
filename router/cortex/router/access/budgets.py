"""Refuses requests of keys that have spent their budget for the month. From 80 % on it warns, in the log, in headers of
answers and on the status page.

What keys have spent is read every `READ_S` if any key has a budget, so a request costs no Redis call. While Redis is
away, the last value applies; a new month begins without limits until Redis answers.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import structlog

from cortex.platform.api_keys import Principal
from cortex.platform.budget import WARN_SHARE, LowBudget, Spent, month, next_month, share
from cortex.platform.registry import RecordUnavailable
from cortex.platform.usage_record import UsageRecord
from cortex.router.errors import OverBudget

log = structlog.get_logger()

READ_S = 5.0


class Budgets:
    """What keys with a budget have spent this month, as one router worker knows it."""

    def __init__(self, record: UsageRecord, holders: Callable[[], Iterable[Principal]]) -> None:
        """`holders` returns the owners of all keys."""
        self._record, self._holders = record, holders
        self._spent: dict[str, Spent] = {}
        self._month = ""
        self._warned: set[tuple[str, str]] = set()

    def check(self, caller: Principal, now: float) -> None:
        """Raise OverBudget for a caller that has spent its budget."""
        if self._share(caller, now) < 1:
            return
        opens = next_month(now)
        day = f"{datetime.fromtimestamp(opens, UTC):%Y-%m-%d}"
        raise OverBudget(
            f"the key '{caller.name}' has spent its budget of {caller.budget}; "
            f"requests are accepted again from {day}, 00:00 UTC",
            opens - now,
        )

    def headers(self, caller: Principal, now: float) -> list[tuple[bytes, bytes]]:
        """Return the headers of answers to a caller: none below 80 % of its budget."""
        part = self._share(caller, now)
        if part < WARN_SHARE:
            return []
        opens = f"{datetime.fromtimestamp(next_month(now), UTC):%Y-%m-%dT%H:%M:%SZ}"
        return [(b"x-cortex-budget-spent", f"{part:.2f}".encode()), (b"x-cortex-budget-reset", opens.encode())]

    def low(self, now: float) -> list[LowBudget]:
        """Return the keys that have spent 80 % of their budgets, those who spent the largest share first."""
        shares = [LowBudget(h.name, str(h.budget), self._share(h, now)) for h in self._holders() if h.budget]
        return sorted((low for low in shares if low.share >= WARN_SHARE), key=lambda low: (-low.share, low.name))

    def _share(self, holder: Principal, now: float) -> float:
        """Return how much of a budget is spent this month, as far as this router knows."""
        spent = self._spent.get(holder.id) if self._month == month(now) else None
        return share(holder.budget, spent) if spent is not None else 0.0

    async def run(self) -> None:
        """Refresh regularly, until cancelled."""
        while True:
            with contextlib.suppress(RecordUnavailable):
                await self.refresh(time.time())
            await asyncio.sleep(READ_S)

    async def refresh(self, now: float) -> None:
        """Read what keys have spent, and log those near their budget. Raises RecordUnavailable."""
        holders = {h.id: h for h in self._holders() if h.budget}
        self._spent = await self._record.spent(now) if holders else {}
        self._month = month(now)
        self._warned = {(id, at) for id, at in self._warned if at == self._month}
        for id, holder in holders.items():
            part = self._share(holder, now)
            if part >= WARN_SHARE and (id, self._month) not in self._warned:
                self._warned.add((id, self._month))
                log.warning("budget_low", key=id, name=holder.name, budget=str(holder.budget), spent=round(part, 3))
