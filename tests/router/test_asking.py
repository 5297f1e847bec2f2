"""What may be asked of a function's server, and taking turns at one that works on one request at a time."""

import json
from typing import Any

import pytest

from cortex.functions.spec import Engine, Function
from cortex.router.refusals import CannotServe
from cortex.router.request.asking import must_speak, must_take

PLAIN = Function(id="org/model", engine=Engine.LLAMACPP)
EMBEDS = Function(id="org/model", engine=Engine.LLAMACPP, task="embed")
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


def test_a_function_that_embeds_does_not_chat_and_says_what_it_serves() -> None:
    must_speak(EMBEDS, "embeddings")

    for dialect in ("chat", "messages", "responses"):
        with pytest.raises(CannotServe, match="'org/model' serves embeddings, not chat"):
            must_speak(EMBEDS, dialect)


def test_a_function_that_chats_does_not_embed() -> None:
    for dialect in ("chat", "messages", "responses", "completions"):
        must_speak(PLAIN, dialect)

    with pytest.raises(CannotServe, match="serves chat, completions, not embeddings"):
        must_speak(PLAIN, "embeddings")


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": None}, {**TOOLS, "tool_choice": "none"}])
def test_a_server_without_tools_takes_what_asks_for_none(body: dict[str, Any]) -> None:
    assert must_take(PLAIN, "llama_cpp.server", "chat", json.dumps(body).encode()).parallel == 1


def test_a_server_without_tools_refuses_them_by_name() -> None:
    body = json.dumps(TOOLS).encode()
    must_take(PLAIN, "xllamacpp", "chat", body)

    with pytest.raises(CannotServe, match=r"runs on llama_cpp\.server, which does not parse tool calls"):
        must_take(PLAIN, "llama_cpp.server", "messages", body)
