"""How long one hostile body holds a router worker's loop, beside what decoding the same bytes costs."""

import json
import subprocess
import sys

import pytest

from tests.support.stalls import SHAPES

FLOOR_S = 1.0
"""What a machine with other work on it takes now and then whatever is done."""


def stalls(size_mb: int, *shapes: str) -> dict[str, dict[str, float]]:
    run = [sys.executable, "-m", "tests.support.stalls", str(size_mb << 20), *shapes]
    found: dict[str, dict[str, float]] = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    print(found)
    return found


def test_large_bodies_leave_the_loop_to_others() -> None:
    for shape in stalls(16, "tools without anything", "parts of a megabyte").values():
        assert max(shape["chat"], shape["messages"]) < FLOOR_S + 2 * shape["decoding"]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_64_mib_leave_the_loop_to_others_and_take_no_more_than_a_few_times_their_size(shape: str) -> None:
    found = stalls(64, shape)[shape]

    assert max(found["chat"], found["messages"]) < FLOOR_S + 2 * found["decoding"]
    assert found["grown_mb"] < 4 * 64
