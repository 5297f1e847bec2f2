"""Refuses requests of keys that have spent their budget for the month, and logs a warning at 80 %.

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
from cortex.platform.budget import WARN_SHARE, Spent, month, next_month, share
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
        spent = self._spent.get(caller.id)
        if spent is None or self._month != month(now) or share(caller.budget, spent) < 1:
            return
        opens = next_month(now)
        day = f"{datetime.fromtimestamp(opens, UTC):%Y-%m-%d}"
        raise OverBudget(
            f"the key '{caller.name}' has spent its budget of {caller.budget}; "
            f"requests are accepted again from {day}, 00:00 UTC",
            opens - now,
        )

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
            part = share(holder.budget, self._spent.get(id, Spent()))
            if part >= WARN_SHARE and (id, self._month) not in self._warned:
                self._warned.add((id, self._month))
                log.warning("budget_low", key=id, name=holder.name, budget=str(holder.budget), spent=round(part, 3))
