"""What workers leave, with real processes: it is found, killed and waited for until it is gone."""

import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.platform.process import environment, process_id, termination
from cortex.platform.record import Held, Instance, ProcessId
from cortex.platform.scheduling.events import EndDelayed, Event
from cortex.platform.workers import cgroup, hardening, orphans, process, remains
from cortex.platform.workers.log_files import log_name
from cortex.platform.workers.remains import Remains
from tests.support.factories import an_instance
from tests.support.stack import eventually

STAYS = ["sleep", "600"]
IGNORES_TERM = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
LEAVES_A_CHILD_WITHOUT_A_MARK = ["sh", "-c", "env -i sleep 600 & echo $!"]
LEAVES_ONE_IN_A_SESSION_OF_ITS_OWN = ["sh", "-c", "env -i setsid sleep 600 & echo $!"]
HAS_A_CHILD_WITHOUT_A_MARK = ["sh", "-c", "env -i sleep 600 & echo $!; wait"]
HAS_ONE_IN_A_SESSION_OF_ITS_OWN = ["sh", "-c", "env -i setsid sleep 600 & echo $!; wait"]


class Left:
    """Processes with the marks of this test, and the remains of their workers."""

    def __init__(self, folder: Path) -> None:
        self.owner, self.folder, self.events = secrets.token_hex(8), folder, list[Event]()
        self.readings: list[tuple[Held, ...]] = []
        """The next readings of who holds device memory; none is held after the last."""
        self.remains = Remains(self.owner, None, self.holders, self.events.append)
        self._children: list[subprocess.Popen[bytes]] = []

    async def holders(self) -> tuple[Held, ...]:
        return self.readings.pop(0) if self.readings else ()

    def spawn(self, instance: str, argv: list[str]) -> ProcessId:
        child = process.spawn(argv, {environment.OWNER: self.owner}, self.log(instance), instance)
        self._children.append(child)
        leader = process_id.identify(child.pid)
        assert leader
        return leader

    def log(self, instance: str) -> Path:
        return self.folder / log_name("f", instance)

    def child_of(self, instance: str) -> ProcessId:
        """Return the process whose pid a worker wrote to its log."""
        written = eventually(lambda: self.log(instance).read_text(), what="the pid of the child")
        child = process_id.identify(int(written))
        assert child
        return child

    def wait(self, leader: ProcessId) -> None:
        """Wait for a worker that has exited, as its parent does: now nothing proves whose session its children have."""
        next(c for c in self._children if c.pid == leader.pid).wait(10)

    def reap(self) -> None:
        for child in self._children:
            if child.returncode is None:
                termination.signal_group(child.pid, signal.SIGKILL)
                child.wait(10)


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    left = Left(tmp_path)
    yield left
    left.reap()


def instance_of(leader: ProcessId, id_: str, *devices: str) -> Instance:
    return an_instance(id_, function="f", pid=leader.pid, boot=leader.boot, process_ticks=leader.ticks, devices=devices)


async def test_a_process_that_ignores_term_and_its_directory_are_removed(left: Left) -> None:
    id_ = secrets.token_hex(8)
    folder = hardening.temporary(id_)
    (folder / "scratch").write_text("1")
    leader = left.spawn(id_, IGNORES_TERM)

    await left.remains.clear(instance_of(leader, id_, "gpu-0"))

    assert not process_id.is_alive(leader)
    assert not folder.exists()
    assert left.events == []


async def test_a_child_without_the_workers_mark_is_killed_as_one_of_its_session(left: Left) -> None:
    id_ = secrets.token_hex(8)
    leader = left.spawn(id_, LEAVES_A_CHILD_WITHOUT_A_MARK)
    await termination.wait_for_exit(leader)
    child = left.child_of(id_)
    await left.remains.prove(id_, leader)

    assert await left.remains.kill(id_, "another log") == []

    assert not process_id.is_alive(child)


@pytest.mark.parametrize("argv", [LEAVES_A_CHILD_WITHOUT_A_MARK, LEAVES_ONE_IN_A_SESSION_OF_ITS_OWN])
async def test_a_child_without_a_mark_whose_worker_ended_while_no_agent_ran_is_killed_as_one_that_writes_to_its_log(
    left: Left, argv: list[str]
) -> None:
    id_, other = secrets.token_hex(8), secrets.token_hex(8)
    leader, stranger = left.spawn(id_, argv), left.spawn(other, STAYS)
    child = left.child_of(id_)
    await termination.wait_for_exit(leader)
    left.wait(leader)

    await left.remains.clear(instance_of(leader, id_, "gpu-0"))

    assert not process_id.is_alive(child)
    assert process_id.is_alive(stranger)


