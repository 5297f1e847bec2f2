"""Processes continue when their standard error cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, os, sys
from cortex.platform import log
from cortex.platform.process import standard_streams
from cortex.platform.settings import Log
standard_streams.protect()
log.configure(Log(format="json"))
import structlog
for _ in range(3):
    structlog.get_logger().info("event")
    log.lines("line", [(20, {"a": 1})])
    logging.getLogger("library").error("words")
    print("words", file=sys.stderr, flush=True)
sys.exit(7 if os.fstat(0) and os.fstat(1) and os.fstat(2) else 1)
"""


def unread_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def run(*before: str, stderr: int | None = None) -> int:
    argv = [*before, sys.executable, "-c", PROGRAM]
    return subprocess.run(argv, stderr=stderr, stdout=subprocess.DEVNULL, timeout=60, check=False).returncode


def test_output_to_a_working_stream_arrives() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr.count("words"), done.stderr.count('"event": "event"')) == (7, 6, 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_with_a_full_disk_only_lines_are_lost() -> None:
    with Path("/dev/full").open("wb") as full:
        assert run(stderr=full.fileno()) == 7


def test_with_a_pipe_without_a_reader_only_lines_are_lost() -> None:
    writing = unread_pipe()
    try:
        assert run(stderr=writing) == 7
    finally:
        os.close(writing)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_streams_closed_at_the_start_are_opened_on_dev_null(closed: str) -> None:
    """Else the next socket gets the number of standard error, and log lines go into it."""
    assert run("/bin/sh", "-c", f'exec "$0" "$@" {closed}') == 7
