"""How long one hostile body blocks a router worker's event loop, compared with decoding the same bytes."""

import json
import subprocess
import sys

import pytest

from tests.support.stalls import SHAPES

FLOOR_S = 1.0
"""Allowance for other load on the machine."""


def stalls(size_mb: int, *shapes: str) -> dict[str, dict[str, float]]:
    run = [sys.executable, "-m", "tests.support.stalls", str(size_mb << 20), *shapes]
    measured: dict[str, dict[str, float]] = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    print(measured)
    return measured


@pytest.mark.long
def test_large_bodies_do_not_block_the_event_loop() -> None:
    for shape in stalls(16, "tools without anything", "parts of a megabyte").values():
        assert max(shape["chat"], shape["messages"]) < FLOOR_S + 2 * shape["decoding"]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_64_mib_do_not_block_the_event_loop_and_take_a_few_times_their_size(shape: str) -> None:
    measured = stalls(64, shape)[shape]

    assert max(measured["chat"], measured["messages"]) < FLOOR_S + 2 * measured["decoding"]
    assert measured["grown_mb"] < 4 * 64
