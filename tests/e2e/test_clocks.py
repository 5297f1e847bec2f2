"""Machines whose clocks differ or are set while everything runs."""

import time
from pathlib import Path

import pytest

from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.long

MISSET = """
import os, time
_true, _path = time.time, os.environ["TEST_CLOCK"]
def _set():
    with open(_path) as file:
        return _true() + float(file.read())
time.time = _set
"""
"""The wall clock of a process, as far off as a file says."""


def set_clock(path: Path, off_s: float) -> None:
    """Set the time. A reader of the file gets the old or the new time, never a part."""
    fresh = path.with_suffix(".new")
    fresh.write_text(str(off_s))
    fresh.replace(path)


def test_with_a_wrong_wall_clock_used_instances_stay_and_idle_ones_are_reaped(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MISSET)
    paced = fake("paced", "--tps", "20", "--tokens", "8", idle_after_s=1)
    with own_redis(tmp_path) as redis_url:
        fleet = Fleet(tmp_path, redis_url, paced, {"here": {}})
        fleet.env |= {"PYTHONPATH": str(tmp_path / "site"), "TEST_CLOCK": str(clock)}
        set_clock(clock, -60)
        with fleet:
            for off_s in (60, -86_400):
                set_clock(clock, off_s)
                until = time.monotonic() + 3.0
                while time.monotonic() < until:
                    assert fleet.chat("paced").status_code == 200

            assert fleet.spawned() == 1
            eventually(lambda: not fleet.workers(), within_s=10, what="the idle instance to be reaped")
