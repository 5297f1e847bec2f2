"""What workers leave, with real processes: it is found, killed and waited for until it is gone."""

import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cortex.platform.process import environment, process_id, termination
from cortex.platform.record import Held, Instance, ProcessId
from cortex.platform.scheduling.events import EndDelayed, Event
from cortex.platform.workers import hardening, process, remains
from cortex.platform.workers.remains import Remains
from tests.support.factories import an_instance

STAYS = ["sleep", "600"]
IGNORES_TERM = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
LEAVES_A_CHILD_WITHOUT_A_MARK = ["sh", "-c", "env -i sleep 600 & echo $!"]


class Left:
    """Processes with the marks of this test, and the remains of their workers."""

    def __init__(self, folder: Path) -> None:
        self.owner, self.log, self.events = secrets.token_hex(8), folder / "log", list[Event]()
        self.readings: list[tuple[Held, ...]] = []
        """The next readings of who holds device memory; none is held after the last."""
        self.remains = Remains(self.owner, None, self.holders, self.events.append)
        self._children: list[subprocess.Popen[bytes]] = []

    async def holders(self) -> tuple[Held, ...]:
        return self.readings.pop(0) if self.readings else ()

    def spawn(self, instance: str, argv: list[str]) -> ProcessId:
        child = process.spawn(argv, {environment.OWNER: self.owner}, self.log, instance)
        self._children.append(child)
        leader = process_id.identify(child.pid)
        assert leader
        return leader

    def reap(self) -> None:
        for child in self._children:
            termination.signal_group(child.pid, signal.SIGKILL)
            child.wait(10)


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    left = Left(tmp_path)
    yield left
    left.reap()


def instance_of(leader: ProcessId, id_: str, *devices: str) -> Instance:
    return an_instance(id_, pid=leader.pid, boot=leader.boot, process_ticks=leader.ticks, devices=devices)


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
    child = int(left.log.read_text())
    await left.remains.prove(id_, leader)

    assert await left.remains.kill(id_) == []

    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


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

    assert await left.remains.kill(id_) == [leader]


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
