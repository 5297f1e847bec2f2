"""LoRA adapters of a base on one process of real llama.cpp: their answers, and failures of one alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.workers import EMPTY
from tests.support.catalogues import entry
from tests.support.lora import write_lora
from tests.support.stack import Stack, eventually

pytestmark = EMPTY

GREEDY = {"temperature": 0.0}
BASE = entry(
    "base", engine="llamacpp", source="demo:harbour", context=2048, target_concurrency=3, vram_mb=600,
    idle_after_s=600, sampling=GREEDY, max_output_tokens=8, args=["--threads", "1"],
)  # fmt: skip
"""llama.cpp's threads wait for each other in a loop, which makes a request take seconds where others use the CPU."""
SAYS = {"harbour": " harbour" * 8, "night": " night" * 8, "brief": " night" * 3}


def catalogue(folder: Path) -> str:
    """Return a base with a variant, two adapters, one of them under two names, and three that cannot be loaded."""
    write_lora(folder / "harbour.gguf", " harbour")
    write_lora(folder / "night.gguf", " night")
    write_lora(folder / "other.gguf", " night", architecture="gpt2")
    write_lora(folder / "small.gguf", " night", width=64)
    return (
        BASE
        + entry("calm", variant_of="base", max_output_tokens=4)
        + entry("harbour", base="base", adapter="./harbour.gguf")
        + entry("night", base="base", adapter="./night.gguf")
        + entry("brief", base="base", adapter="./night.gguf", max_output_tokens=3)
        + entry("of-another", base="base", adapter="./other.gguf")
        + entry("of-another-size", base="base", adapter="./small.gguf")
        + entry("nowhere", base="base", adapter="./nowhere.gguf")
    )


@pytest.fixture(scope="module")
def stack(empty_stack: Stack) -> Stack:
    empty_stack.serve(catalogue(empty_stack.folder))
    return empty_stack


def ask(stack: Stack, name: str, **more: Any) -> str:
    answer = stack.chat(name, "What is in the harbour?", **more)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == name
    return str(answer.json()["choices"][0]["message"]["content"])


def workers(stack: Stack) -> list[psutil.Process]:
    children = psutil.Process(stack.process.pid).children(recursive=True)
    return [p for p in children if "llama_server" in " ".join(p.cmdline())]


def test_each_adapter_answers_for_its_function_alone_on_one_process(stack: Stack) -> None:
    before = ask(stack, "base")
    answers = {name: ask(stack, name) for name in SAYS}
    after = ask(stack, "base")

    assert answers == SAYS
    assert before == after
    assert not set(SAYS.values()) & {before}
    assert before.startswith(ask(stack, "calm"))
    assert len(workers(stack)) == 1
    instance = stack.instance("base")
    assert instance["adapters"] == {"harbour": 0, "night": 1, "brief": 2}
    assert instance["pid"] in [p.pid for p in workers(stack)]
    devices = stack.http.get("/admin/hosts").json()["hosts"][0]["devices"]
    assert sum(d["admitted_mb"] for d in devices) == instance["memory_mb"]


def test_streams_and_completions_have_the_adapter_too(stack: Stack) -> None:
    completion = stack.http.post("/v1/completions", json={"model": "night", "prompt": "The"}).json()
    with stack.http.stream(
        "POST",
        "/v1/messages",
        json={
            "model": "harbour",
            "max_tokens": 4,
            "stream": True,
            "messages": [{"role": "user", "content": "Hi"}],
        },
    ) as answer:
        events = answer.read().decode()

    assert completion["choices"][0]["text"] == " night" * 8
    assert events.count('"text":" harbour"') == 4


def test_a_client_cannot_choose_an_adapter(stack: Stack) -> None:
    answer = stack.chat("base", lora=[{"id": 0, "scale": 1.0}])

    assert (answer.status_code, "lora" in answer.text) == (400, True)


def test_simultaneous_requests_get_the_answers_of_their_own_adapters(stack: Stack) -> None:
    says = {**SAYS, "base": ask(stack, "base"), "calm": ask(stack, "calm")}
    names, start = list(says) * 4, threading.Barrier(5)

    def one(nth: int) -> tuple[str, str]:
        if nth < 5:
            start.wait(20)
        return names[nth], ask(stack, names[nth])

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(one, range(len(names))))

    assert all(says[name] == text for name, text in answers)
    assert len(workers(stack)) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("of-another", "other.gguf is for another base: for gpt2, and harbour.gguf is llama"),
        ("of-another-size", "the engine cannot load the adapter small.gguf: its log has the reason"),
        ("nowhere", "nowhere.gguf do not exist"),
    ],
)
def test_an_adapter_that_does_not_load_fails_its_function_alone(stack: Stack, name: str, why: str) -> None:
    ask(stack, "base")

    answer = stack.chat(name)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_failed")
    assert f"'{name}' cannot be served" in answer.text
    assert stack.state(name) == "failing"
    assert why in stack.function(name)["failure"]
    assert why.split(":")[0] in stack.cli("fn", "ls").stdout
    assert ask(stack, "night") == SAYS["night"]


def test_the_weights_of_adapters_are_listed_with_their_functions(stack: Stack) -> None:
    ask(stack, "base")

    def night() -> list[dict[str, Any]]:
        stored = stack.http.get("/admin/weights").json()["weights"]
        return [w for w in stored if w["path"].endswith("night.gguf")]

    (weights,) = eventually(night, what="the file in the list")
    assert set(weights["functions"]) == {"night", "brief"}


def test_another_adapter_comes_with_a_new_instance(stack: Stack) -> None:
    before = stack.instance("base")["id"]
    write_lora(stack.folder / "cup.gguf", " cup")
    stack.models.write_text(stack.models.read_text() + entry("cup", base="base", adapter="./cup.gguf"))

    eventually(lambda: stack.http.get("/v1/models/cup").status_code == 200)
    text = ask(stack, "cup")

    assert text == " cup" * 8
    eventually(lambda: len(stack.function("base")["instances"]) == 1, within_s=30)
    assert stack.instance("base")["id"] != before
