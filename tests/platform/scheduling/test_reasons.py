"""Reasons of drains: what code compares, and the text that is made from it."""

import msgspec
import pytest

from cortex.functions.lifecycle import State
from cortex.platform.record import DrainReason, Instance
from cortex.platform.scheduling.reasons import drain_text
from tests.support.factories import an_instance


@pytest.mark.parametrize(
    ("reason", "detail", "text"),
    [
        (DrainReason.IDLE, "", "idle"),
        (DrainReason.EVICTED, "org/next", "evicted for org/next"),
        (DrainReason.TURN, "org/next", "closed for the turn of org/next"),
        (DrainReason.MOVED, "gpu-0, gpu-1", "moved to gpu-0, gpu-1"),
    ],
)
def test_the_text_of_a_reason_names_what_the_drain_is_for(reason: DrainReason, detail: str, text: str) -> None:
    assert drain_text(reason, detail) == text


def test_a_record_with_a_reason_of_a_later_release_is_read() -> None:
    draining = an_instance(state=State.DRAINING, reason=DrainReason.IDLE, why="idle")
    later = msgspec.json.encode(draining).replace(b'"reason":"idle"', b'"reason":"too warm"')

    read = msgspec.json.decode(later, type=Instance)

    assert (read.reason, read.why) == (DrainReason.OTHER, "idle")


def test_a_record_of_an_earlier_release_has_the_text_and_no_reason() -> None:
    earlier = msgspec.json.encode(an_instance(state=State.DRAINING, why="idle")).replace(b'"reason":null,', b"")

    read = msgspec.json.decode(earlier, type=Instance)

    assert (read.reason, read.why) == (None, "idle")
