"""Heads that come again: which messages are compared, and for how long."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cortex.platform.serving.known_heads import MISSES, MOST, PAUSE, KnownHeads, has_lines, match, split

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nA: b\r\n\r\n"


def test_a_whole_message_is_its_head_its_length_and_its_body() -> None:
    message = split(HEAD % 5 + b"hello")

    assert message is not None
    assert message.head == (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ", b"\r\nA: b\r\n\r\n")
    assert (message.length, message.body) == (b"5", b"hello")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        HEAD[:-2] % 5,
        HEAD % 5 + b"hell",
        HEAD % 5 + b"hello" + HEAD % 0,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Content-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nA: b\r\n content-length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nA: b\r\n\r\nx\r\nContent-Length: 0\r\n",
    ],
    ids=[
        "nothing", "empty lines", "half a head", "half a body", "two messages", "chunks", "no length", "another header",
        "a folded line", "no number", "a length in the body",
    ],
)  # fmt: skip
def test_other_pieces_are_left_to_the_parser(data: bytes) -> None:
    assert split(data) is None


PIECES = st.lists(
    st.sampled_from(
        [b"POST / HTTP/1.1\r\n", b"Content-Length: ", b"content-length: ", b"A: b", b"\r\n", b"\r", b"\n", b"0", b"5",
         b"05", b"x", b"123456789", b"1234567890", b"hello", b"-", b" "]
    ),
    max_size=14,
).map(b"".join)  # fmt: skip


@given(data=PIECES, length=st.integers(0, 12), body=st.binary(max_size=12))
@example(data=HEAD % 5, length=5, body=b"hello")
def test_a_head_matches_exactly_the_messages_that_split_to_it(data: bytes, length: int, body: bytes) -> None:
    learned = split(HEAD % 0)
    assert learned is not None

    for head in (learned.head, (b"X\r\nContent-Length: ", b"\r\n\r\n")):
        before, after = head
        for piece in (data, before + data + after + body, before + b"%d" % length + after + body):
            whole = split(piece)
            expected = (whole.length, whole.body) if whole is not None and whole.head == head else None
            assert match(piece, head) == expected


@pytest.mark.parametrize(
    ("head", "headers"),
    [
        (HEAD, 3),
        (b"\r\n" + HEAD, None),
        (HEAD.replace(b"\r\nHost", b"\nHost"), None),
        (b"GET / HTTP/1.1\nHost: x\n\n" + HEAD, None),
        (HEAD.replace(b"A: b", b"A: b\r\n c"), None),
    ],
    ids=["plain", "an empty line", "a line feed", "two messages", "a folded line"],
)
def test_a_head_is_one_messages_if_each_of_its_headers_is_a_line(head: bytes, headers: int | None) -> None:
    message = split(head % 0)

    assert message is not None
    assert has_lines(message.head, 3) is (headers == 3)


def test_heads_that_differ_are_not_compared_for_a_while() -> None:
    heads, message = KnownHeads[int](), HEAD % 0
    for number in range(MISSES):
        assert heads.split(message)
        assert heads.find((b"%d" % number, b"")) is None

    assert [heads.split(message) for _ in range(PAUSE)] == [None] * PAUSE
    assert heads.split(message)


def test_a_head_that_returns_keeps_the_others_compared() -> None:
    heads, head = KnownHeads[int](), (b"a", b"b")
    heads.learn(head, 1)
    for number in range(2 * MISSES):
        assert heads.find((b"%d" % number, b"")) is None
        assert heads.find(head) == 1

    assert heads.split(HEAD % 0)


def test_only_so_many_heads_are_remembered() -> None:
    heads = KnownHeads[int]()
    for number in range(MOST + 1):
        heads.learn((b"%d" % number, b""), number)

    assert heads.find((b"0", b"")) is None
    assert heads.find((b"%d" % MOST, b"")) == MOST
