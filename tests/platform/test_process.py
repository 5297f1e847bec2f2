"""What a worker and the processes it started take together."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from cortex.platform.workers.process import cpu_s, resident_mb

SHARES = """
import os, sys
held = os.urandom(64 << 20)
for _ in range(2):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
print("forked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[int]:
    """A process that holds 64 MiB and shares them with two children."""
    process = subprocess.Popen([sys.executable, "-c", SHARES], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    yield process.pid
    process.stdin.close()
    process.stdout.close()
    process.wait(10)


def test_what_processes_share_counts_once(family: int) -> None:
    taken = resident_mb(family)

    assert taken is not None
    assert 64 <= taken < 128


def test_a_worker_that_is_gone_takes_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)

    assert (resident_mb(process.pid), cpu_s(process.pid)) == (None, 0)
