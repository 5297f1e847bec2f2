"""A program of the tests ends all that it started, whichever signal ends it."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.stack import eventually

PROGRAM = """
import subprocess, sys
from tests.support import program

def main():
    started = subprocess.Popen(["sleep", "600"], start_new_session=True)
    parent = subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, text=True)
    try:
        print(started.pid, parent.stdout.strip(), flush=True)
        started.wait()
    finally:
        print("cleaned up", flush=True)

sys.exit(program.run(main))
"""

TESTS = """
import subprocess
from tests.support import program

program.end_on_sigterm()
command = ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $$ $!; wait"]
started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
pids = started.stdout.readline()
try:
    print(pids, end="", flush=True)
    started.wait()
finally:
    started.kill()
    print("cleaned up", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_program_and_all_that_it_started(number: signal.Signals, code: int) -> None:
    running = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    started = [psutil.Process(int(pid)) for pid in running.stdout.readline().split()]

    running.send_signal(number)
    running.send_signal(number)  # as `timeout` does, which signals its child and then the group of it
    output, errors = running.communicate(timeout=30)

    assert len(started) == 2
    assert (running.returncode, output) == (code, b"cleaned up\n"), errors
    eventually(lambda: not any(process.is_running() for process in started), what="both to be gone")


def test_sigterm_interrupts_pytest_and_ends_all_that_it_started() -> None:
    running = subprocess.Popen([sys.executable, "-c", TESTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    started = [psutil.Process(int(pid)) for pid in running.stdout.readline().split()]

    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=30)

    assert len(started) == 2
    assert (running.returncode, output) == (-signal.SIGINT, b"cleaned up\n"), errors
    eventually(lambda: not any(process.is_running() for process in started), what="both to be gone")


def test_pytest_listens_for_sigterm() -> None:
    assert callable(signal.getsignal(signal.SIGTERM))
