"""JSON that strict parsers refuse: requests with nulls and half characters, answers with NaN and infinities."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects import embeddings, rerank
from cortex.router.dialects.chat.stream import Reply
from cortex.router.dialects.core import lenient, wire
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request
from tests.router.dialects.clients import pieces, replay
from tests.router.dialects.examples import examples
from tests.router.dialects.workers import chunk, completion
from tests.router.dialects.workers import wire as stream_of

Json = dict[str, Any]
TEXT = st.text(st.sampled_from('a\\"\n\ud83d\ude00\udc00日😀'), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(0, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
PARAMETERS = {"type": "object", "properties": {"a": {"type": ["string", "null"], "default": None}}}
FUNCTION = {"name": "f", "description": "d", "parameters": PARAMETERS}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REQUESTS: dict[Dialect, Json] = {
    "chat": {
        "model": "m",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": PARAMETERS}},
        "stream_options": {"include_usage": True},
    },
    "completions": {"model": "m", "prompt": "hi", "stream_options": {}},
    "responses": {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        ],
        "tools": [{"type": "function", **FUNCTION}],
        "reasoning": {},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": PARAMETERS}},
    },
    "messages": {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": None}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "ok"}]},
        ],
        "tools": [{"name": "f", "input_schema": PARAMETERS}],
    },
}
NAMES = ["name", "strict", "description", "refusal", "audio", "cache_control", "title", "citations", "logprobs", "x"]


def with_nulls(value: Any, draw: st.DrawFn) -> Any:
    """Return a request with null members at any depth of its envelope."""
    if isinstance(value, list):
        return [with_nulls(one, draw) for one in value]
    if not isinstance(value, dict) or value is PARAMETERS or value == {"a": None}:
        return value
    nulls = draw(st.lists(st.sampled_from(NAMES), max_size=2))
    return {key: with_nulls(one, draw) for key, one in value.items()} | {n: None for n in nulls if n not in value}


@st.composite
def requests_with_nulls(draw: st.DrawFn, request: Json) -> Json:
    noisy: Json = with_nulls(request, draw)
    return noisy


@pytest.mark.parametrize("dialect", list(REQUESTS))
@examples(20)
@given(st.data())
def test_null_members_are_as_left_out_at_every_depth_in_every_dialect(dialect: Dialect, data: st.DataObject) -> None:
    request = REQUESTS[dialect]
    noisy = data.draw(requests_with_nulls(request))
    written = json.dumps(noisy, indent=data.draw(st.sampled_from([None, 1]))).encode()

    repaired = lenient.repair_request(written)

    expected = read_request(dialect, json.dumps(request).encode(), Traits())
    actual = read_request(dialect, repaired, Traits())
    assert json.loads(bytes(actual.body("w"))) == json.loads(bytes(expected.body("w")))
    assert actual.dropped == expected.dropped


def test_nulls_of_schemas_arguments_and_contents_stay() -> None:
    body = json.dumps(
        {
            "messages": [{"content": None, "name": None}],
            "tools": [{"function": {"parameters": {"default": None}, "strict": None}}],
            "response_format": {"json_schema": {"schema": {"const": None}, "strict": None}},
            "metadata": {"a": None},
            "stop": [None],
        }
    ).encode()

    assert json.loads(lenient.repair_request(body)) == {
        "messages": [{"content": None}],
        "tools": [{"function": {"parameters": {"default": None}}}],
        "response_format": {"json_schema": {"schema": {"const": None}}},
        "metadata": {"a": None},
        "stop": [None],
    }


def test_nulls_below_the_searched_levels_and_large_numbers_survive_or_go_as_elsewhere() -> None:
    nested: Any = {"x": None, "y": 1}
    for _ in range(30):
        nested = {"a": [nested]}

    repaired = json.loads(lenient.repair_request(json.dumps({"n": 10**25, "deep": nested}).encode()))

    assert repaired["n"] == 10**25
    assert "null" not in json.dumps(repaired)


def test_a_request_without_defects_keeps_its_bytes() -> None:
    body = b'{"model":"m","text":"\\"key\\": null, \\ud83d\\ude00 null"}'

    assert lenient.repair_request(body) == body


@examples(100)
@given(VALUES)
def test_halves_of_characters_become_the_replacement_character_and_nothing_else_changes(value: Any) -> None:
    written = json.dumps(value).encode()

    repaired = lenient.repair_surrogates(written)

    assert msgspec.json.decode(repaired) == replaced(json.loads(written))


def replaced(value: Any) -> Any:
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, list):
        return [replaced(one) for one in value]
    if isinstance(value, dict):
        return {replaced(key): replaced(one) for key, one in value.items()}
    return value


def test_half_a_character_is_replaced_wherever_a_large_body_is_cut() -> None:
    text = '"' + "\\\\\\ud83d\\ude00x\\ud83d" * 200_000 + '"'

    repaired = lenient.repair_surrogates(text.encode())

    assert msgspec.json.decode(repaired) == "\\😀x\ufffd" * 200_000


@pytest.mark.parametrize("at", range((1 << 20) - 20, (1 << 20) + 4))
def test_a_null_member_and_half_a_character_are_found_wherever_a_large_body_is_cut(at: int) -> None:
    for member in (b'"k":null', b'"k": null', b'"k" : null'):
        text = b"a" * (at - len(b'{"t":"",'))
        assert lenient.without_nulls(b'{"t":"%b",%b}' % (text, member)) == b'{"t":"%b"}' % text
    assert lenient.repair_surrogates(b"%b\\ud83d" % (b"a" * at)) == b"%b\\ufffd" % (b"a" * at)


def test_a_byte_order_mark_before_a_request_is_skipped() -> None:
    assert lenient.repair_request(b'\xef\xbb\xbf{"model":"m"}') == b'{"model":"m"}'


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_request_with_a_number_that_json_lacks_is_refused_with_its_field(word: str) -> None:
    with pytest.raises(BadRequest, match=f"{word} is no number in JSON") as refused:
        wire.read(b'{"model": "m", "temperature": %b}' % word.encode(), dict)

    assert refused.value.fault().param == "temperature"


# Answers


LOGPROBS = {"content": [{"token": "A", "logprob": float("-inf"), "top_logprobs": [{"logprob": float("nan")}]}]}


def strict(data: bytes) -> Any:
    """Parse JSON as strict parsers do."""
    return json.loads(data.decode(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_numbers_that_json_lacks_are_null_in_a_whole_answer() -> None:
    parsed = read_request("chat", json.dumps(REQUESTS["chat"]).encode(), Traits())
    body = json.loads(completion(content="A"))
    body["choices"][0]["logprobs"] = LOGPROBS

    plain = parsed.answer("a", 1).plain(json.dumps(body).encode())

    answer = strict(plain.body)["choices"][0]
    assert (answer["message"]["content"], answer["logprobs"]["content"][0]["logprob"]) == ("A", None)


def chat_stream(wire_bytes: bytes) -> list[Json | str]:
    """Return the data of a client's chat stream."""
    return pieces(replay(Reply(id="c", model="m").stream, wire_bytes))


