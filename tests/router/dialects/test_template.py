"""Chunks that are relayed without decoding become what decoding makes of them, however the stream is cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.chat.stream import ChatStream, Reply
from cortex.router.dialects.core import chunks
from cortex.router.dialects.core import stream as core_stream
from cortex.router.dialects.core.template import template_of
from tests.router.dialects.examples import examples
from tests.router.dialects.request_builders import messages_request, responses_request

TEXTS = st.text(max_size=12) | st.sampled_from(['"', "\\", "\n", "a\tb", "…", "\x7f", "\\u0041", "data: ", "}\n\n"])


def a_chunk(text: Any, *, name: str = "content", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {name: text}, "logprobs": None, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def encoded(chunk: Any, *, ascii: bool = False, colon: str = ":") -> bytes:
    return json.dumps(chunk, ensure_ascii=ascii, separators=(",", colon)).encode("utf-8", "surrogatepass")


def frame(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def relayed(pieces: list[bytes], *, decodes: bool, model: str = "m") -> tuple[bytes, int, object]:
    """Return what a client gets, with templates or without."""
    stream = ChatStream(Reply(id="c", model=model, usage_is_ours=True))
    if decodes:
        stream._templates = core_stream.TEMPLATES
    output = b"".join(stream.feed(piece) for piece in pieces) + stream.close()
    return output, stream.rough_tokens, stream.tokens


END = [
    frame(encoded({**a_chunk(""), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})),
    frame(encoded({**a_chunk(""), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})),
    b"data: [DONE]\n\n",
]

FRAMES = st.one_of(
    st.builds(lambda text, ascii: frame(encoded(a_chunk(text), ascii=ascii)), TEXTS, st.booleans()),
    st.builds(lambda text: frame(encoded(a_chunk(text), colon=": ")), TEXTS),
    st.builds(lambda text: frame(encoded(a_chunk(text, name="reasoning_content"))), TEXTS),
    st.builds(lambda text: frame(encoded(a_chunk(text, name="reasoning"))), TEXTS),
    st.builds(lambda text, at: frame(encoded(a_chunk(text) | {"created": at})), TEXTS, st.integers(1, 2)),
    st.sampled_from(
        [
            b": a comment\n\n",
            b"data: null\n\n",
            b"\n",
            frame(encoded(a_chunk("a") | {"model": "other"})),
            frame(encoded(a_chunk("a") | {"usage": {"prompt_tokens": 3, "completion_tokens": 1}})),
            frame(encoded(a_chunk(None) | {"error": {"message": "broken"}})),
            frame(encoded(a_chunk("a")).replace(b'"a"', b'"\xff"')),
            frame(encoded(a_chunk("a")).replace(b'"a"', b'"\\ud800"')),
            frame(encoded(a_chunk("a")).replace(b'"a"', b'"a","x":NaN')),
            frame(encoded(a_chunk("a")).replace(b'"a"', b'"a\x01"')),
            frame(encoded(a_chunk("a")).replace(b'"a"', b'"a","role":"assistant"')),
            frame(encoded(a_chunk("a")).replace(b'"a"', b'"","tool_calls":[{"index":0,"function":{"name":"f"}}]')),
            frame(encoded(a_chunk("a"))).replace(b"data: ", b"data:"),
            frame(encoded(a_chunk("a"))).replace(b"\n", b"\r\n"),
            b"event: x\n" + frame(encoded(a_chunk("a"))),
        ]
    ),
)


@given(st.lists(FRAMES, max_size=12), st.sampled_from(["m", "an alias"]), st.data())
@examples(100)
def test_a_stream_is_the_same_with_and_without_templates_however_it_is_cut(
    frames: list[bytes], model: str, data: st.DataObject
) -> None:
    whole = b"".join([frame(encoded(a_chunk("first"))), *frames, *END])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    expected = relayed([whole], decodes=True, model=model)
    assert relayed(pieces, decodes=True, model=model) == expected
    assert relayed(pieces, decodes=False, model=model) == expected


def in_chunk(data: bytes, framing: str) -> bytes:
    """Return a piece of a stream as HTTP frames it (`right`), or in a form that the parser has to read."""
    size = b"%x" % (len(data) + (framing == "wrong"))
    return {"upper": size.upper(), "zeros": b"0" + size, "extension": size + b";a=b"}.get(framing, size) + (
        b"\r\n%b\r\n" % data
    )


def unframed(chunks: bytes) -> bytes:
    data = b""
    while chunks:
        line, _, rest = chunks.partition(b"\r\n")
        size = int(line, 16)
        assert line == b"%x" % size
        assert rest[size : size + 2] == b"\r\n"
        data, chunks = data + rest[:size], rest[size + 2 :]
    return data


FRAMINGS = st.sampled_from(["right"] * 6 + ["upper", "zeros", "extension", "wrong"])


@given(st.lists(st.tuples(FRAMES, FRAMINGS), max_size=12), st.sampled_from(["m", "an alias"]), st.data())
@examples(300)
def test_a_stream_in_chunks_of_http_is_the_same_with_and_without_their_framing(
    frames: list[tuple[bytes, str]], model: str, data: st.DataObject
) -> None:
    pieces = [(frame(encoded(a_chunk("first"))), "right"), *frames, *((end, "right") for end in END)]
    cut = data.draw(st.integers(0, len(pieces) - 1))  # one event in two chunks
    (whole, _), at = pieces[cut], data.draw(st.integers(0, 40))
    pieces[cut : cut + 1] = [(part, "right") for part in (whole[:at], whole[at:]) if part]
    expected = relayed([piece for piece, _ in pieces], decodes=True, model=model)

    stream, output = ChatStream(Reply(id="c", model=model, usage_is_ours=True)), b""
    while pieces:
        together = data.draw(st.integers(1, 4), label="chunks that arrive together")
        arrived, pieces = pieces[:together], pieces[together:]
        chunks = b"".join(in_chunk(piece, framing) for piece, framing in arrived)
        passed_on = stream.feed_chunk(chunks) if stream.feed_chunk else b""
        output += unframed(passed_on) if passed_on else stream.feed(b"".join(piece for piece, _ in arrived))
    output += stream.close()

    assert (output, stream.rough_tokens, stream.tokens) == expected


def test_words_in_chunks_of_http_need_no_parser() -> None:
    words = [frame(encoded(a_chunk(f" word {n}"))) for n in range(10)]
    for model in ("m", "an alias"):
        stream = ChatStream(Reply(id="c", model=model))
        stream.feed(words[0])
        assert stream.feed_chunk
        assert all(stream.feed_chunk(in_chunk(word, "right")) for word in words)
        assert not any(stream.feed_chunk(in_chunk(word, framing)) for word in words for framing in ("wrong", "upper"))
        assert unframed(stream.feed_chunk(b"".join(in_chunk(word, "right") for word in words))).count(b"word") == 10
        assert not stream.feed_chunk(in_chunk(words[0], "right") + in_chunk(words[1], "wrong"))


def translated(dialect: str, pieces: list[bytes], *, decodes: bool) -> tuple[bytes, int, object]:
    """Return what a client of another dialect gets, with templates or without."""
    builder = messages_request() if dialect == "messages" else responses_request()
    stream = builder.answer("ID", 1).stream("ID")
    assert isinstance(stream, core_stream.TranslatedStream)
    if decodes:
        stream._templates = core_stream.TEMPLATES
    output = [stream.feed(piece) for piece in pieces] + [stream.close()]
    return b"".join(output), stream.rough_tokens, stream.tokens


@given(st.lists(FRAMES, max_size=12), st.sampled_from(["messages", "responses"]), st.data())
@examples(100)
def test_a_translated_stream_is_the_same_with_and_without_templates_however_it_is_cut(
    frames: list[bytes], dialect: str, data: st.DataObject
) -> None:
    whole = b"".join([frame(encoded(a_chunk("first"))), *frames, *END])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    expected = translated(dialect, [whole], decodes=True)
    assert translated(dialect, pieces, decodes=True) == expected
    assert translated(dialect, pieces, decodes=False) == expected


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=8))
@examples(80)
def test_texts_one_by_one_are_the_same_with_and_without_templates(texts: list[str]) -> None:
    pieces = [frame(encoded(a_chunk(text))) for text in ("first", *texts)] + END

    assert relayed(pieces, decodes=False) == relayed(pieces, decodes=True)


def test_a_stream_of_words_is_decoded_at_its_beginning_and_its_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def counted(data: bytes) -> Any:
        nonlocal count
        count += 1
        return decode(data)

    decode = chunks.decode_strict
    monkeypatch.setattr(chunks, "decode_strict", counted)
    begin = frame(encoded(a_chunk("", role="assistant")))
    words = [frame(encoded(a_chunk(text))) for text in ["first", *(f" word {n}\n" for n in range(1000))]]
    together = [b"".join(words[at : at + 3]) for at in range(0, len(words), 3)]

    for pieces, model in ((words, "m"), (together, "m"), (together, "an alias")):
        count = 0
        output, tokens, _ = relayed([begin, words[0], *pieces, *END], decodes=False, model=model)
        assert output.count(b'"content":" word') == 1000
        assert (count, tokens) == (4, 2002)
    for dialect in ("messages", "responses"):
        count = 0
        output, tokens, _ = translated(dialect, [begin, words[0], *together, *END], decodes=False)
        assert output.count(b'"text":" word' if dialect == "messages" else b'"delta":" word') == 1000
        assert (count, tokens) == (4, 2002)


@pytest.mark.parametrize(
    "chunk",
    [
        a_chunk(""),
        a_chunk(None),
        a_chunk("a", usage={"prompt_tokens": 1}),
        a_chunk("a") | {"choices": []},
        a_chunk("a") | {"choices": a_chunk("a")["choices"] * 2},
        a_chunk("a") | {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        a_chunk("a") | {"choices": [{"index": 0, "delta": {"content": "a", "role": "assistant"}}]},
        a_chunk("a") | {"choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "b"}}]},
        a_chunk("a") | {"choices": [{"index": 0, "delta": {"content": "a"}, "text": "b"}]},
        a_chunk("a") | {"x": {"content": "a"}},
    ],
)
def test_a_chunk_with_more_than_one_text_is_no_template(chunk: Any) -> None:
    data = encoded(chunk)

    assert template_of(chunks.decode(data), data) is None
