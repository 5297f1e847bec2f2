"""Requests are served by the priority of their keys, on a real llama.cpp with one slot."""

import contextlib
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.e2e.security.hardened import Hardened
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


@contextlib.contextmanager
def held(worker: psutil.Process) -> Iterator[None]:
    """Let a worker do nothing for a while."""
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


def test_the_next_free_slot_goes_to_the_highest_waiting_priority(hardened: Hardened) -> None:
    hardened.chat("real/one", max_tokens=1).raise_for_status()
    (instance,) = hardened.function("real/one")["instances"]
    came = ["admin", "low", "admin", "high", "low", "high"]

    def in_the_row(many: int) -> bool:
        return bool(hardened.function("real/one")["instances"][0]["in_flight"] == many)

    def ask(number: int, key: str) -> None:
        hardened.ask_with(hardened.keys[key], "real/one", f"{number}-{key}", max_tokens=4).raise_for_status()

    with ThreadPoolExecutor(len(came)) as pool, held(psutil.Process(instance["pid"])):
        for number, key in enumerate(came):
            pool.submit(ask, number, key)
            eventually(lambda many=number + 1: in_the_row(many), what="it to be in the row")  # type: ignore[misc]

    def served() -> list[str]:
        return [line for line in hardened.log("router").splitlines() if re.search(r'"request": "\d-', line)]

    eventually(lambda: len(served()) == len(came), what="all of them in the log")
    # A worker that is held may close a connection as it goes on; that request comes again, behind the others.
    broken = [re.findall(r'"request": "([^"]+)"', line)[0] for line in served() if '"broke"' in line]
    order = [re.findall(r'"request": "([^"]+)"', line)[0] for line in served()]
    expected = ["0-admin", "3-high", "5-high", "2-admin", "1-low", "4-low"]
    assert [name for name in order if name not in broken] == [name for name in expected if name not in broken]
    assert len(broken) < 3
