"""What every test may use."""

import functools
import os
import sys
from collections.abc import Callable

import pytest
from httpx._transports import default as transports

# Every client reads the machine's certificate authorities anew: 46 ms of CPU, and tests make thousands of clients.
transports.create_ssl_context = functools.cache(transports.create_ssl_context)  # type: ignore[attr-defined]


# Without bytecode, every process compiles the tests anew, and each of the hundreds that they start compiles cortex.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a figure for the end of the run."""
    return lambda text: record_property("told", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests noted, also when they ran in other processes."""
    reports = terminalreporter.stats.get("passed", [])
    lines = [(r.nodeid, text) for r in reports for key, text in r.user_properties if key == "told"]
    if lines:
        terminalreporter.section("figures")
        for test, text in lines:
            terminalreporter.write_line(f"{text}  [{test.rpartition('::')[2]}]")
