"""Stored responses: what a request wants, what it continues, and what is kept of a stream."""

import json
from typing import Any

import pytest

from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.responses import stored
from cortex.router.dialects.responses.stored import Recording, State
from tests.router.dialects.request_builders import responses_request

CALM: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": "a", "id": "msg_1"}]


def state(**fields: Any) -> State:
    return stored.read_state(json.dumps({"model": "m", "input": "x", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, State(store=True)),
        ({"store": None}, State(store=True)),
        ({"store": False}, State(store=False)),
        ({"background": True, "stream": True}, State(store=True, background=True, stream=True)),
        ({"previous_response_id": "resp_1"}, State(store=True, previous_response_id="resp_1")),
        ({"conversation": "conv_1"}, State(store=True, conversation="conv_1")),
        ({"conversation": {"id": "conv_1"}}, State(store=True, conversation="conv_1")),
    ],
)
def test_the_state_that_a_request_needs_is_read(fields: dict[str, Any], expected: State) -> None:
    assert state(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": "a", "conversation": "b"}, "previous_response_id"),
        ({"previous_response_id": 3}, "previous_response_id"),
        ({"conversation": {}}, "conversation.id"),
        ({"store": "yes"}, "store"),
    ],
)
def test_an_invalid_state_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        state(**fields)

    assert refused.value.param == param


def test_every_item_of_a_request_has_an_id() -> None:
    body = json.dumps({"input": [{"role": "user", "content": "a"}, {"type": "function_call", "id": "fc_9"}]}).encode()

    assert [item["id"] for item in stored.items_of(body, "u")] == ["msg_u_i0", "fc_9"]
    assert stored.items_of(b'{"input":"hi"}', "u") == [
        {**stored.message("hi"), "id": "msg_u_i0"},
    ]
    assert stored.items_of(b'{"input":null}', "u") == []


def test_a_request_continues_items_and_may_refer_to_them() -> None:
    own = [{"type": "item_reference", "id": "msg_1"}, {"type": "message", "id": "msg_2"}]

    assert stored.join_items(CALM, own, CALM) == [*CALM, *CALM, own[1]]


def test_a_reference_to_an_unknown_item_names_its_place() -> None:
    with pytest.raises(BadRequest) as refused:
        stored.join_items(CALM, [{"type": "item_reference", "id": "msg_9"}], CALM)

    assert refused.value.param == "input[0].id"


def test_a_reference_names_the_response_of_its_item() -> None:
    ids = ["msg_1", "msg_abc_0", "fc_abc_1", "rs_def_i2", "no/id", "msg_abc", "msg_a_b_1"]
    own = [{"type": "item_reference", "id": id} for id in ids]

    assert stored.references(CALM, own) == ["resp_abc", "resp_def"]
    assert stored.references([{"id": "msg_abc_0"}], own[:2]) == []


def test_the_worker_gets_the_items_without_the_state() -> None:
    body = json.dumps({"model": "m", "input": "x", "store": True, "previous_response_id": "r", "background": True})

    assert json.loads(stored.stateless(body.encode(), CALM)) == {"model": "m", "input": CALM}
    assert json.loads(stored.stateless(body.encode(), None)) == {"model": "m", "input": "x"}


def events(*chunks: bytes) -> bytes:
    """Return the events that a client gets for a worker's stream."""
    stream = responses_request().answer("u", 1).stream()
    pieces: list[bytes] = [stream.open(), *(stream.feed(chunk) for chunk in chunks)]
    return b"".join(pieces)


def a_chunk(**delta: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_that_breaks_off_is_stored_as_far_as_it_came(size: int) -> None:
    wire = events(a_chunk(role="assistant", content="The harbour "), a_chunk(content="is quiet"))
    recording = Recording()
    for at in range(0, len(wire), size):
        recording.feed(wire[at : at + size])

    saved = json.loads(recording.response("cancelled") or b"")

    assert (saved["status"], recording.is_over) == ("cancelled", False)
    (item,) = saved["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "The harbour is quiet")


def test_a_complete_stream_is_stored_as_its_last_event_has_it() -> None:
    recording = Recording()
    stream = responses_request().answer("u", 1).stream()
    finish = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()
    recording.feed(stream.open() + stream.feed(a_chunk(content="Hi")) + stream.feed(b"data: %b\n\n" % finish))
    recording.feed(stream.feed(b"data: [DONE]\n\n") + stream.close())

    saved = json.loads(recording.response("cancelled") or b"")

    assert (saved["status"], recording.is_over) == ("completed", True)
    assert saved["output"][0]["content"][0]["text"] == "Hi"


def test_a_stream_without_events_is_not_stored() -> None:
    recording = Recording()
    recording.feed(b": waiting\n\n")

    assert recording.response("cancelled") is None


ITEMS = [{"id": str(number)} for number in range(5)]


@pytest.mark.parametrize(
    ("limit", "order", "after", "ids", "more"),
    [
        (20, "desc", "", "43210", False),
        (2, "asc", "", "01", True),
        (2, "asc", "1", "23", True),
        (2, "desc", "1", "0", False),
        (5, "asc", "", "01234", False),
    ],
)
def test_a_page_has_the_items_that_follow(limit: int, order: str, after: str, ids: str, more: bool) -> None:
    page = stored.page(ITEMS, limit, order, after)

    assert "".join(item["id"] for item in page.data) == ids
    assert (page.has_more, page.first_id, page.last_id) == (more, ids[0], ids[-1])


@pytest.mark.parametrize(
    ("limit", "order", "after"), [(0, "asc", ""), (101, "asc", ""), (1, "up", ""), (1, "asc", "x")]
)
def test_an_invalid_page_is_refused(limit: int, order: str, after: str) -> None:
    with pytest.raises(BadRequest):
        stored.page(ITEMS, limit, order, after)