def test_numbers_that_json_lacks_are_null_in_a_stream() -> None:
    piece = chunk(content="A")
    piece["choices"][0]["logprobs"] = LOGPROBS

    first, *_, last = chat_stream(stream_of(piece, chunk("stop")))

    assert isinstance(first, dict)
    assert first["choices"][0]["logprobs"]["content"] == [
        {"token": "A", "logprob": None, "top_logprobs": [{"logprob": None}]}
    ]
    assert last == "[DONE]"


@pytest.mark.parametrize("half", [b'"\\ud83d"', b'"\xf0\x9f"'])
def test_half_a_character_in_a_stream_is_the_replacement_character(half: bytes) -> None:
    out = chat_stream(stream_of(chunk(content="HALF"), chunk("stop")).replace(b'"HALF"', half))

    assert isinstance(out[0], dict)
    assert (out[0]["choices"][0]["delta"]["content"], out[-1]) == ("\ufffd", "[DONE]")


def test_events_of_null_are_skipped() -> None:
    whole = stream_of(chunk(content="A"), chunk("stop"))

    assert chat_stream(b"data: null\n\n" + whole) == chat_stream(whole)


def test_a_score_that_is_not_a_number_is_null() -> None:
    parsed = rerank.read(b'{"model":"m","query":"q","documents":["d"]}')

    plain = parsed.plain(b'{"results":[{"index":0,"relevance_score":NaN}]}')

    assert strict(plain.body)["results"] == [{"index": 0, "relevance_score": None}]


def test_an_embedding_that_holds_no_number_is_no_answer() -> None:
    parsed = embeddings.read(b'{"model":"m","input":"x"}')

    with pytest.raises(BadAnswer):
        parsed.plain(b'{"data":[{"embedding":[0.5,NaN]}]}')


def test_a_null_in_ollamas_schema_is_a_value_and_one_in_a_format_of_others_is_left_out() -> None:
    schema = b'{"format":{"type":"object","properties":{"a":{"default":null}}}}'
    other = b'{"text":{"format":{"type":"text","name":null}}}'

    assert lenient.without_nulls(schema) == schema
    assert lenient.without_nulls(other) == b'{"text":{"format":{"type":"text"}}}'
