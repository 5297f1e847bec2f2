"""The wire forms of vLLM and llama-server, tool calls, and replayed streams."""

import json
from pathlib import Path
from typing import Any

import pytest

from cortex.platform.fake_engine import replay
from cortex.platform.fake_engine.script import BadScript
from cortex.platform.fake_engine.shapes import SHAPES
from tests.platform.fake_engine.workers import HELLO, MODEL, Worker, chunks


def test_vllm_streams_an_empty_role_chunk_and_finishes_with_the_last_token(worker: Worker) -> None:
    worker.script(answer="Hi there", reasoning_tokens=1)
    choices = [chunk["choices"][0] for chunk in chunks(worker.ask(stream=True))]
    cut = [chunk["choices"][0] for chunk in chunks(worker.ask(stream=True, max_tokens=2))]

    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"reasoning": "hm"},
        {"content": "Hi"},
        {"content": " there"},
        {"content": ""},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]
    assert (cut[-1]["delta"], cut[-1]["finish_reason"]) == ({"content": "Hi"}, "length")


def test_llama_server_streams_a_null_role_chunk_and_timings_in_the_last_one(worker: Worker) -> None:
    worker.script(shape="llama", answer="Hi there", reasoning_tokens=1)
    tokens = chunks(worker.ask(stream=True))
    with_usage = chunks(worker.ask(stream=True, stream_options={"include_usage": True}))

    assert [chunk["choices"][0]["delta"] for chunk in tokens] == [
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm"},
        {"content": "Hi"},
        {"content": " there"},
        {},
    ]
    assert ["timings" in chunk for chunk in tokens] == [False, False, False, False, True]
    assert with_usage[-1]["timings"]["predicted_n"] == with_usage[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_arguments_of_a_tool_call_join_to_json(worker: Worker, shape: str) -> None:
    worker.script(shape=shape, call_tool=True)
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}}
    weather = {"name": "weather", "parameters": {"type": "object", "properties": properties}}
    tools: Any = [{"type": "function", "function": weather}]
    with worker.openai.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = worker.openai.chat.completions.create(model=MODEL, messages=HELLO, tools=tools).choices[0]

    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert streamed.message.tool_calls and whole.message.tool_calls
    called: Any = streamed.message.tool_calls[0]
    other_call: Any = whole.message.tool_calls[0]
    assert (called.id, called.function.name) == (other_call.id, other_call.function.name) == (called.id, "weather")
    assert json.loads(called.function.arguments) == {"city": "fake", "days": 1, "unit": "C"}
    assert called.function.arguments == other_call.function.arguments


def test_after_a_tools_result_the_answer_is_text(worker: Worker) -> None:
    worker.script(call_tool=True)
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {"id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "nothing"},
    ]

    assert worker.ask(messages=messages, tools=tools).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("shape", SHAPES)
def test_scripted_calls_of_offered_tools_are_in_one_answer_and_results_are_counted(worker: Worker, shape: str) -> None:
    calls = [{"name": n, "arguments": {"at": n}} for n in ("look", "elsewhere", "jump")]
    worker.script(shape=shape, calls=json.dumps(calls), report_results=True)
    tools: Any = [{"type": "function", "function": {"name": name}} for name in ("look", "jump")]
    with worker.openai.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
        streamed: Any = stream.get_final_completion().choices[0].message.tool_calls
    whole: Any = worker.openai.chat.completions.create(model=MODEL, messages=HELLO, tools=tools).choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": "done"} for c in whole.tool_calls]
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    history = [*HELLO, whole.model_dump(exclude_none=True), *results, shown]

    for called in (streamed, whole.tool_calls):
        assert [(c.function.name, json.loads(c.function.arguments)) for c in called] == [
            ("look", {"at": "look"}),
            ("jump", {"at": "jump"}),
        ]
        assert len({c.id for c in called}) == 2
    answer = worker.ask(messages=history, tools=tools).json()["choices"][0]["message"]["content"]
    assert answer == "I have 2 results and 1 images."


def test_in_vllms_form_a_call_demanded_by_name_finishes_with_stop(worker: Worker) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "jump")]
    choice = {"type": "function", "function": {"name": "jump"}}
    answer = worker.ask(tools=tools, tool_choice=choice).json()["choices"][0]

    assert answer["message"]["tool_calls"][0]["function"]["name"] == "jump"
    assert answer["finish_reason"] == "stop"


# Replay.


def test_captured_streams_are_replayed_byte_by_byte_and_repeat(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "captured.jsonl"
    file.write_text('[{"b": 1.0,  "a":2}, "data: {\\"to", 0.01, "rn\\": 1}\\r\\n\\r\\n"]\n\n["data: [DONE]\\n\\n"]\n')
    worker.script(script=str(file))
    answers = [worker.ask(stream=True).content for _ in range(3)]

    assert answers[0] == answers[2] == b'data: {"b": 1.0,  "a":2}\n\ndata: {"torn": 1}\r\n\r\n'
    assert answers[1] == b"data: [DONE]\n\n"


def test_an_unstreamed_replay_has_no_sse_framing(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "captured.jsonl"
    file.write_text('[{"id": "x"}]')
    worker.script(script=str(file))
    answer = worker.ask()

    assert (answer.content, answer.headers["content-type"]) == (b'{"id": "x"}', "application/json")


@pytest.mark.parametrize("text", ["", "{}", "[null]", "[-1]", "[[]]", '["a"]\n[tru]'])
def test_an_invalid_replay_file_is_an_error(text: str) -> None:
    with pytest.raises(BadScript, match=r"script: (line|the file)"):
        replay.parse(text)
