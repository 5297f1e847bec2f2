"""What every test may use."""

import contextlib
import functools
import gc
import importlib
import os
from collections.abc import Callable

import pytest
from httpx._transports import default as transports
from xdist.scheduler import LoadGroupScheduling

from tests.support import program

# Every client reads the machine's certificate authorities anew: 46 ms of CPU, and tests make thousands of clients.
transports.create_ssl_context = functools.cache(transports.create_ssl_context)  # type: ignore[attr-defined]


# llama.cpp's threads wait for each other in a loop. With two of them, and other processes on the cores, an answer of a
# tiny model takes 30 times as much CPU time and 15 times as long as with one.
if "CORTEX_TEST_VLLM" not in os.environ:
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")

# Tests are collected into objects that stay. Looking for garbage among them takes a tenth of the time.
gc.disable()


def pytest_configure() -> None:
    """Have SIGTERM end the run like Ctrl-C, in each process of it: fixtures end what they started."""
    program.end_on_sigterm()


def pytest_runtest_setup() -> None:
    """Again, because commands that a test runs in this process may have replaced the handler."""
    program.end_on_sigterm()


def pytest_collection(session: pytest.Session) -> None:
    """Import the tests first, each process from another one on: in a new checkout each then compiles a share of them,
    and finds the others compiled."""
    config = session.config
    process = getattr(config, "workerinput", None)
    if process is None or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    root = config.rootpath
    skip = {root / folder for folder in config.getini("norecursedirs")}
    paths = [p for p in sorted((root / "tests").rglob("test_*.py")) if skip.isdisjoint(p.parents)]
    first = len(paths) * int(process["workerid"].removeprefix("gw")) // process["workercount"]
    for path in paths[first:] + paths[:first]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection reports it
            importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run the tests, begin with those that share running systems: they take longest."""
    if hasattr(config, "workerinput"):
        e2e = config.rootpath / "tests" / "e2e"
        items.sort(key=lambda item: not item.path.is_relative_to(e2e))


class ModuleScheduling(LoadGroupScheduling):  # type: ignore[misc]
    """Gives a process the tests of a module, or of a group, at once: one by one, each costs the time to look through
    those before it. Of the simulation it gives one by one, so that processes end at the same time.
    """

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return scope if scope.startswith("tests/simulation/") else scope.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ModuleScheduling | None:
    """Schedule by module; in the order of collection, not the most tests first."""
    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return ModuleScheduling(config, log)


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among what was there before the first test."""
    gc.freeze()
    gc.enable()


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
