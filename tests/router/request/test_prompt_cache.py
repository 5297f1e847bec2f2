"""Whose prompts a request may find in a worker's cache, and what its client is told of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.servers import server_of
from cortex.functions.spec import Engine, Function
from cortex.platform.agent_messages import Seat
from cortex.router.dialects import native
from cortex.router.request.prompt_cache import (
    UNKNOWN,
    HiddenCounts,
    SlotTable,
    slots_to_seat,
    with_salt,
    with_seat,
)

BODY = b'{"messages":[{"role":"user","content":"a plan"}],"model":"m"}'
LLAMA = Function(id="m", engine=Engine.LLAMACPP, target_concurrency=4)


def seat(table: SlotTable, salt: str, body: bytes = BODY, number: int | None = 2, company: int = 0) -> Seat:
    """Serve one request from its beginning to its end."""
    with table.seat("i", number, salt, body, company) as result:
        return result


@pytest.mark.parametrize(
    ("engine", "ran", "way"),
    [
        (Engine.VLLM, "", "salt"),
        (Engine.LLAMACPP, "llama-server", "slots"),
        (Engine.LLAMACPP, "xllamacpp", "slots"),
        (Engine.LLAMACPP, "llama_cpp.server", "none"),
        (Engine.COMMAND, "", "none"),
    ],
)
def test_each_server_keeps_keys_apart_in_its_own_way(engine: Engine, ran: str, way: str) -> None:
    assert server_of(Function(id="m", engine=engine), ran).isolation == way


def test_a_salt_is_written_into_the_body_whatever_the_client_sent() -> None:
    answer = json.loads(bytes(with_salt(b'{"cache_salt":"theirs","model":"m"}', "ours")))

    assert answer == {"cache_salt": "ours", "model": "m"}


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        (UNKNOWN, {"cache_prompt": False}),
        (Seat(slot=3, may_reuse=False), {"id_slot": 3, "cache_prompt": False}),
        (Seat(slot=3, may_reuse=True), {"id_slot": 3}),
    ],
)
def test_a_seat_is_written_into_the_body(place: Seat, fields: dict[str, object]) -> None:
    assert json.loads(bytes(with_seat(BODY, place))) == json.loads(bytes(BODY)) | fields


def test_a_key_finds_its_own_prompt_again_and_another_key_does_not() -> None:
    table = SlotTable()

    places = [seat(table, salt, number=1) for salt in ("one", "one", "other", "one")]

    assert [p.may_reuse for p in places] == [False, True, False, False]


def test_a_conversation_goes_on_in_its_own_slot() -> None:
    table = SlotTable()
    plan, song = b'{"messages":"' + b"plan " * 50, b'{"messages":"' + b"song " * 50
    first = seat(table, "one", plan + b'"}')
    second = seat(table, "one", song + b'"}')

    again = seat(table, "one", plan + b'and more"}')

    assert (first.slot, second.slot) == (0, 1)
    assert again == Seat(slot=0, may_reuse=True)


def test_the_slot_that_was_used_longest_ago_goes_to_the_next_key() -> None:
    table = SlotTable()
    for salt in ("one", "two"):
        seat(table, salt)

    assert seat(table, "three") == Seat(slot=0, may_reuse=False)


def test_a_request_beside_as_many_as_there_are_slots_reuses_nothing_and_no_slot_is_known_after_it() -> None:
    table = SlotTable()
    with table.seat("i", 1, "one", BODY, 0):
        companions = seat(table, "one", number=1)

    assert companions == UNKNOWN
    assert not seat(table, "one", number=1).may_reuse


def test_nothing_is_reused_while_a_request_takes_slots_of_its_own_choice_nor_right_after() -> None:
    table = SlotTable()
    seat(table, "one")
    with table.seat("i", None, "other", BODY, 0):
        meanwhile = [seat(table, "one") for _ in range(2)]
    after = seat(table, "one")

    assert not any(place.may_reuse for place in [*meanwhile, after])
    assert seat(table, "one").may_reuse


def test_nothing_is_reused_of_what_was_there_before_another_router_came() -> None:
    table = SlotTable()
    seat(table, "one", company=0)

    assert not seat(table, "one", company=1).may_reuse
    assert seat(table, "one", company=1).may_reuse


Step = tuple[str, bytes, bool]


@given(
    st.lists(
        st.tuples(st.sampled_from(["one", "two", "three"]), st.sampled_from([b"abcd", b"abxy", b"zzzz"]), st.booleans())
    ),
    st.integers(1, 3),
)
def test_a_request_reuses_only_what_its_own_key_left(steps: list[Step], number: int) -> None:
    table = SlotTable()
    left: dict[int, str] = {}
    for salt, body, is_seated in steps:
        place = seat(table, salt, body, number if is_seated else None)
        if place.slot is None:
            left = dict.fromkeys(range(number), salt + "?")  # any slot may hold its prompt
            continue
        assert not place.may_reuse or left.get(place.slot) == salt
        left[place.slot] = salt


@pytest.mark.parametrize(
    ("function", "answers", "number"),
    [
        (LLAMA, 1, 4),
        (LLAMA, 2, None),
        (Function(id="m", engine=Engine.LLAMACPP, args=("--cache-ram", "99")), 1, None),
        (Function(id="m", engine=Engine.LLAMACPP, args=("-np", "2")), 1, None),
    ],
)
def test_a_request_is_seated_only_where_all_that_fills_the_slots_is_known(
    function: Function, answers: int, number: int | None
) -> None:
    assert slots_to_seat(function, server_of(function, "xllamacpp"), answers) == number


@pytest.mark.parametrize(
    ("engine", "kind", "is_shared", "handed"),
    [
        (Engine.VLLM, "messages", True, True),
        (Engine.VLLM, "messages", False, False),
        (Engine.VLLM, "responses", False, True),
        (Engine.LLAMACPP, "messages", False, False),
        (Engine.LLAMACPP, "responses", False, True),
        (Engine.COMMAND, "responses", True, True),
        (Engine.COMMAND, "responses", False, False),
    ],
)
def test_a_dialect_is_handed_over_only_where_the_engine_keeps_keys_apart_in_it(
    engine: Engine, kind: native.NativeDialect, is_shared: bool, handed: bool
) -> None:
    function = Function(id="m", engine=engine, native=("messages", "responses"))

    assert (native.native_dialect(function, kind, cache_is_shared=is_shared) == kind) is handed


ANSWER = (
    b'data: {"choices":[{"delta":{"content":"\\"cached_tokens\\": 5"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens": 8}},'
    b'"timings":{"cache_n":8,"prompt_n":1}}\n\ndata: [DONE]'
)
HIDDEN = (
    b'data: {"choices":[{"delta":{"content":"\\"cached_tokens\\": 5"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens": null}},'
    b'"timings":{"cache_n":null,"prompt_n":null}}\n\ndata: [DONE]'
)


@pytest.mark.parametrize("size", [1, 7, len(ANSWER)])
def test_counts_of_what_was_cached_are_taken_out_of_a_stream_and_counted_for_the_operator(size: int) -> None:
    hidden = HiddenCounts()

    shown = b"".join(hidden.feed(ANSWER[at : at + size]) for at in range(0, len(ANSWER), size)) + hidden.close()

    assert shown == HIDDEN
    assert hidden.cached == 8
