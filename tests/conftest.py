"""What every test may use."""

from collections.abc import Callable

import pytest


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a figure for the end of the run."""
    return lambda text: record_property("told", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests noted, also when they ran in other processes."""
    reports = terminalreporter.stats.get("passed", [])
    told = [(r.nodeid, text) for r in reports for key, text in r.user_properties if key == "told"]
    if told:
        terminalreporter.section("figures")
        for test, text in told:
            terminalreporter.write_line(f"{text}  [{test.rpartition('::')[2]}]")
