"""What holds for any answer a worker could send, in any pieces: order, text, arguments, and what an SDK makes of it."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core.errors import BadAnswer
from tests.router.dialects import reverse
from tests.router.dialects.clients import (
    anthropic_plain,
    anthropic_streamed,
    chat_streamed,
    events,
    pieces,
    responses_plain,
    responses_streamed,
    run,
    split,
)
from tests.router.dialects.examples import examples
from tests.router.dialects.request_builders import Json, body_of, chat_request, messages_request, responses_request
from tests.router.dialects.test_arguments import OBJECTS
from tests.router.dialects.test_arguments import split as split_text
from tests.router.dialects.workers import call, chunk, completion, counted, usage_chunk, whole_call, wire

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PLACES = st.lists(st.integers(0, 60), max_size=3)
NAMES = st.sampled_from(["f", "mcp__a__b", "g.h"])


def _delta(fields: Any) -> Json:
    actual: Json = fields
    return actual


@st.composite
def orderly(draw: st.DrawFn) -> tuple[list[Json], bytes]:
    """A stream of thoughts, text and calls, and the same answer whole."""
    thoughts, text = draw(st.just("") | TEXT), draw(st.just("") | TEXT)
    calls = draw(st.lists(st.tuples(NAMES, OBJECTS), max_size=3))
    field = draw(st.sampled_from(["reasoning", "reasoning_content"]))
    finish = draw(st.sampled_from(["stop", "length"])) if not calls else "tool_calls"
    usage = counted(draw(st.integers(5, 50)), draw(st.integers(0, 50)), cached=draw(st.integers(0, 5)))
    chunks = [chunk(role="assistant", content="")]
    chunks += [chunk(**_delta({field: part})) for part in split_text(thoughts, draw(PLACES))]
    chunks += [chunk(content=part) for part in split_text(text, draw(PLACES))]
    whole = []
    deltas: list[list[Json]] = []
    for index, (name, value) in enumerate(calls):
        arguments = json.dumps(value, ensure_ascii=draw(st.booleans()))
        whole.append(whole_call(f"c{index}", name, arguments))
        parts = split_text(arguments, draw(PLACES))
        deltas.append([call(index, f"c{index}", name, parts[0]), *(call(index, arguments=part) for part in parts[1:])])
    if draw(st.booleans()):  # interleaved: one delta of each call in turn
        longest = max((len(one) for one in deltas), default=0)
        deltas = [[one[turn] for one in deltas if turn < len(one)] for turn in range(longest)]
    chunks += [chunk(**delta) for one in deltas for delta in one]
    chunks += [chunk(finish), usage_chunk(usage)]
    message: Json = {"content": text or None}
    message |= {field: thoughts} if thoughts else {}
    message |= {"tool_calls": whole} if whole else {}
    return chunks, completion(finish, usage=usage, **message)


@st.composite
def disorderly(draw: st.DrawFn) -> list[Json]:
    """Chunks as the worst of workers could send them, which end all the same."""
    small = st.sampled_from(["", "a", "\n", "{", "}", '"', ":", "{}", '{"a":1}', "null", "\\", " ", "日"])
    function = st.fixed_dictionaries({}, optional={"name": st.none() | NAMES, "arguments": st.none() | small | OBJECTS})
    delta_call = st.fixed_dictionaries(
        {},
        optional={
            "index": st.none() | st.integers(0, 2),
            "id": st.sampled_from([None, "", "x", "y"]),
            "function": function,
        },
    )
    delta = st.fixed_dictionaries(
        {},
        optional={
            "role": st.just("assistant"),
            "content": st.none() | small,
            "reasoning": st.none() | small,
            "reasoning_content": st.none() | small,
            "refusal": st.none() | small,
            "tool_calls": st.none() | st.lists(delta_call, max_size=2),
        },
    )
    deltas = draw(st.lists(delta, max_size=8))
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter", "function_call", "new"]))
    usage = draw(st.sampled_from([[], [usage_chunk()]]))
    return [*(chunk(**_delta(one)) for one in deltas), chunk(finish), *usage]


def balanced(actual: list[Json]) -> list[Json]:
    """The blocks of a message's events, built by following the rules to the letter."""
    blocks: list[Json] = []
    open_block: Json | None = None
    for event in actual[2:-2]:
        match event["type"]:
            case "content_block_start":
                assert open_block is None
                assert event["index"] == len(blocks)
                open_block = event["content_block"] | {"text": ""}
                blocks.append(open_block)
            case "content_block_delta":
                assert open_block is not None
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                kind = {"text_delta": "text", "input_json_delta": "tool_use"}.get(delta["type"], "thinking")
                assert open_block["type"] == kind
                open_block["text"] += delta.get("text") or delta.get("partial_json") or delta.get("thinking") or ""
            case _:
                assert event["type"] == "content_block_stop"
                assert event["index"] == len(blocks) - 1
                open_block = None
    assert open_block is None
    assert [event["type"] for event in actual[:2] + actual[-2:]] == [
        "message_start",
        "ping",
        "message_delta",
        "message_stop",
    ]
    return blocks


