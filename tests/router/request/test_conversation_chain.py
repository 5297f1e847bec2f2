"""What identifies a conversation."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cortex.router.request.conversation_chain import PIECE, chain_of, mark_of, marks

HELLO, ANSWER, NEXT = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes?"), ("user", "Go")))


def chain(*messages: Any, **more: Any) -> tuple[bytes, ...]:
    return chain_of(json.dumps({"model": "m", "messages": messages, **more}).encode())


def test_a_request_has_the_digests_of_all_its_earlier_ones() -> None:
    first, second = chain(HELLO, max_tokens=5), chain(HELLO, ANSWER, NEXT, stream=True)

    assert len(second) == 3
    assert first[-1] == second[0]
    assert second[:2] == chain(HELLO, ANSWER)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_two_conversations_share_a_digest_exactly_where_they_share_a_beginning(
    one: list[str], other: list[str]
) -> None:
    first, second = chain(*one), chain(*other)
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    assert set(first) & set(second) == set(first[:same])


def test_other_tools_or_template_variables_make_another_conversation() -> None:
    plain = chain(HELLO)

    assert plain != chain(HELLO, tools=[{"type": "function"}])
    assert plain != chain(HELLO, chat_template_kwargs={"enable_thinking": False})
    assert chain(HELLO, tools=[1])[0] == chain(HELLO, ANSWER, tools=[1])[0]


def test_messages_are_not_confused_with_messages_of_other_lengths() -> None:
    assert chain("ab", "c")[-1] != chain("a", "bc")[-1]
    assert chain_of(b'{"messages":["x"],"instructions":"y"}') != chain_of(b'{"messages":["x"],"tools":"y"}')


def test_a_prompt_is_continued_by_every_longer_one() -> None:
    text = "a" * PIECE + "b" * PIECE + "c"

    def of(prompt: object) -> tuple[bytes, ...]:
        return chain_of(json.dumps({"prompt": prompt}).encode())

    assert of(text + "d" * PIECE)[:2] == of(text)
    assert len(of(text)) == 2
    assert of("short") == ()
    assert of([text, text]) == of([1, 2]) == of(None) == ()


def test_what_is_no_request_has_no_conversation() -> None:
    for body in (b"", b"[]", b"{}", b'{"messages":5}', b'{"messages":[}', b"\xff"):
        assert chain_of(body) == ()


def test_a_mark_needs_the_salt_the_host_and_the_function() -> None:
    digest = chain(HELLO)[-1]
    mark = mark_of("salt", "host-a", "org/model", digest)

    others = [
        mark_of("other", "host-a", "org/model", digest),
        mark_of("", "host-a", "org/model", digest),
        mark_of("salt", "host-b", "org/model", digest),
        mark_of("salt", "host-a", "org/other", digest),
        mark_of("salt", "host-a", "org/model", chain(ANSWER)[-1]),
    ]

    assert len({mark, *others}) == 6
    assert list(marks("salt", "host-a", "org/model", chain(HELLO, ANSWER)))[-1] == (1, mark)
