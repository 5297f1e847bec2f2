"""Large JSON without its long strings is read, repaired and sent as it is with them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cortex.router.dialects.core import grammar, long_strings, wire
from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.core.large_object import LargeObject, head, tail, with_fields
from cortex.router.dialects.core.long_strings import Outline
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request
from cortex.router.request.assemble import streaming_request
from cortex.router.request.intake import repair
from cortex.router.request.prompt_cache import with_salt
from cortex.router.request.suspects import digest

MIB = 1 << 20
STEP = 16


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make short strings long ones: every boundary is near."""
    monkeypatch.setattr(long_strings, "_STEP", STEP)
    monkeypatch.setattr(long_strings, "_LOOK", 3 * STEP)
    monkeypatch.setattr(long_strings, "_PIECE", 2 * STEP)


LONG = st.builds(
    lambda start, length, end: start + "abc,: []"[: length % 9] * length + end,
    st.text('a1,:"\\{}é\n', max_size=3),
    st.integers(0, 30),
    st.text('a1,:"\\[]é ', max_size=3),
)
VALUES = st.recursive(
    LONG | st.integers() | st.just(" " * 40) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LONG, inner, max_size=4),
    max_leaves=12,
)
SPACES = st.sampled_from([{}, {"indent": 20}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@pytest.mark.usefixtures("short_steps")
@given(st.dictionaries(LONG, VALUES, max_size=5), SPACES)
@example({"": "", "abab": {"": ""}, "111": ['\\1"', '"' + "ab" * 19]}, {})
def test_it_has_the_same_fields_with_the_same_values(value: dict[str, Any], style: dict[str, Any]) -> None:
    raw = json.dumps(value, **style).encode()
    outline = Outline(raw)

    outline.check()
    fields = outline.fields()

    assert {name: bytes(outline.restore(part)) for name, part in fields.items()} == {
        name: bytes(part) for name, part in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items()
    }
    assert {name: outline.decode(part) for name, part in fields.items()} == value
    assert outline.restore_all(outline.text) == raw


@pytest.mark.usefixtures("short_steps")
@given(st.dictionaries(LONG, VALUES, max_size=3), st.integers(0), st.binary(min_size=1, max_size=40))
def test_what_is_no_json_is_refused_with_the_same_words(value: dict[str, Any], at: int, garbage: bytes) -> None:
    raw = json.dumps(value).encode()
    at %= len(raw)
    broken = raw[:at] + garbage + raw[at:]

    def fields_of(read: Any) -> Any:
        try:
            return {name: bytes(part) for name, part in read().items()}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return str(error)

    def outlined() -> dict[str, msgspec.Raw]:
        outline, fields = wire._outline(broken)
        return {name: outline.restore(part) for name, part in fields.items()}

    assert fields_of(outlined) == fields_of(lambda: msgspec.json.decode(broken, type=dict[str, msgspec.Raw]))


def body(content: str, more: str = "") -> bytes:
    return ('{"model":"m",' + more + '"messages":[{"role":"user","content":"' + content + '"}]}').encode()


@pytest.mark.parametrize("length", [MIB, 3 * MIB])
def test_a_large_body_is_outlined_in_a_few_bytes(length: int) -> None:
    outline = Outline(body("word " * (length // 5)))

    assert len(outline.text) < 200
    assert [end - start for start, end in outline.strings] == [length // 5 * 5]


@pytest.mark.parametrize(
    "text",
    ["1" * 2 * MIB, " " * 2 * MIB, "a" * MIB + "\\n" + "a" * MIB, "a" * MIB + "é" + "a" * MIB],
    ids=["digits", "spaces", "an escape", "an umlaut"],
)
def test_a_text_that_may_be_something_else_stays(text: str) -> None:
    assert Outline(body(text)).strings == ()


def test_a_control_character_in_a_long_string_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"not valid JSON.*invalid character \(byte \d{7}\)"):
        wire.read(body("a" * 2 * MIB + "\n" + "a" * 2 * MIB), dict)


def test_a_null_beside_a_long_string_is_left_out() -> None:
    large = body("word " * MIB, '"temperature":null,"stop":["\\ud800"],')

    repaired = json.loads(repair(large))

    assert repaired == {**json.loads(body("word " * MIB)), "stop": ["\ufffd"]}


def test_a_body_without_anything_to_repair_is_not_copied() -> None:
    large = body("word " * MIB)

    assert repair(large) is large


OBJECT = LargeObject({"model": (b'"m"',), "messages": (b"[", memoryview(b"[%b]" % (b"1," * MIB + b"2")), b"]")})


def test_an_object_in_pieces_has_the_bytes_of_the_whole() -> None:
    whole = bytes(OBJECT)

    assert json.loads(whole) == {"model": "m", "messages": [[1] * MIB + [2]]}
    assert len(OBJECT) == len(whole)
    assert b"".join(OBJECT.pieces) == whole
    assert OBJECT.pieces[1].obj == bytes(OBJECT.pieces[1])  # type: ignore[union-attr] # a view, not a copy


@pytest.mark.parametrize("size", [1, 10, 100_000, 3 * MIB])
def test_its_ends_are_those_of_the_whole(size: int) -> None:
    whole = bytes(OBJECT)

    assert (head(OBJECT, size), tail(OBJECT, size)) == (whole[:size], whole[-size:])
    assert (head(whole, size), tail(whole, size)) == (whole[:size], whole[-size:])


def test_fields_are_appended_and_replaced() -> None:
    changed = OBJECT.replace({"model": b'"n"', "stream": b"true"})
    longer = with_fields(changed, b'"id_slot":1')

    assert json.loads(longer.select(["model", "stream", "tools"])) == {"model": "n", "stream": True}  # type: ignore[union-attr]
    assert json.loads(bytes(longer)) == {"model": "n", "messages": [[1] * MIB + [2]], "stream": True, "id_slot": 1}
    assert "stream" in changed
    assert "stream" not in OBJECT


def test_what_reads_a_body_on_its_way_sees_the_same_in_pieces() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "pattern": "a"}}}
    large = OBJECT.replace({"tools": json.dumps([tool]).encode()})
    whole = bytes(large)

    assert digest("/v1/chat/completions", large) == digest("/v1/chat/completions", whole)
    for change in (streaming_request, grammar.loosen_request, lambda body: with_salt(body, "s"), lambda body: body):
        assert json.loads(bytes(change(large) or b"")) == json.loads(bytes(change(whole) or b""))
    assert streaming_request(large.replace({"logprobs": b"true"})) is None


def image(data: str) -> bytes:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()


@pytest.mark.parametrize("dialect", ["chat", "ollama_chat"])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("abc+" * (MIB // 2), None),
        ("abc/" * (MIB // 2) + "ab==", None),
        ("abcd" * (MIB // 2) + "ab=", "not valid base64"),
        ("abcd" * (MIB // 2) + "a", "not valid base64"),
        ("abcd" * (MIB // 4) + "ab*d" + "abcd" * (MIB // 4), "not valid base64"),
        ("abcd" * (MIB // 4) + "ab==" + "abcd" * (MIB // 4), "not valid base64"),
        ("abcd " * (MIB // 2), None),
    ],
)
def test_a_large_image_is_checked_to_its_end(dialect: Dialect, data: str, why: str | None) -> None:
    large = image(data)
    if dialect == "ollama_chat":
        url = "data:image/png;base64," + data
        large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a", "images": [url]}]}).encode()
    traits = Traits(vision=True)

    if why is None:
        sent = json.loads(bytes(read_request(dialect, large, traits).body("w")))
        assert data.replace(" ", "")[-100:] in json.dumps(sent).replace(" ", "")
    else:
        with pytest.raises(BadRequest, match=why):
            read_request(dialect, large, traits)


def test_a_large_chat_reaches_the_worker_as_it_was_sent() -> None:
    large = body("word " * MIB)

    sent = json.loads(bytes(read_request("chat", large, Traits()).body("m")))

    assert sent["messages"] == json.loads(large)["messages"]
