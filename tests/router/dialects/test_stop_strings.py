"""Stop strings of servers that do not name the one that they stopped at."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core.stop_strings import MOST_CHARACTERS, StopCut
from cortex.router.dialects.core.traits import Traits
from tests.router.dialects.clients import events, pieces, split
from tests.router.dialects.examples import examples
from tests.router.dialects.request_builders import body_of, messages_request
from tests.router.dialects.test_arguments import split as split_text
from tests.router.dialects.workers import call, llama_chunk, usage_chunk, wire

LLAMA = Traits(names_stop=False)
TEXT = st.text("ab ", max_size=14)


def timed(content: str, tokens: int) -> dict[str, Any]:
    """A piece with llama.cpp's timings."""
    return llama_chunk(content=content) | {"timings": {"cache_n": 2, "prompt_n": 5, "predicted_n": tokens}}


def cut(stops: list[str], wire_bytes: bytes, size: int) -> list[dict[str, Any] | str]:
    machine = StopCut(stops)
    out = b"".join([machine.feed(piece) for piece in split(wire_bytes, size)]) + machine.close()
    return pieces(out)


@examples(60)
@given(
    text=TEXT,
    places=st.lists(st.integers(0, 14), max_size=5),
    stops=st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=3),
    size=st.sampled_from([1, 7, 10_000]),
)
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, places: list[int], stops: list[str], size: int
) -> None:
    chunks = [timed(part, n + 1) for n, part in enumerate(split_text(text, places))]
    ends = ((text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text)
    first = min(ends, default=None)

    out = cut(stops, wire(*chunks, llama_chunk("stop"), usage_chunk()), size)

    choices = [choice for piece in out if isinstance(piece, dict) for choice in piece["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == (text[: first[1]] if first else text)
    assert [choice.get("stop_reason") for choice in choices if choice.get("finish_reason")] == [
        first[2] if first else None
    ]
    assert out[-1] == "[DONE]"


def test_text_that_waits_is_sent_before_what_follows_it() -> None:
    out = cut(["xyz"], wire(timed("a xy", 1), llama_chunk(**call(0, "c", "f", "{}")), llama_chunk("tool_calls")), 9999)

    deltas = [piece["choices"][0]["delta"] for piece in out if isinstance(piece, dict)]
    assert [delta.get("content") for delta in deltas] == ["a ", "xy", None, None]
    assert deltas[2]["tool_calls"]


@pytest.mark.parametrize("stream", [True, False])
def test_messages_name_the_stop_sequence_and_count_the_tokens_so_far(stream: bool) -> None:
    request = messages_request(LLAMA, stop_sequences=["never", " bravo"], stream=stream)
    machine, reply = StopCut(request.cuts), request.answer("a", 1)
    worker = machine.feed(wire(timed("Alpha", 1), timed(" br", 2), timed("avo, more", 3), llama_chunk("stop")))

    machine_events = events(reply.stream().feed(worker))

    delta = next(event for event in machine_events if event["type"] == "message_delta")
    text = "".join(e["delta"]["text"] for e in machine_events if e["type"] == "content_block_delta")
    assert text == "Alpha"
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == ("stop_sequence", " bravo")
    assert (delta["usage"]["input_tokens"], delta["usage"]["output_tokens"]) == (5, 3)
    assert machine.over


def test_only_servers_that_name_no_stop_string_do_not_get_them() -> None:
    stops = ["a", "b"]

    assert body_of(messages_request(stop_sequences=stops))["stop"] == stops
    assert messages_request(stop_sequences=stops).cuts == ()
    assert "stop" not in body_of(messages_request(LLAMA, stop_sequences=stops))
    assert messages_request(LLAMA, stop_sequences=stops).cuts == ("a", "b")


def test_longer_stop_strings_than_are_searched_are_the_workers() -> None:
    long = "x" * (MOST_CHARACTERS + 1)

    assert body_of(messages_request(LLAMA, stop_sequences=[long]))["stop"] == [long]


@pytest.mark.parametrize("data", [b"data: not json\n\n", b'data: {"choices": 5}\n\n', b'data: {"error": {}}\n\n'])
def test_what_is_no_chunk_passes_unchanged(data: bytes) -> None:
    assert StopCut(["a"]).feed(data) == data
