"""The decoder of server-sent events: the same events however the wire is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.sse import Event, SSEDecoder, encode_data
from tests.router.dialects.clients import split
from tests.router.dialects.examples import examples

WIRES = {
    b"data: a\n\n": [Event(b"a")],
    b"data:a\n\n": [Event(b"a")],
    b"data:  a\n\n": [Event(b" a")],
    b"data: a\r\n\r\n": [Event(b"a")],
    b"data: a\r\rdata: b\r\r": [Event(b"a"), Event(b"b")],
    b"event: x\ndata: a\n\ndata: b\n\n": [Event(b"a", b"x"), Event(b"b")],
    b"data: a\ndata: b\n\n": [Event(b"a\nb")],
    b": ping\n\ndata: a\n\n": [Event(b"a")],
    b"id: 1\nretry: 5\nother\ndata: a\n\n": [Event(b"a")],
    b"\xef\xbb\xbfdata: a\n\n": [Event(b"a")],
    b"data\n\n": [Event(b"")],
    b"event: x\n\n\n\n": [],
    "data: 日本🎈\n\n".encode(): [Event("日本🎈".encode())],
    b"data: a\n\ndata: cut": [Event(b"a"), Event(b"cut")],
    b"data: a\n": [Event(b"a")],
    b"": [],
}


def decoded(pieces: list[bytes]) -> list[Event]:
    decoder = SSEDecoder()
    actual = [event for piece in pieces for event in decoder.feed(piece)]
    return actual + decoder.close()


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("wire", WIRES)
def test_case_42_events_are_decoded_from_any_pieces(wire: bytes, size: int) -> None:
    assert decoded(split(wire, size)) == WIRES[wire]


@examples(60)
@given(st.lists(st.binary().map(lambda data: data.replace(b"\r", b"")), max_size=5), st.integers(1, 9))
def test_what_is_encoded_is_decoded_again(datas: list[bytes], size: int) -> None:
    wire = b"".join(encode_data(data) for data in datas)

    assert [event.data for event in decoded(split(wire, size))] == datas


@examples(60)
@given(st.lists(st.sampled_from([b"data: a", b"\r", b"\n", b"event: x", b":", b"data:", b"\xe6\x97"])))
def test_any_bytes_give_the_same_events_in_any_pieces(parts: list[bytes]) -> None:
    wire = b"".join(parts)

    assert decoded(parts) == decoded([wire]) == decoded(split(wire, 1))


@pytest.mark.parametrize("wire", [b"data: " + b"x" * 200, b"data: xxxxxxxx\n" * 30, b"data\n" * 200])
def test_an_endless_event_raises(wire: bytes) -> None:
    decoder = SSEDecoder(limit=100)

    with pytest.raises(BadAnswer, match="more than 100 bytes"):
        for piece in split(wire, 7):
            decoder.feed(piece)


def test_a_long_event_in_many_pieces_is_put_together_in_one_pass() -> None:
    decoder, piece = SSEDecoder(), b"x" * 16

    decoder.feed(b"data: ")
    for _ in range(200_000):
        assert decoder.feed(piece) == []
    (event,) = decoder.feed(b"\n\n")

    assert len(event.data) == 3_200_000