async def test_device_memory_is_waited_for_until_no_process_of_the_worker_holds_it(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remains, "HOLDERS_AGAIN_S", 0.0)
    id_ = secrets.token_hex(8)
    leader = left.spawn(id_, STAYS)
    own, other = Held(device="GPU-1", pid=leader.pid), Held(device="GPU-1", pid=1)
    left.readings = [(own, other), (own,), (other,), (own,)]

    await left.remains.clear(instance_of(leader, id_, "GPU-1"))

    assert left.readings == [(own,)]


async def test_a_process_that_does_not_end_after_kill_is_reported(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "KILLED_WITHIN_S", 0.05)
    id_, kill_orphans = secrets.token_hex(8), process.kill_orphans
    leader = left.spawn(id_, STAYS)
    monkeypatch.setattr(process, "kill_orphans", lambda *a: kill_orphans(*a) if left.events else [leader])

    await left.remains.clear(instance_of(leader, id_, "gpu-0"))

    assert set(left.events) == {EndDelayed(id_, f"process {leader.pid} has not ended after SIGKILL")}
    assert not process_id.is_alive(leader)


async def test_a_search_that_takes_long_does_not_count_as_one_that_finds_none(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remains, "KILLED_WITHIN_S", 0.0)
    id_ = secrets.token_hex(8)
    leader = left.spawn(id_, STAYS)

    assert await left.remains.kill(id_, "f") == [leader]


async def test_only_processes_of_this_host_in_no_known_instance_are_killed(left: Left, tmp_path: Path) -> None:
    known, unknown, foreign = (secrets.token_hex(8) for _ in range(3))
    other = Left(tmp_path)
    stays, ends = left.spawn(known, STAYS), left.spawn(unknown, STAYS)
    try:
        stranger = other.spawn(foreign, STAYS)

        await left.remains.clear_unknown({known})

        await termination.wait_for_exit(ends)
        assert process_id.is_alive(stays)
        assert process_id.is_alive(stranger)
    finally:
        other.reap()


@pytest.mark.parametrize("argv", [HAS_A_CHILD_WITHOUT_A_MARK, HAS_ONE_IN_A_SESSION_OF_ITS_OWN])
async def test_an_unknown_worker_is_killed_with_its_child_that_has_no_mark(left: Left, argv: list[str]) -> None:
    id_ = secrets.token_hex(8)
    leader = left.spawn(id_, argv)
    child = left.child_of(id_)

    await left.remains.clear_unknown(())

    await termination.wait_for_exit(leader)
    await termination.wait_for_exit(child)


async def test_a_shell_in_whose_session_a_process_has_a_workers_environment_is_left_alone(left: Left) -> None:
    id_ = secrets.token_hex(8)
    marked = f"env {environment.OWNER}={left.owner} {environment.MARKER}={id_}"
    command = ["sh", "-c", f"{marked} sleep 600 & echo $!; wait; read never"]
    shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220
    try:
        assert shell.stdout
        child = process_id.identify(int(shell.stdout.readline()))
        assert child
        eventually(lambda: process.find_owned(left.owner), what="its environment")

        await left.remains.clear_unknown(())

        await termination.wait_for_exit(child)
        assert shell.poll() is None
    finally:
        shell.kill()
        shell.communicate(timeout=10)


async def test_a_process_in_the_control_group_of_an_unknown_instance_is_killed(left: Left) -> None:
    groups = cgroup.home(left.owner)
    if groups is None:
        pytest.skip("this host has no cgroup v2 that may be written")
    known, unknown = secrets.token_hex(8), secrets.token_hex(8)
    for instance in (known, unknown):
        left.spawn(instance, ["env", "-i", *cgroup.wrap_command(groups, instance, STAYS)])
    stays, ends = (
        eventually(lambda i=i: cgroup.members(groups, i), what="a process in its group")  # type: ignore[misc]
        for i in (known, unknown)
    )
    try:
        killed = orphans.kill_unknown(left.owner, groups, {known})

        assert killed == {unknown: ends}
        assert {i: cgroup.members(groups, i) for i in cgroup.instances(groups)} == {known: stays}
    finally:
        cgroup.kill(groups, known)
        cgroup.remove_home(groups)
