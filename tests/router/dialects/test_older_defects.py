"""What the older gateway got wrong in translation, one test each, so that it stays right here."""

import json
from typing import Any

import msgspec
import pytest

from cortex.router.dialects.core.errors import Dialect, envelope
from cortex.router.dialects.core.worker_errors import fault_from_worker
from tests.router.dialects import clients, workers
from tests.router.dialects.request_builders import PLAIN, chat_request, messages_request, responses_request, tool, user


def test_tool_calls_are_not_lost_from_a_messages_answer_that_does_not_stream() -> None:
    call = workers.whole_call("c1", "look", '{"at": "gull"}')
    body = workers.completion("tool_calls", content="Let me see.", tool_calls=[call])

    answer = json.loads(messages_request(tools=[tool("look")]).answer("1", 0).plain(body).body)

    assert [block["type"] for block in answer["content"]] == ["text", "tool_use"]
    assert answer["content"][1]["input"] == {"at": "gull"}
    assert answer["stop_reason"] == "tool_use"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_not_dropped_from_a_messages_answer_streamed_or_not(field: str) -> None:
    hm: dict[str, Any] = {field: "Hm."}
    body = workers.completion(content="Yes.", **hm)
    thought, history = workers.chunk(**hm), workers.chunk(content="Yes.")
    wire = workers.wire(thought, history, workers.chunk("stop"), workers.usage_chunk())

    plain = json.loads(messages_request().answer("1", 0).plain(body).body)
    streamed = clients.anthropic_streamed(clients.run(messages_request().answer("1", 0).stream(), [wire]))

    for answer in (plain, streamed):
        assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
        assert answer["content"][0]["thinking"] == "Hm."


@pytest.mark.parametrize("dialect", ["messages", "chat", "responses"])
def test_a_workers_error_message_is_forwarded(dialect: Dialect) -> None:
    words = "top_p must be in (0, 1], got 7."
    history = {"error": {"message": words, "type": "BadRequestError", "param": "top_p", "code": 400}}

    fault = fault_from_worker(400, json.dumps(history).encode())

    assert fault.status(dialect) == 400
    assert words in envelope(fault, dialect).decode()


@pytest.mark.parametrize("status", [429, 503])
def test_a_workers_retry_after_is_forwarded(status: int) -> None:
    fault = fault_from_worker(status, b'{"error": {"message": "busy"}}', retry_after="7")

    assert fault.headers()["retry-after"] == "7"


def test_a_truncated_answer_does_not_end_like_a_complete_one() -> None:
    wire = workers.wire(workers.chunk(content="The harbour is"), done=False)

    messages = clients.run(messages_request(stream=True).answer("1", 0).stream(), [wire])
    responses = clients.run(responses_request(stream=True).answer("1", 0).stream(), [wire])
    chat = clients.run(chat_request(stream=True).answer("1", 0).stream(), [wire])

    assert clients.events(messages)[-1]["type"] == "error"
    assert b"message_stop" not in messages
    assert clients.events(responses)[-1]["type"] == "response.failed"
    assert b"response.completed" not in responses
    assert b'"error"' in chat
    assert b"[DONE]" not in chat


BILLING = "x-anthropic-billing-header: cc_version=2.1.329.{}; cc_entrypoint=sdk-cli;\n"


def turns(count: int) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = []
    for n in range(count):
        history += [user(f"question {n}"), {"role": "assistant", "content": f"answer {n}"}]
    return [*history, user("and then?")]


def parsed(dialect: str, count: int, volatile: str) -> dict[str, Any]:
    """A request of a session, with everything in it that clients change from one to the next."""
    tools = [tool("b"), tool("a")]
    match dialect:
        case "messages":
            billing = {"type": "text", "text": BILLING.format(volatile)}
            front = {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}
            metadata = {"user_id": json.dumps({"session_id": "s", "request": volatile})}
            request: Any = messages_request(
                system=[billing, front], messages=turns(count), metadata=metadata, tools=tools
            )
        case "responses":
            flat = [{"type": "function", "name": t["name"], "parameters": t["input_schema"]} for t in tools]
            request = responses_request(
                instructions="You are brief.", input=turns(count), tools=flat, client_metadata={"turn": volatile}
            )
        case _:
            system = {"role": "system", "content": BILLING.format(volatile) + "You are brief."}
            request = chat_request(PLAIN, messages=[system, *turns(count)], user=volatile)
    actual: dict[str, Any] = json.loads(request.count("worker"))
    return actual


@pytest.mark.parametrize("dialect", ["messages", "responses", "chat"])
def test_two_requests_of_one_session_share_their_whole_prefix(dialect: str) -> None:
    first, second = parsed(dialect, 2, "f6c"), parsed(dialect, 3, "0aa")

    before, after = (msgspec.json.encode(one["messages"])[:-1] for one in (first, second))

    shared = msgspec.json.encode(first["messages"][:-1])[:-1]
    assert after.startswith(shared)
    assert before.startswith(shared)
    assert first.get("tools") == second.get("tools")
    assert not any(mark in after for mark in (b"f6c", b"0aa", b"billing"))
