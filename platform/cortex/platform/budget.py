"""Budgets of API keys: dollars or tokens a calendar month, in UTC. Pure.

What a key has spent is counted with its usage, for all routers together (`usage_record.py`). A router reads it every
few seconds, so a budget can be exceeded by the requests in flight and those of a few seconds, and by nothing more.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, Struct

WARN_SHARE = 0.8
"""The share of a budget from which there are warnings."""
_FORM = re.compile(r"(?P<number>\d{1,12}(?:\.\d{1,9})?) ?(?P<unit>usd|tokens)/month")


class Budget(Struct, frozen=True, kw_only=True):
    """What a key may spend a month; 0: no limit."""

    usd: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    tokens: Annotated[int, Meta(ge=0, le=2**53)] = 0

    def __bool__(self) -> bool:
        return bool(self.usd or self.tokens)

    def __str__(self) -> str:
        parts = [f"{f'{self.usd:.9f}'.rstrip('0').rstrip('.')}usd/month"] if self.usd else []
        return ", ".join([*parts, *([f"{self.tokens}tokens/month"] if self.tokens else [])]) or "none"


class Spent(Struct, frozen=True, kw_only=True):
    """What a key has spent in a month. A dollar is 1e9 of `nano_usd`; tokens are those in and out."""

    nano_usd: int = 0
    tokens: int = 0


class LowBudget(Struct, frozen=True):
    """A key that has spent 80 % of its budget or more: its name, the budget as text, and the share that is spent."""

    name: str
    budget: str
    share: float


def read_budget(text: str) -> Budget:
    """Return a budget such as `20usd/month` or `5000000tokens/month`; `none`: no budget. Raises ValueError."""
    if text == "none":
        return Budget()
    match = _FORM.fullmatch(text)
    if match is None or not float(match["number"]) or (match["unit"] == "tokens" and "." in match["number"]):
        raise ValueError(f"{text!r} is not a budget: use 20usd/month, 5000000tokens/month or none, above 0")
    return Budget(usd=float(match["number"])) if match["unit"] == "usd" else Budget(tokens=int(match["number"]))


def share(budget: Budget, spent: Spent) -> float:
    """Return how much of a budget is spent: 1.0 and more when it is exhausted."""
    of_usd = spent.nano_usd / 1e9 / budget.usd if budget.usd else 0.0
    return max(of_usd, spent.tokens / budget.tokens if budget.tokens else 0.0)


def budget_states(budgets: Mapping[str, Budget], spent: Mapping[str, Spent]) -> Counter[str]:
    """Return how many of the keys' budgets are `open`, `low` (80 % spent or more) and `spent`; both are by key."""
    shares = (share(budget, spent.get(key, Spent())) for key, budget in budgets.items())
    return Counter("spent" if part >= 1 else "low" if part >= WARN_SHARE else "open" for part in shares)


def month(at: float) -> str:
    """Return the month of a time, in UTC, like 2026-01."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m}"


def next_month(at: float) -> float:
    """Return the time at which the next month begins, in UTC."""
    now = datetime.fromtimestamp(at, UTC)
    year, number = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, number, 1, tzinfo=UTC).timestamp()
