"""Which requests a substitute may answer: never inside a tool loop, never after the requested function."""

import json
from typing import Any, cast

import pytest

from cortex.functions.lifecycle import State
from cortex.platform.scheduling.ledger import Entry, key
from cortex.router.dialects.core.errors import Dialect
from cortex.router.live_catalogue import Target
from cortex.router.request.substitutes import Conversation, Stage, Substitutes, conversation_of
from tests.support.factories import a_device, a_function, an_instance

USER = {"role": "user", "content": "Hello!"}
ANSWER = {"role": "assistant", "content": "Hi."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "ls"}}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "a.txt"}
USE = {"role": "assistant", "content": [{"type": "text", "text": "."}, {"type": "tool_use", "id": "t", "name": "ls"}]}
RESULTS = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}, {"type": "text", "text": "go on"}]}
FUNCTION_CALL = {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "a.txt"}


def conversation(dialect: Dialect, session: str | None = None, caller: str = "key", **body: Any) -> Conversation:
    return conversation_of(dialect, json.dumps({"model": "m", **body}).encode(), session, caller)


@pytest.mark.parametrize(
    ("dialect", "body", "stage"),
    [
        ("chat", {"messages": [USER]}, Stage.FIRST),
        ("chat", {"messages": [{"role": "system", "content": "."}, USER], "tools": [{}]}, Stage.FIRST),
        ("chat", {"messages": [USER, ANSWER, USER]}, Stage.LATER),
        ("chat", {"messages": [USER, CALL, RESULT]}, Stage.TOOLS),
        ("chat", {"messages": [USER, CALL, RESULT, USER]}, Stage.TOOLS),
        ("chat", {"messages": [USER, CALL, RESULT, ANSWER, USER]}, Stage.LATER),
        ("messages", {"messages": [USER, USE, RESULTS]}, Stage.TOOLS),
        ("messages", {"messages": [USER, USE, RESULTS, ANSWER, USER]}, Stage.LATER),
        ("responses", {"input": "Hello!"}, Stage.FIRST),
        ("responses", {"input": [USER]}, Stage.FIRST),
        ("responses", {"input": [USER, FUNCTION_CALL, OUTPUT]}, Stage.TOOLS),
        ("responses", {"input": [USER, {"type": "message", **ANSWER}, USER]}, Stage.LATER),
        ("responses", {"input": [OUTPUT]}, Stage.TOOLS),
        ("responses", {"input": "more", "previous_response_id": "r1"}, Stage.TOOLS),
        ("completions", {"prompt": "Once"}, Stage.FIRST),
        ("chat", {"messages": "odd"}, Stage.TOOLS),
    ],
)
def test_the_stage_of_a_conversation_is_read_from_its_messages(
    dialect: Dialect, body: dict[str, Any], stage: Stage
) -> None:
    assert conversation(dialect, **body).stage is stage


def test_a_conversation_is_known_by_its_session_or_its_beginning_and_its_caller() -> None:
    first, later = conversation("chat", messages=[USER]), conversation("chat", messages=[USER, ANSWER, USER])
    other = conversation("chat", messages=[{"role": "user", "content": "Another."}])

    assert first.key == later.key
    assert len({first.key, other.key, conversation("chat", caller="another", messages=[USER]).key}) == 3
    assert conversation("chat", "s", messages=[USER]).key == conversation("messages", "s", messages=[ANSWER]).key


def test_a_substitute_goes_on_with_its_own_conversations_until_the_other_function_has_answered_once() -> None:
    substitutes = Substitutes(cast(Any, None))
    first, later = Conversation(Stage.FIRST, "k"), Conversation(Stage.LATER, "k")
    decisions = [substitutes.may_answer(first, "small"), substitutes.may_answer(later, "small")]
    substitutes.remember(first, "small")
    decisions += [
        substitutes.may_answer(later, "small"),
        substitutes.may_answer(Conversation(Stage.TOOLS, "k"), "small"),
    ]
    substitutes.remember(later, "big")
    decisions += [substitutes.may_answer(later, "small"), substitutes.may_answer(first, "small")]

    assert decisions == [True, False, True, False, False, False]


def test_the_oldest_conversations_are_forgotten_and_then_wait_for_their_own_function() -> None:
    substitutes = Substitutes(cast(Any, None), most=2)
    for name in "abc":
        substitutes.remember(Conversation(Stage.FIRST, name), "small")

    assert [substitutes.may_answer(Conversation(Stage.LATER, name), "small") for name in "abc"] == [False, True, True]


@pytest.mark.parametrize(
    ("state", "started", "entry", "expected"),
    [
        (None, 0.0, Entry(start_s=1.5, starts=1), 1.5),
        (None, 0.0, None, None),
        (State.STARTING, 98.0, Entry(start_s=3.0, starts=1), 1.0),
        (State.STARTING, 90.0, Entry(start_s=3.0, starts=1), 0.0),
        (State.STARTING, 98.0, None, None),
        (State.FETCHING, 98.0, Entry(start_s=3.0, starts=1), None),
    ],
)
async def test_when_a_function_is_ready_is_expected_by_its_earlier_starts(
    state: State | None, started: float, entry: Entry | None, expected: float | None
) -> None:
    class Ledger:
        async def ledger(self) -> dict[str, Entry]:
            return {key("rev", a_device()): entry} if entry else {}

    instances = [an_instance(state=state, started=started, revision="rev")] if state else []

    target = Target(a_function(), "rev")
    assert await Substitutes(Ledger()).ready_in_s(target, instances, 100.0) == expected
