"""What may be asked of a function's server, and taking turns at one that works on one request at a time."""

import json
from typing import Any

import pytest

from cortex.functions.spec import Engine, Function
from cortex.router.errors import CannotServe
from cortex.router.request.capability_checks import check_dialect, check_tools

PLAIN = Function(id="org/model", engine=Engine.LLAMACPP)
EMBEDS = Function(id="org/model", engine=Engine.LLAMACPP, task="embed")
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


def test_a_function_that_embeds_does_not_chat_and_says_what_it_serves() -> None:
    check_dialect(EMBEDS, "embeddings")

    for dialect in ("chat", "messages", "responses"):
        with pytest.raises(CannotServe, match="'org/model' serves embeddings, not chat"):
            check_dialect(EMBEDS, dialect)


def test_a_function_that_chats_does_not_embed() -> None:
    for dialect in ("chat", "messages", "responses", "completions"):
        check_dialect(PLAIN, dialect)

    with pytest.raises(CannotServe, match="serves chat, completions, not embeddings"):
        check_dialect(PLAIN, "embeddings")


def test_an_error_names_the_first_of_the_callers_functions_that_can() -> None:
    hear = [Function(id=f"hear-{n}", engine=Engine.FAKE, task="transcribe") for n in range(9)]

    with pytest.raises(CannotServe, match="not transcriptions: use 'hear-0', 'hear-1', 'hear-2', 'hear-3', 'hear-4'"):
        check_dialect(PLAIN, "transcriptions", lambda: [PLAIN, EMBEDS, *hear])
    with pytest.raises(CannotServe, match="no function of the catalogue that this key may use does"):
        check_dialect(PLAIN, "transcriptions", lambda: [PLAIN, EMBEDS])


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": None}, {**TOOLS, "tool_choice": "none"}])
def test_a_server_without_tools_takes_what_asks_for_none(body: dict[str, Any]) -> None:
    assert check_tools(PLAIN, "llama_cpp.server", "chat", json.dumps(body).encode()).parallel == 1


def test_a_server_without_tools_refuses_them_by_name() -> None:
    body = json.dumps(TOOLS).encode()
    check_tools(PLAIN, "xllamacpp", "chat", body)

    with pytest.raises(CannotServe, match=r"runs on llama_cpp\.server, which does not parse tool calls"):
        check_tools(PLAIN, "llama_cpp.server", "messages", body)
