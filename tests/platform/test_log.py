"""What is logged, and in which form: by configuration."""

import json
import subprocess
import sys

SAID = """
import structlog
from cortex.platform import log
from cortex.platform.settings import Log
log.configure(Log(level={level!r}, format={format!r}))
structlog.get_logger().info("quiet", a=1)
structlog.get_logger().warning("loud", a=2)
log.line("request", {{"a": 3}})
"""


def said(level: str, format: str) -> list[str]:
    """Return the lines that a process of its own wrote: logging is configured once and for all."""
    code = SAID.format(level=level, format=format)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert not done.stdout
    return done.stderr.splitlines()


def test_nothing_below_the_level_is_logged_and_lines_are_json() -> None:
    (line,) = said("warning", "json")

    told = json.loads(line)
    assert (told["event"], told["level"], told["a"]) == ("loud", "warning", 2)
    assert told["timestamp"].endswith("Z")


def test_a_console_is_written_for_people() -> None:
    lines = said("info", "console")

    assert [word in line for word, line in zip(("quiet", "loud", "request"), lines, strict=True)] == [True] * 3
    assert not any(line.startswith("{") for line in lines)
