"""What the deployment decides about a fleet as a whole."""

import importlib.util
from typing import Any

import pytest

from tests.deploy.linted import ROOT

_spec = importlib.util.spec_from_file_location("cortex_fleet", ROOT / "roles/cortex/filter_plugins/cortex_fleet.py")
assert _spec is not None and _spec.loader is not None
fleet = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fleet)

WELL = {"record": "ok"}


def host(name: str, *started: tuple[str, float]) -> dict[str, Any]:
    return {"name": name, "instances": [{"function": f, "created": at} for f, at in started]}


def test_the_old_token_goes_when_all_hosts_report_and_nothing_older_runs() -> None:
    seen = {"hosts": [host("a", ("new", 101.0)), host("b")], "silent": []}

    assert fleet.cortex_token_holders(seen, WELL, ["a", "b"], "100") == []


@pytest.mark.parametrize(
    ("seen", "health", "since", "reason"),
    [
        ({"hosts": [host("a"), host("b", ("old", 99.0))]}, WELL, "100", "old was started under the old token"),
        ({"hosts": [host("a")], "silent": [host("b")]}, WELL, "100", "host b does not report"),
        ({"hosts": [host("a")]}, WELL, "100", "host b does not report"),
        ({"hosts": []}, {"record": "away"}, "100", "its record is 'away': start Redis"),
        ({"hosts": [host("a"), host("b")], "silent": [host("c")]}, WELL, "100", "host c does not report"),
        ({"hosts": [host("a"), host("b")]}, WELL, "", "not every machine uses the new token yet"),
    ],
    ids=["worker", "silent", "gone", "no Redis", "not in the inventory", "interrupted"],
)
def test_the_old_token_stays_while_something_may_need_it(
    seen: dict[str, Any], health: dict[str, str], since: str, reason: str
) -> None:
    (text,) = fleet.cortex_token_holders(seen, health, ["a", "b"], since)

    assert reason in text


def test_machines_that_share_a_name_or_an_address_are_found() -> None:
    machines = [
        {"inventory_hostname": "a", "ansible_host": "10.0.0.1"},
        {"inventory_hostname": "b", "ansible_host": "10.0.0.2", "cortex_name": "a"},
        {"inventory_hostname": "c", "ansible_host": "10.0.0.2", "cortex_address": "10.0.0.1"},
    ]

    assert fleet.cortex_shared(machines, ["cortex_name", "inventory_hostname"]) == ["cortex_name a"]
    assert fleet.cortex_shared(machines, ["cortex_address", "ansible_host"]) == ["cortex_address 10.0.0.1"]


def model(id: str, *dialects: str, **fields: object) -> dict[str, Any]:
    return {"id": id, "dialects": list(dialects), "loaded": False, "state": "cold", "feasible_on": ["a"]} | fields


def older(id: str) -> dict[str, Any]:
    return {name: value for name, value in model(id).items() if name != "dialects"}


CHATS, ANY = ("chat", "completions"), ("chat", "completions", "embeddings", "rerank")
WARM = {"loaded": True, "state": "ready"}


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([model("embeds", "embeddings"), model("chats", *CHATS)], ["chat to chats"]),
        ([model("embeds", "embeddings", **WARM), model("chats", *CHATS)], ["chat to chats"]),
        ([model("first", *CHATS), model("warm", *CHATS, **WARM)], ["chat to warm"]),
        ([model("first", *CHATS), model("cortex/demo", *CHATS)], ["chat to cortex/demo"]),
        ([model("any", *ANY), model("chats", *CHATS)], ["chat to chats"]),
        ([model("nowhere", *CHATS, feasible_on=[]), model("second", *CHATS)], ["chat to second"]),
        ([model("broken", *CHATS, state="failing"), model("embeds", "embeddings")], ["embeddings to embeds"]),
        ([model("speaks", "speech"), model("ranks", "rerank")], ["rerank to ranks"]),
        ([model("completes", "completions")], ["completions to completes"]),
        ([model("any", *ANY)], ["chat to any", "embeddings to any", "rerank to any"]),
        ([older("older")], ["chat to older", "embeddings to older", "rerank to older"]),
        ([model("speaks", "speech"), model("hears", "transcriptions")], []),
        ([], []),
    ],
)  # fmt: skip
def test_a_deployment_ends_with_a_request_that_a_function_serves(
    models: list[dict[str, Any]], expected: list[str]
) -> None:
    questions = fleet.cortex_questions(models)

    assert [f"{q['dialect']} to {q['model']}" for q in questions] == expected
    assert all(q["body"]["model"] == q["model"] for q in questions)


@pytest.mark.parametrize(
    ("answer", "dialect", "gist"),
    [
        ({"choices": [{"message": {"content": "hello"}}]}, "chat", "hello"),
        ({"choices": [{"message": {"content": None, "reasoning_content": "hm"}}]}, "chat", "hm"),
        ({"choices": [{"message": {"content": ""}}]}, "chat", "an answer without text"),
        ({"choices": [{"text": "hello"}]}, "completions", "hello"),
        ({"data": [{"embedding": [0.5, 0.25]}]}, "embeddings", "an embedding of 2 numbers"),
        ({"results": [{}, {}]}, "rerank", "2 documents in order"),
    ],
)
def test_the_answer_is_shown_in_a_line(answer: dict[str, Any], dialect: str, gist: str) -> None:
    assert fleet.cortex_gist(answer, dialect) == gist
