"""Budgets of a running cortex with two router workers."""

import json

import httpx
import pytest

from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def test_a_key_is_refused_at_every_router_once_its_budget_is_spent_and_opens_with_a_larger_one(keyed: Keyed) -> None:
    secret = keyed.make("spender", functions=["one/*"])
    keyed.everywhere(secret, 200)
    limited = keyed.cli("key", "set", "spender", "--budget", "5tokens/month")
    assert keyed.ask(secret, max_tokens=5).status_code in (200, 429)

    answers: list[httpx.Response] = []

    def is_refused() -> bool:
        answers[:] = [keyed.ask(secret) for _ in range(6)]
        return all(answer.status_code == 429 for answer in answers)

    eventually(is_refused, within_s=30, what="the refusal")
    error = answers[0].json()["error"]
    listed = keyed.cli("key", "ls").stdout
    keyed.cli("key", "set", "spender", "--budget", "1000000tokens/month")

    assert limited.stdout == "spender: budget: 5tokens/month\n"
    assert error["code"] == "budget_exhausted"
    assert "accepted again from" in error["message"]
    assert "exhausted" in listed
    keyed.everywhere(secret, 200)
    (row,) = json.loads(keyed.cli("key", "show", "spender", "--json").stdout)
    assert row["budget"] == {"usd": 0.0, "tokens": 1_000_000}


def test_a_budget_of_another_form_is_refused_with_an_example(keyed: Keyed) -> None:
    answer = keyed.cli("key", "new", "wrong", "--budget", "20eur")

    assert answer.code == 2
    assert "20usd/month" in answer.stderr
