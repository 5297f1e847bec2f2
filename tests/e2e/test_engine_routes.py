"""Engines' own routes on real llama.cpp, and vLLM's on the fake engine."""

from pathlib import Path

import pytest

from tests.e2e.workers import ONE
from tests.support.stack import Stack

pytestmark = pytest.mark.parametrize("stack", [ONE], indirect=True)


def test_a_text_becomes_tokens_and_a_text_again(stack: Stack) -> None:
    tokens = stack.http.post("/tokenize", json={"model": "org/tiny", "content": "Alpha alder."}).json()["tokens"]
    text = stack.http.post("/detokenize?model=org/tiny", json={"tokens": tokens}).json()["content"]

    assert tokens
    assert text == "Alpha alder."


def test_the_template_is_applied_below_the_functions_own_path(stack: Stack) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = stack.http.post("/upstream/org/tiny/apply-template", json={"messages": messages})

    assert answer.json()["prompt"] == "<|user|>Hi<|end|><|assistant|>"
    assert answer.headers["x-cortex-function"] == "org/tiny"


def test_an_infill_that_the_model_cannot_do_is_the_workers_error(stack: Stack) -> None:
    body = {"model": "org/tiny", "input_prefix": "a", "input_suffix": "b"}
    answer = stack.http.post("/infill", json=body)

    assert answer.status_code in (400, 501)
    assert "nfill" in answer.json()["error"]["message"]


def test_props_describe_the_worker_without_its_host(stack: Stack, weights: Path) -> None:
    stack.chat("org/tiny").raise_for_status()

    answer = stack.http.get("/upstream/org/tiny/props")

    assert answer.json()["default_generation_settings"]["n_ctx"] == 512
    assert answer.json()["total_slots"] == 2
    assert answer.json()["model_path"] == "org/tiny"
    assert str(weights) not in answer.text
    assert answer.headers["x-cortex-instance"] == stack.instance("org/tiny")["id"]


def test_slots_are_listed_with_their_state_alone(stack: Stack) -> None:
    stack.chat("org/tiny").raise_for_status()

    slots = stack.http.get("/slots", params={"model": "org/tiny"}).json()

    assert [slot["id"] for slot in slots] == [0, 1]
    assert {key for slot in slots for key in slot} == {"id", "n_ctx", "is_processing"}


@pytest.mark.parametrize("path", ["/props", "/slots"])
def test_a_state_of_a_cold_function_starts_no_worker(stack: Stack, path: str) -> None:
    answer = stack.http.get(path, params={"model": "cold"})

    assert answer.status_code == 503
    assert "is not loaded" in answer.json()["error"]["message"]
    assert stack.state("cold") == "cold"


def test_texts_are_scored_and_pooled_by_a_server_with_these_routes(stack: Stack) -> None:
    scores = stack.http.post("/v1/score", json={"model": "scores", "text_1": "a b", "text_2": ["a b", "c"]}).json()
    pooled = stack.http.post("/v1/pooling", json={"model": "scores", "input": ["one three"]}).json()

    assert [entry["score"] for entry in scores["data"]] == [1.0, 0.0]
    assert pooled["data"][0]["data"] == [3.0, 5.0]
    assert scores["model"] == pooled["model"] == "scores"


@pytest.mark.parametrize(
    ("path", "model"),
    [("/v1/score", "org/tiny"), ("/infill", "tiny/embeds"), ("/infill", "scores"), ("/pooling", "tiny/embeds")],
)
def test_a_route_that_the_server_lacks_is_404_with_those_that_it_has(stack: Stack, path: str, model: str) -> None:
    answer = stack.http.post(path, json={"model": model})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "route_not_found"
    assert "/tokenize" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/completion", "/slots/0?action=save", "/slots/0", "/lora-adapters", "/sleep", "/collective_rpc",
        "/v1/load_lora_adapter", "/models/load", "/../../etc/passwd", "/v1/chat/completions",
    ],
)  # fmt: skip
def test_no_other_path_of_a_worker_is_reached(stack: Stack, method: str, path: str) -> None:
    stack.chat("org/tiny").raise_for_status()

    below = stack.http.request(method, f"/upstream/org/tiny{path}", content=b"{}" if method == "POST" else None)

    assert below.status_code in (404, 405)


def test_a_key_without_the_function_gets_its_name_as_unknown(stack: Stack) -> None:
    answer = stack.http.get("/props", params={"model": "nothing"})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_request_without_a_name_is_a_400_that_lists_where_to_put_it(stack: Stack) -> None:
    for answer in (stack.http.get("/slots"), stack.http.post("/tokenize", json={"content": "a"})):
        assert answer.status_code == 400
        assert "?model=NAME" in answer.json()["error"]["message"]
