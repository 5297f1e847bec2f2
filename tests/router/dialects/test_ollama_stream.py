"""Chat streams as Ollama's lines: each replayed whole, byte by byte and with a tail."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core.errors import BadAnswer, Dialect, Fault, Kind, envelope
from tests.router.dialects.clients import Json, replay, run, split
from tests.router.dialects.examples import examples
from tests.router.dialects.test_ollama_request import chat_request, generate_request
from tests.router.dialects.test_properties import disorderly, orderly
from tests.router.dialects.workers import call, chunk, completion, counted, usage_chunk, whole_call, wire

AT = "1970-01-01T00:00:01Z"


def lines(wire: bytes) -> list[Json]:
    """Every line is JSON, and ends."""
    assert not wire or wire.endswith(b"\n")
    return [json.loads(line) for line in wire.split(b"\n")[:-1]]


def streamed(*chunks: Json, parsed: Any = None) -> list[Json]:
    parsed = parsed or chat_request()
    return lines(replay(lambda: parsed.answer("ID", 1).stream(), wire(*chunks)))


def total(actual: list[Json]) -> Json:
    """Add a stream up as Ollama's clients do."""
    message: Json = {"role": "assistant", "content": ""}
    for line in actual:
        piece = line["message"]
        message["content"] += piece["content"]
        if "thinking" in piece:
            message["thinking"] = message.get("thinking", "") + piece["thinking"]
        if "tool_calls" in piece:
            message["tool_calls"] = [*message.get("tool_calls", []), *piece["tool_calls"]]
    return actual[-1] | {"message": message}


def test_an_answer_is_lines_of_text_and_one_with_the_counts() -> None:
    actual = streamed(chunk(content="He"), chunk(content="y"), chunk("stop"), usage_chunk(counted(10, 2)))

    text = {"model": "m", "created_at": AT, "done": False}
    assert actual == [
        text | {"message": {"role": "assistant", "content": "He"}},
        text | {"message": {"role": "assistant", "content": "y"}},
        text
        | {"message": {"role": "assistant", "content": ""}, "done": True}
        | {"done_reason": "stop", "prompt_eval_count": 10, "eval_count": 2},
    ]


def test_a_generated_answer_has_its_text_at_the_top() -> None:
    actual = streamed(chunk(reasoning="hm"), chunk(content="so"), chunk("length"), parsed=generate_request(stream=True))

    assert [(line["response"], line.get("thinking")) for line in actual] == [("", "hm"), ("so", None), ("", None)]
    assert actual[-1]["done_reason"] == "length"


def test_case_69_a_raw_answer_is_read_from_a_completion() -> None:
    pieces = [
        {"choices": [{"index": 0, "text": text, "finish_reason": end}]} for text, end in (("a", None), ("b", "stop"))
    ]
    whole = json.dumps({"choices": [{"text": "ab", "finish_reason": "stop"}], "usage": counted(1, 2)}).encode()

    actual = streamed(*pieces, parsed=generate_request(raw=True))

    assert [line["response"] for line in actual] == ["a", "b", ""]
    plain = json.loads(generate_request(raw=True).answer("ID", 1).plain(whole).body)
    assert (plain["response"], plain["eval_count"], plain["done"]) == ("ab", 2, True)