def streamed(parsed: Any, chunks: list[Json], size: int) -> bytes:
    return run(parsed.answer("ID", 1).stream(), split(wire(*chunks), size))


@examples(30)
@given(orderly(), st.integers(1, 40))
def test_an_anthropic_answer_is_the_same_streamed_whole_and_as_the_sdk_has_it(
    answer: tuple[list[Json], bytes], size: int
) -> None:
    chunks, body = answer

    out = streamed(messages_request(stream=True), chunks, size)
    whole = anthropic_plain(messages_request().answer("ID", 1).plain(body).body)

    assert anthropic_streamed(out) == whole
    blocks = balanced(events(out))
    message = json.loads(body)["choices"][0]["message"]
    output = "".join(one["text"] for one in blocks if one["type"] == "text")
    assert output == (message["content"] or "")
    calls = [(one["id"], one["name"], one["text"]) for one in blocks if one["type"] == "tool_use"]
    assert calls == [
        (one["id"], one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls", ())
    ]


@examples(30)
@given(orderly(), st.integers(1, 40))
def test_a_responses_answer_is_the_same_streamed_whole_and_as_the_sdk_has_it(
    answer: tuple[list[Json], bytes], size: int
) -> None:
    chunks, body = answer

    out = streamed(responses_request(stream=True), chunks, size)
    whole = responses_plain(responses_request().answer("ID", 1).plain(body).body)

    actual = events(out)
    assert [event["sequence_number"] for event in actual] == list(range(len(actual)))
    if whole["status"] == "completed":
        assert responses_streamed(out) == whole
    else:
        assert actual[-1]["type"] == "response.incomplete"
        assert actual[-1]["response"]["usage"] == whole["usage"]


@examples(30)
@given(orderly(), st.integers(1, 40))
def test_a_chat_stream_keeps_everything_for_an_sdk(answer: tuple[list[Json], bytes], size: int) -> None:
    chunks, body = answer

    out = streamed(chat_request(stream=True, stream_options={"include_usage": True}), chunks, size)

    message = chat_streamed(out)["choices"][0]["message"]
    expected = json.loads(body)["choices"][0]["message"]
    assert (message.get("content") or None) == expected["content"]
    assert [one["function"]["arguments"] for one in message.get("tool_calls", ())] == [
        one["function"]["arguments"] for one in expected.get("tool_calls", ())
    ]


@examples(50)
@given(disorderly(), st.integers(1, 60))
def test_any_stream_that_ends_is_in_order_for_anthropic_clients(chunks: list[Json], size: int) -> None:
    out = streamed(messages_request(stream=True), chunks, size)

    blocks = balanced(events(out))
    message = anthropic_streamed(out)
    assert [one["type"] for one in message["content"]] == [one["type"] for one in blocks]
    output = [choice["delta"] for one in chunks for choice in one["choices"]]
    thoughts = "".join(delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in output)
    assert "".join(one["text"] for one in blocks if one["type"] == "thinking") == thoughts
    assert message["usage"]["output_tokens"] >= 0


@examples(50)
@given(disorderly(), st.integers(1, 60))
def test_any_stream_that_ends_is_in_order_for_responses_clients(chunks: list[Json], size: int) -> None:
    out = streamed(responses_request(stream=True), chunks, size)

    actual = events(out)
    last = actual[-1]
    assert last["type"] in ("response.completed", "response.incomplete")
    done = [event["item"] for event in actual if event["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]
    assert [event["output_index"] for event in actual if event["type"] == "response.output_item.added"] == list(
        range(len(done))
    )
    for index, item in enumerate(done):
        deltas = "".join(event["delta"] for event in actual if event.get("output_index") == index and "delta" in event)
        held = (
            item["arguments"]
            if item["type"] == "function_call"
            else next(part.get("text", part.get("refusal")) for part in item["content"])
        )
        assert deltas == held
    if last["type"] == "response.completed":
        assert len(responses_streamed(out)["output"]) == len(done)


@examples(40)
@given(disorderly(), st.integers(1, 60))
def test_any_stream_that_ends_is_one_that_an_sdk_can_add_up(chunks: list[Json], size: int) -> None:
    out = streamed(chat_request(stream=True), chunks, size)

    assert pieces(out)[-1] == "[DONE]"
    message = chat_streamed(out)["choices"][0]["message"]
    ids = [one["id"] for one in message.get("tool_calls", ())]
    assert len(ids) == len(set(ids))


@examples(40)
@given(
    st.lists(
        st.sampled_from([chunk(content="a"), chunk(reasoning="b"), chunk(**call(0, "c", "f", '{"a"'))]), max_size=4
    ),
    st.data(),
)
def test_a_stream_truncated_anywhere_ends_in_a_fault(chunks: list[Json], data: st.DataObject) -> None:
    full = wire(*chunks, done=False)
    short = full[: data.draw(st.integers(0, len(full)))]

    for parsed, ends in (
        (messages_request(stream=True), b"message_stop"),
        (responses_request(stream=True), b"response.completed"),
        (chat_request(stream=True), b"[DONE]"),
    ):
        stream = parsed.answer("ID", 1).stream()
        out = stream.feed(short) + stream.close()
        assert ends not in out
        assert stream.fault is not None
        assert stream.over


@examples(40)
@given(
    st.binary(max_size=80)
    | st.lists(st.sampled_from([b"data: ", b"{}", b'{"choices":', b"[", b"\n\n", b"[DONE]", b"null", b"1"])).map(
        b"".join
    )
)
def test_no_worker_stream_raises(raw: bytes) -> None:
    for parsed in (messages_request(stream=True), responses_request(stream=True), chat_request(stream=True)):
        stream = parsed.answer("ID", 1).stream()
        assert isinstance(stream.feed(raw) + stream.close(), bytes)
        assert stream.over
        try:
            parsed.answer("ID", 1).plain(raw)
        except BadAnswer:
            pass
        else:
            pytest.fail("nonsense was taken for an answer")


@st.composite
def chat_requests(draw: st.DrawFn) -> Json:
    """What both dialects can say."""
    messages: list[Json] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        calls = [
            whole_call(
                f"c{turn}_{index}", draw(NAMES), json.dumps(draw(OBJECTS), separators=(",", ":"), ensure_ascii=False)
            )
            for index in range(draw(st.integers(0, 2)))
        ]
        messages.append({"role": "assistant", "content": draw(TEXT)} | ({"tool_calls": calls} if calls else {}))
        messages += [{"role": "tool", "tool_call_id": one["id"], "content": draw(st.text())} for one in calls]
    messages.append({"role": "user", "content": draw(TEXT)})
    tools = [{"type": "function", "function": {"name": draw(NAMES), "parameters": {"type": "object"}}}]
    optional = {"stop": ["x"], "temperature": 0.5, "top_p": 0.5, "tools": tools}
    chosen = draw(st.sets(st.sampled_from(sorted(optional))))
    return {"model": "worker", "max_tokens": 9, "messages": messages} | {name: optional[name] for name in chosen}


@examples(40)
@given(chat_requests())
def test_a_chat_request_survives_the_way_through_anthropics_words(request: Json) -> None:
    there = reverse.request(request)

    back = body_of(messages_request(**there))

    normal = json.loads(json.dumps(request))
    for message in back["messages"] + normal["messages"]:
        for one in message.get("tool_calls", ()):
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    assert back == normal


@examples(50)
@given(orderly())
def test_a_stream_survives_the_way_through_anthropics_words(answer: tuple[list[Json], bytes]) -> None:
    out = streamed(messages_request(stream=True), answer[0], 1000)

    again = streamed(messages_request(stream=True), reverse.chunks(events(out)), 1000)

    assert balanced(events(again)) == balanced(events(out))
    assert events(again)[-2] == events(out)[-2]


@pytest.mark.parametrize("depth", [100, 900, 985, 995, 5000])
@pytest.mark.parametrize("where", ["arguments", "ignored"])
def test_deeply_nested_worker_json_gives_at_most_a_fault(depth: int, where: str) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    delta = '{"reasoning":"x","tool_calls":[{"function":{"name":"f","arguments":%s}}]}' % (
        deep if where == "arguments" else '"{}"'
    )
    extra = deep if where == "ignored" else "1"
    one = f'{{"model":"worker","ignored":{extra},"choices":[{{"finish_reason":"stop","%s":{delta}}}]}}'

    for parsed in (messages_request(stream=True), responses_request(stream=True), chat_request(stream=True)):
        stream = parsed.answer("ID", 1).stream()
        assert stream.feed(f"data: {one % 'delta'}\n\ndata: [DONE]\n\n".encode())
        assert stream.over
        with contextlib.suppress(BadAnswer):
            parsed.answer("ID", 1).plain((one % "message").encode())
