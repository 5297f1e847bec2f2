"""Processes whose standard error cannot be written go on."""

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
    log.line("line", {"a": 1})
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


def test_what_is_written_to_a_stream_that_works_arrives() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr.count("words"), done.stderr.count('"event": "event"')) == (7, 6, 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    with Path("/dev/full").open("wb") as full:
        assert run(stderr=full.fileno()) == 7


def test_a_pipe_without_a_reader_loses_lines_and_nothing_else() -> None:
    writing = unread_pipe()
    try:
        assert run(stderr=writing) == 7
    finally:
        os.close(writing)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_beginning_are_opened_on_nothing(closed: str) -> None:
    """Else the next socket gets the number of standard error, and log lines go into it."""
    assert run("/bin/sh", "-c", f'exec "$0" "$@" {closed}') == 7
