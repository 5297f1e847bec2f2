"""Worker processes: their memory, and that only processes proven to be theirs are signalled."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.platform.process import environment, process_id, termination
from cortex.platform.record import ProcessId
from cortex.platform.workers.process import cpu_s, kill_orphans, orphans_of, resident_mb, session_of, signal_worker

MARK = secrets.token_hex(8)  # unique to this run: parallel tests mark processes too

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


def test_shared_memory_counts_once(family: int) -> None:
    used_mb = resident_mb(family)

    assert used_mb is not None
    assert 64 <= used_mb < 128


def test_an_exited_worker_uses_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)

    assert (resident_mb(process.pid), cpu_s(process.pid)) == (None, 0)


# Identity

CHILD_WITHOUT_MARKS = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "600"], env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


def identity(pid: int) -> ProcessId:
    result = process_id.identify(pid)
    assert result
    return result


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A foreign process: the leader of its session, without a marker."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with a child in its session without a marker."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD_WITHOUT_MARKS],
        env={**os.environ, environment.MARKER: MARK},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    child = int(process.stdout.readline())
    yield process
    for pid in (process.pid, child):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=10)


@pytest.mark.parametrize("changed", [{"ticks": 1}, {"boot": "another-boot"}], ids=["another start", "another boot"])
def test_a_process_with_a_reused_pid_is_a_different_one(
    stranger: subprocess.Popen[bytes], changed: dict[str, object]
) -> None:
    earlier = replace(identity(stranger.pid), **changed)

    assert not process_id.is_alive(earlier)
    assert not signal_worker(earlier, signal.SIGKILL)
    assert not process_id.send(earlier, signal.SIGKILL)
    assert session_of(replace(earlier, ticks=1)) == frozenset()
    assert stranger.poll() is None


def test_a_session_with_a_reused_id_is_left_alone(stranger: subprocess.Popen[bytes]) -> None:
    earlier = replace(identity(stranger.pid), ticks=1)

    assert kill_orphans(MARK, {earlier}) == []
    assert stranger.poll() is None


def test_a_zombie_is_not_alive_but_still_holds_its_session(worker: subprocess.Popen[bytes]) -> None:
    leader = identity(worker.pid)
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    members = session_of(leader)

    assert not process_id.is_alive(leader)
    assert len(members) == 2


def test_a_child_without_a_marker_is_found_by_the_session_of_a_proven_leader(worker: subprocess.Popen[bytes]) -> None:
    proved = session_of(identity(worker.pid))
    worker.kill()
    worker.wait(10)

    by_mark_alone, by_session = orphans_of(MARK), orphans_of(MARK, proved)

    assert by_mark_alone == []
    assert len(by_session) == 1
    kill_orphans(MARK, proved)


def test_an_empty_marker_matches_no_process(stranger: subprocess.Popen[bytes]) -> None:
    assert orphans_of("") == []


async def test_waiting_for_a_process_with_a_reused_pid_returns_at_once(
    stranger: subprocess.Popen[bytes],
) -> None:
    await termination.wait_for_exit(replace(identity(stranger.pid), ticks=1))

    assert stranger.poll() is None


def test_a_name_with_spaces_and_parentheses_does_not_hide_the_start(tmp_path: Path) -> None:
    program = tmp_path / "a) b (c"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "600"])
    try:
        result = process_id.status(process.pid)
        assert result
        assert result.ticks > 0
    finally:
        process.kill()
        process.wait(10)
