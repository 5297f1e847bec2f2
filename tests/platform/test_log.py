"""The level and the form of the log, and logs that cannot be written."""

import json
import os
import subprocess
import sys

from cortex.platform.log import Output

LINES = """
import structlog
from cortex.platform import log
from cortex.platform.settings import Log
log.configure(Log(level={level!r}, format={format!r}))
structlog.get_logger().info("quiet", a=1)
structlog.get_logger().warning("loud", a=2)
log.lines("request", [(20, {{"a": 3}})])
"""


def logged_lines(level: str, format: str) -> list[str]:
    """Return the lines that a process of its own wrote: logging is configured once and for all."""
    code = LINES.format(level=level, format=format)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert not done.stdout
    return done.stderr.splitlines()


def test_only_events_from_the_level_up_are_logged_as_json_lines() -> None:
    (line,) = logged_lines("warning", "json")

    answer = json.loads(line)
    assert (answer["event"], answer["level"], answer["a"]) == ("loud", "warning", 2)
    assert answer["timestamp"].endswith("Z")


def test_a_console_gets_readable_lines() -> None:
    lines = logged_lines("info", "console")

    assert [word in line for word, line in zip(("quiet", "loud", "request"), lines, strict=True)] == [True] * 3
    assert not any(line.startswith("{") for line in lines)


# A log that cannot be written


SPEAKS = """
import os, sys
import structlog
from cortex.platform import log
from cortex.platform.settings import Log
{before}
log.configure(Log(level="info", format="json"))
for _ in range({lines}):
    structlog.get_logger().info("to_structlog", filler="x" * 100)
    log.lines("to_line", [(20, {{"filler": "x" * 100}})])
    import logging
    logging.getLogger("library").warning("to_logging %s", "x" * 100)
print("went on", flush=True)
"""


def speak(stderr: int | None, *, lines: int = 3, before: str = "") -> subprocess.CompletedProcess[str]:
    code = SPEAKS.format(lines=lines, before=before)
    return subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, timeout=60
    )


def test_a_process_continues_when_the_reader_of_its_log_has_ended() -> None:
    reading, writing = os.pipe()
    os.close(reading)

    done = speak(writing)

    os.close(writing)
    assert (done.stdout, done.returncode) == ("went on\n", 0)


def test_a_process_continues_when_the_reader_of_its_log_hangs() -> None:
    reading, writing = os.pipe()

    done = speak(writing, lines=1000)

    os.close(writing)
    os.close(reading)
    assert (done.stdout, done.returncode) == ("went on\n", 0)


def test_a_process_continues_when_the_disk_of_its_log_is_full() -> None:
    full = os.open("/dev/full", os.O_WRONLY)

    done = speak(full)

    os.close(full)
    assert (done.stdout, done.returncode) == ("went on\n", 0)


def test_a_process_continues_when_its_standard_error_is_closed() -> None:
    done = speak(None, before="os.close(2)")

    assert (done.stdout, done.returncode) == ("went on\n", 0)


def test_the_number_of_dropped_lines_is_logged_when_writing_works_again() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        output = Output(stream)
        while not output.dropped:
            output.write("x" * 4000 + "\n")
        output.write("lost\n")
        os.read(reading, 1_000_000)

        output.write("after\n")

        assert os.read(reading, 1_000_000) == b'{"event": "log_lines_dropped", "lines": 2}\nafter\n'
    os.close(reading)