def test_case_64_a_call_comes_whole_with_an_object_as_its_arguments() -> None:
    actual = streamed(chunk(**call(0, "c1", "f", '{"a"')), chunk(**call(0, arguments=": 1}")), chunk("tool_calls"))

    assert actual[0]["message"]["tool_calls"] == [
        {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    ]
    assert (len(actual), actual[-1]["done_reason"]) == (2, "stop")


def test_case_64_a_call_that_was_cut_is_a_note_and_not_one_to_run() -> None:
    actual = streamed(chunk(**call(0, "c1", "f", '{"a": "x')), chunk("length"))
    plain = json.loads(
        chat_request().answer("ID", 1).plain(completion("length", tool_calls=[whole_call("c1", "f", '{"a": "x')])).body
    )

    assert "tool_calls" not in plain["message"]
    assert plain["message"]["content"] == total(actual)["message"]["content"]
    assert "f is left out" in plain["message"]["content"]


def test_case_65_a_client_that_waits_gets_lines_that_it_can_parse() -> None:
    stream = chat_request().answer("ID", 1).stream()

    (line,) = lines(stream.open() + stream.ping("no host has room"))
    assert (line["message"]["content"], line["done"]) == ("", False)
    assert stream.media_type == b"application/x-ndjson"


def test_case_65_a_fault_is_a_line_and_no_other_follows() -> None:
    stream = chat_request().answer("ID", 1).stream()
    out = stream.feed(wire(chunk(content="a"), done=False)) + stream.fail(Fault(kind=Kind.WORKER_ERROR, message="why"))

    assert lines(out)[-1] == {"error": "why"}
    assert stream.feed(wire(chunk("stop"))) + stream.close() == b""


def test_case_72_times_are_those_of_the_clock() -> None:
    now = iter([10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
    stream = chat_request().answer("ID", 1).with_clock(lambda: next(now)).stream()

    last = lines(run(stream, [wire(chunk(content="a"), chunk("stop"))]))[-1]

    assert last["total_duration"] == last["prompt_eval_duration"] + last["eval_duration"]
    assert last["prompt_eval_duration"] == 1_000_000_000


@pytest.mark.parametrize("kind", list(Kind))
def test_case_61_every_fault_has_ollamas_form(kind: Kind) -> None:
    dialects: tuple[Dialect, ...] = ("ollama", "ollama_chat", "ollama_generate", "ollama_embed", "ollama_embeddings")
    for dialect in dialects:
        fault = Fault(kind=kind, message="why", param="x")

        assert json.loads(envelope(fault, dialect)) == {"error": "why"}
        assert fault.status(dialect) == fault.status("chat")


@examples(30)
@given(orderly(), st.integers(1, 40))
def test_case_43_an_answer_is_the_same_streamed_and_whole(answer: tuple[list[Json], bytes], size: int) -> None:
    chunks, body = answer

    out = run(chat_request().answer("ID", 1).stream(), split(wire(*chunks), size))

    assert total(lines(out)) == json.loads(chat_request().answer("ID", 1).plain(body).body)


@examples(50)
@given(disorderly(), st.integers(1, 60))
def test_any_stream_that_ends_has_one_last_line(chunks: list[Json], size: int) -> None:
    parsed = chat_request()
    out = run(parsed.answer("ID", 1).stream(), split(wire(*chunks), size))

    actual = lines(out)
    assert [line["done"] for line in actual] == [False] * (len(actual) - 1) + [True]
    assert out == run(parsed.answer("ID", 1).stream(), [wire(*chunks)])
    deltas = [choice["delta"] for one in chunks for choice in one["choices"]]
    thoughts = "".join(delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in deltas)
    assert total(actual)["message"].get("thinking", "") == thoughts


@examples(40)
@given(st.lists(st.sampled_from([chunk(content="a"), chunk(**call(0, "c", "f", '{"a"'))]), max_size=4), st.data())
def test_a_stream_truncated_anywhere_ends_in_an_error(chunks: list[Json], data: st.DataObject) -> None:
    full = wire(*chunks, done=False)
    stream = chat_request().answer("ID", 1).stream()

    out = stream.feed(full[: data.draw(st.integers(0, len(full)))]) + stream.close()

    assert list(lines(out)[-1]) == ["error"]
    assert b'"done":true' not in out


@examples(40)
@given(st.binary(max_size=80))
def test_no_worker_stream_raises(raw: bytes) -> None:
    stream = chat_request().answer("ID", 1).stream()
    assert lines(stream.feed(raw) + stream.close())
    with pytest.raises(BadAnswer):
        chat_request().answer("ID", 1).plain(raw)
