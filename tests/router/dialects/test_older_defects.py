"""What the older gateway got wrong in translation, one test each, so that it stays right here."""

import json
from typing import Any

import msgspec
import pytest

from cortex.router.dialects.core.errors import Dialect, envelope
from cortex.router.dialects.core.worker_errors import fault_from_worker
from tests.router.dialects import clients, workers
from tests.router.dialects.asking import PLAIN, ask_chat, ask_messages, ask_responses, tool, user


def test_tool_calls_are_not_lost_from_a_messages_answer_that_does_not_stream() -> None:
    call = workers.whole_call("c1", "look", '{"at": "gull"}')
    body = workers.completion("tool_calls", content="Let me see.", tool_calls=[call])

    answer = json.loads(ask_messages(tools=[tool("look")]).answer("1", 0).plain(body).body)

    assert [block["type"] for block in answer["content"]] == ["text", "tool_use"]
    assert answer["content"][1]["input"] == {"at": "gull"}
    assert answer["stop_reason"] == "tool_use"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_not_dropped_from_a_messages_answer_streamed_or_not(field: str) -> None:
    hm: dict[str, Any] = {field: "Hm."}
    body = workers.completion(content="Yes.", **hm)
    thought, said = workers.chunk(**hm), workers.chunk(content="Yes.")
    wire = workers.wire(thought, said, workers.chunk("stop"), workers.usage_chunk())

    plain = json.loads(ask_messages().answer("1", 0).plain(body).body)
    streamed = clients.anthropic_streamed(clients.run(ask_messages().answer("1", 0).stream(), [wire]))

    for answer in (plain, streamed):
        assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
        assert answer["content"][0]["thinking"] == "Hm."


@pytest.mark.parametrize("dialect", ["messages", "chat", "responses"])
def test_what_a_worker_said_was_wrong_is_not_flattened_into_a_general_text(dialect: Dialect) -> None:
    words = "top_p must be in (0, 1], got 7."
    said = {"error": {"message": words, "type": "BadRequestError", "param": "top_p", "code": 400}}

    fault = fault_from_worker(400, json.dumps(said).encode())

    assert fault.status(dialect) == 400
    assert words in envelope(fault, dialect).decode()


@pytest.mark.parametrize("status", [429, 503])
def test_the_time_to_come_back_that_a_worker_gives_is_not_lost(status: int) -> None:
    fault = fault_from_worker(status, b'{"error": {"message": "busy"}}', retry_after="7")

    assert fault.headers()["retry-after"] == "7"


def test_a_truncated_answer_is_not_closed_as_a_whole_one() -> None:
    wire = workers.wire(workers.chunk(content="The harbour is"), done=False)

    messages = clients.run(ask_messages(stream=True).answer("1", 0).stream(), [wire])
    responses = clients.run(ask_responses(stream=True).answer("1", 0).stream(), [wire])
    chat = clients.run(ask_chat(stream=True).answer("1", 0).stream(), [wire])

    assert clients.events(messages)[-1]["type"] == "error"
    assert b"message_stop" not in messages
    assert clients.events(responses)[-1]["type"] == "response.failed"
    assert b"response.completed" not in responses
    assert b'"error"' in chat
    assert b"[DONE]" not in chat


BILLING = "x-anthropic-billing-header: cc_version=2.1.329.{}; cc_entrypoint=sdk-cli;\n"


def turns(count: int) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    for n in range(count):
        said += [user(f"question {n}"), {"role": "assistant", "content": f"answer {n}"}]
    return [*said, user("and then?")]


def asked(dialect: str, count: int, volatile: str) -> dict[str, Any]:
    """A request of a session, with everything in it that clients change from one to the next."""
    tools = [tool("b"), tool("a")]
    match dialect:
        case "messages":
            billing = {"type": "text", "text": BILLING.format(volatile)}
            front = {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}
            metadata = {"user_id": json.dumps({"session_id": "s", "request": volatile})}
            request: Any = ask_messages(system=[billing, front], messages=turns(count), metadata=metadata, tools=tools)
        case "responses":
            flat = [{"type": "function", "name": t["name"], "parameters": t["input_schema"]} for t in tools]
            request = ask_responses(
                instructions="You are brief.", input=turns(count), tools=flat, client_metadata={"turn": volatile}
            )
        case _:
            system = {"role": "system", "content": BILLING.format(volatile) + "You are brief."}
            request = ask_chat(PLAIN, messages=[system, *turns(count)], user=volatile)
    found: dict[str, Any] = json.loads(request.count("worker"))
    return found


@pytest.mark.parametrize("dialect", ["messages", "responses", "chat"])
def test_two_requests_of_one_session_share_their_whole_prefix(dialect: str) -> None:
    first, second = asked(dialect, 2, "f6c"), asked(dialect, 3, "0aa")

    before, after = (msgspec.json.encode(one["messages"])[:-1] for one in (first, second))

    shared = msgspec.json.encode(first["messages"][:-1])[:-1]
    assert after.startswith(shared)
    assert before.startswith(shared)
    assert first.get("tools") == second.get("tools")
    assert not any(mark in after for mark in (b"f6c", b"0aa", b"billing"))
