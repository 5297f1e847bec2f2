"""Several functions on one process of real llama.cpp: each answers as its settings say, and nothing restarts."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest

from tests.e2e.workers import EMPTY
from tests.support.catalogues import entry
from tests.support.stack import Stack, eventually

pytestmark = EMPTY

BASE = entry(
    "base", engine="llamacpp", source="demo:harbour", context=2048, target_concurrency=2, vram_mb=600, idle_after_s=600
)
CALM = entry("calm", variant_of="base", sampling={"temperature": 0.0}, max_output_tokens=12, cost={"output": 1000.0})
WILD = entry("wild", variant_of="base", sampling={"temperature": 5.0, "top_k": 0}, default_output_tokens=12)
SHORT = entry("short", variant_of="base", sampling={"temperature": 0.0}, max_output_tokens=3)
PROMPT = "What is in the harbour?"


@pytest.fixture(scope="module")
def stack(empty_stack: Stack) -> Stack:
    empty_stack.serve(BASE + CALM + WILD + SHORT)
    return empty_stack


def ask(stack: Stack, name: str, **more: Any) -> dict[str, Any]:
    answer = stack.chat(name, PROMPT, **more)
    assert answer.status_code == 200, answer.text
    payload: dict[str, Any] = answer.json()
    return payload


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_each_answers_as_its_settings_say_on_one_process(stack: Stack) -> None:
    answers = {name: [ask(stack, name) for _ in range(3)] for name in ("calm", "wild", "short")}
    greedy = ask(stack, "base", temperature=0.0, max_tokens=12)

    assert {a["model"] for a in answers["calm"]} == {"calm"}
    assert {text_of(a) for a in answers["calm"]} == {text_of(greedy)}
    assert len({text_of(a) for a in answers["wild"]}) > 1
    assert {a["usage"]["completion_tokens"] for a in answers["short"]} == {3}
    assert text_of(greedy).startswith(text_of(answers["short"][0]))
    (instance,) = {stack.instance(name)["id"] for name in ("base", "calm", "wild", "short")}
    workers = [
        p for p in psutil.Process(stack.process.pid).children(recursive=True) if "llama" in " ".join(p.cmdline())
    ]
    assert (instance is not None, stack.spawned("base"), len({p.pid for p in workers})) == (True, 1, 1)
    host = stack.http.get("/admin/hosts").json()["hosts"][0]
    assert sum(d["admitted_mb"] for d in host["devices"]) == stack.instance("base")["memory_mb"]


def test_a_limit_of_a_variant_holds_against_the_client(stack: Stack) -> None:
    answer = ask(stack, "short", max_tokens=50)

    assert answer["usage"]["completion_tokens"] == 3


def test_what_the_client_says_replaces_what_a_variant_says(stack: Stack) -> None:
    texts = {text_of(ask(stack, "wild", temperature=0.0, top_k=1)) for _ in range(3)}

    assert len(texts) == 1


def test_a_stream_has_the_name_of_the_variant(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none")

    with client.chat.completions.create(
        model="calm", messages=[{"role": "user", "content": PROMPT}], stream=True
    ) as chunks:
        names = {chunk.model for chunk in chunks}

    assert names == {"calm"}


def test_usage_and_receipts_name_the_function_and_the_shared_instance(stack: Stack) -> None:
    answer = stack.chat("calm", PROMPT)
    id = answer.headers["x-request-id"]

    (receipt,) = stack.http.get(f"/admin/requests/{id}").json()["requests"]

    assert (answer.headers["x-cortex-function"], receipt["function"]) == ("calm", "calm")
    assert receipt["instance"] == answer.headers["x-cortex-instance"] == stack.instance("base")["id"]
    groups = eventually(
        lambda: [
            g
            for g in stack.http.get("/admin/usage", params={"by": "function"}).json()["groups"]
            if g["name"] == "calm" and g["usd"] > 0
        ]
    )
    assert groups[0]["tokens_out"] >= 12


def test_all_at_once_are_served_by_the_one_process(stack: Stack) -> None:
    names = ["base", "calm", "wild", "short"] * 6
    start = threading.Barrier(8)

    def one(nth: int) -> tuple[str, dict[str, Any]]:
        if nth < 8:
            start.wait(20)
        return names[nth], ask(stack, names[nth], **({"max_tokens": 12} if names[nth] == "base" else {}))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(len(names))))

    assert all(answer["model"] == name for name, answer in answers)
    assert len({text_of(a) for name, a in answers if name == "calm"}) == 1
    assert {a["usage"]["completion_tokens"] for name, a in answers if name == "short"} == {3}
    assert stack.spawned("base") == 1


def test_a_change_of_a_variant_takes_effect_and_restarts_nothing(stack: Stack) -> None:
    before = stack.instance("base")
    stack.models.write_text(BASE + CALM + WILD + SHORT.replace("= 3", "= 5"))

    eventually(lambda: ask(stack, "short")["usage"]["completion_tokens"] == 5, what="the new limit")

    after = stack.instance("base")
    assert (after["id"], after["pid"], stack.spawned("base")) == (before["id"], before["pid"], 1)
    stack.models.write_text(BASE + CALM + WILD + SHORT)


def test_the_command_line_shows_whose_instances_serve_a_variant(stack: Stack) -> None:
    ls, show = stack.cli("fn", "ls").stdout, stack.cli("fn", "show", "calm").stdout

    assert "VARIANT OF" in ls
    assert {tuple(line.split()[:2]) for line in ls.splitlines()[1:]} == {
        ("base", "-"), ("calm", "base"), ("wild", "base"), ("short", "base"),
    }  # fmt: skip
    assert "variant of         base, whose instances serve it" in show
    assert "shared with        calm, wild, short" in stack.cli("fn", "show", "base").stdout


def test_a_variant_has_no_maximum_of_its_own(stack: Stack) -> None:
    result = stack.cli("fn", "set", "calm", "--max", "2")

    assert result.returncode != 0
    assert "'calm' is a variant: set max of 'base', which has the instances" in result.stderr
