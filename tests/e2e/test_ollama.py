"""Ollama's own Python client at the router: chats, prompts, embeddings, lists, loading and unloading."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import ollama
import pytest

from tests.e2e.workers import ONE
from tests.router.dialects.request_builders import PNG
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [ONE], indirect=True)

USER = {"role": "user", "content": "Hello"}
GREEDY = {"temperature": 0, "top_k": 1, "seed": 1, "num_predict": 12}


@pytest.fixture
def client(stack: Stack) -> ollama.Client:
    return ollama.Client(stack.url, headers={"authorization": "Bearer none"})


def test_case_43_a_chat_of_a_real_llama_cpp_is_the_same_streamed_and_whole(client: ollama.Client) -> None:
    whole = client.chat("small", [USER], options=GREEDY)
    pieces = list(client.chat("small", [USER], options=GREEDY, stream=True))

    assert whole.message.content
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    last = pieces[-1]
    assert (last.done, last.done_reason, last.eval_count) == (True, whole.done_reason, whole.eval_count)
    assert whole.prompt_eval_count
    assert whole.total_duration
    assert last.eval_duration
    assert whole.model == "small"


def test_a_prompt_and_a_raw_prompt_are_answered(client: ollama.Client) -> None:
    prompt = client.generate("small", "Hello", options=GREEDY)
    raw = client.generate("small", "Alpha", raw=True, options=GREEDY)
    streamed = list(client.generate("small", "Alpha", raw=True, options=GREEDY, stream=True))

    assert prompt.response
    assert raw.response
    assert "".join(piece.response or "" for piece in streamed) == raw.response
    assert streamed[-1].eval_count == raw.eval_count


def test_an_answer_follows_a_schema_on_a_real_llama_cpp(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}

    answer = client.chat("small", [USER], format=schema, options={"num_predict": 60})

    assert isinstance(json.loads(answer.message.content or "")["a"], bool)


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_apart_from_the_text(client: ollama.Client, stream: bool) -> None:
    request: dict[str, Any] = {"model": "fake/thinks", "messages": [USER], "think": True}
    pieces = list(client.chat(**request, stream=True)) if stream else [client.chat(**request)]

    assert "".join(piece.message.thinking or "" for piece in pieces)
    assert "".join(piece.message.content or "" for piece in pieces).strip() == "so it is"


@pytest.mark.parametrize("model", ["fake/tools", "fake/tools-llama"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_an_object(client: ollama.Client, model: str, stream: bool) -> None:
    def weather(city: str) -> str:
        """Look up the weather.

        Args:
            city: where
        """
        return city

    request: dict[str, Any] = {"model": model, "messages": [USER], "tools": [weather]}
    pieces = list(client.chat(**request, stream=True)) if stream else [client.chat(**request)]
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]

    assert [call.function.name for call in calls] == ["weather"]
    assert isinstance(calls[0].function.arguments, dict)


def test_texts_and_a_text_are_embedded(client: ollama.Client) -> None:
    answer = client.embed("tiny/embeds", ["red boat", "bread at dawn"])
    older = client.embeddings("tiny/embeds", "red boat")

    assert len(answer.embeddings) == 2
    assert answer.prompt_eval_count
    assert list(older.embedding) == pytest.approx(list(answer.embeddings[0]), abs=1e-6)


def test_the_lists_have_the_functions_and_those_that_are_ready(client: ollama.Client) -> None:
    client.chat("small", [USER], options=GREEDY)

    names = [model.model for model in client.list().models]
    eventually(lambda: "tiny/alpha" in [model.model for model in client.ps().models], what="it to be listed")
    running = next(model for model in client.ps().models if model.model == "tiny/alpha")

    assert {"small", "tiny/alpha", "tiny/embeds"} <= set(names)
    assert running.expires_at
    assert running.context_length


def test_a_description_has_capabilities_and_the_context(client: ollama.Client) -> None:
    client.chat("small", [USER], options=GREEDY)
    chats, embeds = client.show("small"), client.show("tiny/embeds")

    assert chats.capabilities is not None
    assert embeds.capabilities == ["embedding"]
    assert chats.capabilities[0] == "completion"
    assert chats.modelinfo is not None
    assert chats.modelinfo["cortex.context_length"] > 0


def test_case_70_a_name_with_the_tag_that_clients_add_is_found(client: ollama.Client) -> None:
    assert client.chat("small:latest", [USER], options=GREEDY).model == "small:latest"
    assert client.show("small:latest").details is not None


def test_case_66_a_request_without_a_prompt_loads_and_with_a_keep_alive_of_zero_unloads(
    stack: Stack, client: ollama.Client
) -> None:
    loaded = client.chat("fake/held", [], keep_alive=-1)
    state = stack.state("fake/held")
    unloaded = client.generate("fake/held", keep_alive=0)

    assert (loaded.done_reason, state, unloaded.done_reason) == ("load", "ready", "unload")
    eventually(lambda: stack.state("fake/held") == "cold", within_s=20, what="it to be let go")


def test_case_66_unloading_a_cold_function_starts_nothing(stack: Stack, client: ollama.Client) -> None:
    assert client.generate("fake/planned", "", keep_alive=0).done_reason == "unload"
    assert stack.state("fake/planned") == "cold"


def test_pulling_answers_from_the_catalogue(client: ollama.Client) -> None:
    assert client.pull("small").status == "success"
    assert [line.status for line in client.pull("small", stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match="not in the catalogue") as caught:
        client.pull("nobody")
    assert caught.value.status_code == 404


def test_what_would_change_the_models_is_refused(stack: Stack, client: ollama.Client) -> None:
    changes: list[Callable[[], object]] = [
        lambda: client.create("mine", from_="small"),
        lambda: client.copy("small", "mine"),
        lambda: client.delete("small"),
        lambda: client.push("small"),
    ]
    for change in changes:
        with pytest.raises(ollama.ResponseError, match=r"catalogue|publishes") as caught:
            change()
        assert caught.value.status_code == 400
    assert stack.http.post("/api/blobs/sha256:00", content=b"x").status_code == 400


def test_case_61_an_error_has_ollamas_form_and_its_status(stack: Stack, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not in the catalogue") as unknown:
        client.chat("nobody", [USER])
    with pytest.raises(ollama.ResponseError, match=r"messages\[0\]\.images: this model does not accept") as image:
        client.chat("fake/steps", [USER | {"images": [PNG]}])
    with pytest.raises(ollama.ResponseError, match="keep_alive") as duration:
        client.chat("fake/steps", [USER], keep_alive="soon")
    nowhere = stack.http.get("/api/tagz")

    statuses = [error.value.status_code for error in (unknown, image, duration)]
    assert statuses == [404, 400, 400]
    assert "/api/tags" in nowhere.json()["error"]
    assert stack.http.get("/api/chat").json() == {"error": "/api/chat does not support GET"}


def test_a_worker_that_dies_in_the_middle_ends_the_stream_with_an_error(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"broke off|before it was complete"):
        list(client.chat("fake/cut", [USER], stream=True))


def test_case_65_a_cold_stream_is_held_by_lines_without_text(stack: Stack) -> None:
    stack.cool("fake/slow-alone")
    eventually(lambda: stack.state("fake/slow-alone") == "cold", what="it to be cold")
    body = {"model": "fake/slow-alone", "messages": [USER]}

    with httpx.stream("POST", f"{stack.url}/api/chat", json=body, timeout=30, trust_env=False) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert (lines[0]["message"]["content"], lines[0]["done"]) == ("", False)
    assert lines[-1]["done"]


def test_the_version_is_one_that_clients_accept(stack: Stack) -> None:
    major, minor, _ = stack.http.get("/api/version").json()["version"].split(".")

    assert (int(major), int(minor)) >= (0, 6)
