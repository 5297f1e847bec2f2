"""What may be asked of a function's server, and taking turns at one that works on one request at a time."""

import asyncio
import json
from typing import Any

import pytest

from cortex.functions.spec import Engine, Function
from cortex.router.asking import must_speak, must_take
from cortex.router.refusals import CannotServe, QueueFull
from cortex.router.turns import Turns

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


async def test_requests_take_turns_in_the_order_they_came() -> None:
    turns, done = Turns(), []

    async def one(number: int) -> None:
        with turns.at("i", 1) as turn:
            await turn.come(9, "org/model")
            await asyncio.sleep(0)
            done.append(number)

    await asyncio.gather(*(one(n) for n in range(5)))

    assert done == [0, 1, 2, 3, 4]
    assert not turns._rows


async def test_who_leaves_the_row_frees_its_place() -> None:
    turns = Turns()
    with turns.at("i", 1) as first:
        await first.come(9, "org/model")
        with turns.at("i", 1) as second:
            waiting = asyncio.ensure_future(second.come(9, "org/model"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    with turns.at("i", 1) as third:
        await asyncio.wait_for(third.come(9, "org/model"), 1)


async def test_a_row_that_is_too_long_is_a_full_queue() -> None:
    turns = Turns()
    with turns.at("i", 1) as first, turns.at("i", 1) as second, turns.at("i", 1) as third:
        await first.come(1, "org/model")
        waiting = asyncio.ensure_future(second.come(1, "org/model"))
        await asyncio.sleep(0)

        with pytest.raises(QueueFull):
            await third.come(1, "org/model")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_where_many_may_run_nobody_waits() -> None:
    turns = Turns()
    with turns.at("i", None) as first, turns.at("i", None) as second:
        await first.come(0, "org/model")
        await second.come(0, "org/model")
