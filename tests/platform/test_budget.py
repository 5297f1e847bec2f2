"""Budgets: their text, their share, and their month."""

import pytest

from cortex.platform.budget import Budget, Spent, budget_states, month, next_month, read_budget, share

NOVEMBER, JANUARY = 1_795_814_051.0, 1_798_761_600.0  # 2026-11-27 and 2027-01-01


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("20usd/month", Budget(usd=20)),
        ("0.5 usd/month", Budget(usd=0.5)),
        ("5000000tokens/month", Budget(tokens=5_000_000)),
        ("1234567.25usd/month", Budget(usd=1_234_567.25)),
        ("none", Budget()),
    ],
)
def test_a_budget_is_read_from_text(text: str, budget: Budget) -> None:
    assert read_budget(text) == budget
    assert read_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "text", ["", "20", "20usd", "20eur/month", "-1usd/month", "0.5tokens/month", "1e9usd/month", "0usd/month"]
)
def test_text_that_is_not_a_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="use 20usd/month"):
        read_budget(text)


@pytest.mark.parametrize(
    ("budget", "spent", "part"),
    [
        (Budget(usd=2), Spent(nano_usd=1_000_000_000, tokens=10**9), 0.5),
        (Budget(tokens=100), Spent(nano_usd=10**12, tokens=80), 0.8),
        (Budget(usd=1, tokens=100), Spent(nano_usd=2 * 10**9, tokens=1), 2.0),
        (Budget(), Spent(nano_usd=10**12, tokens=10**9), 0.0),
    ],
)
def test_the_larger_share_of_dollars_and_tokens_counts(budget: Budget, spent: Spent, part: float) -> None:
    assert share(budget, spent) == part


def test_budgets_are_open_low_or_spent() -> None:
    budgets = dict.fromkeys(("new", "open", "low", "spent", "over"), Budget(tokens=10))
    spent = {"open": 7, "low": 8, "spent": 10, "over": 11}

    assert budget_states(budgets, {key: Spent(tokens=t) for key, t in spent.items()}) == {
        "open": 2,
        "low": 1,
        "spent": 2,
    }


def test_the_next_month_of_december_is_january() -> None:
    assert month(NOVEMBER) == "2026-11"
    assert month(next_month(NOVEMBER)) == "2026-12"
    assert next_month(next_month(NOVEMBER)) == JANUARY
