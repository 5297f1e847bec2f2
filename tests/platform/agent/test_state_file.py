"""The agent's state file: restarts, other releases, and disks that fail."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cortex.functions.spec import Engine, Function
from cortex.platform.agent import state_file
from cortex.platform.process.process_id import boot_id
from cortex.platform.record import Failure, Tier
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from tests.support.factories import an_instance
from tests.support.stack import eventually

STATE = AgentState(
    workers=(
        SavedWorker(
            an_instance("one", function="org/one"),
            Function(id="org/one", engine=Engine.FAKE),
            LocalWeights(path="/w", size_mb=1),
        ),
    )
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host.json"


def test_a_written_state_is_read_back(path: Path) -> None:
    state_file.write(path, STATE)

    assert state_file.read(path) == STATE


def test_fields_of_a_later_release_are_ignored_and_its_workers_are_read(path: Path) -> None:
    later: Any = json.loads(msgspec.json.encode(STATE))
    later["workers"][0]["function"] |= {"of_later": 1, "sampling": {"of_later": 2}}
    later["workers"][0]["instance"]["of_later"] = {"a": 1}
    later["of_later"] = []
    path.write_text(json.dumps(later))

    assert state_file.read(path) == STATE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"workers": 3}', '{"workers": [{"function": []}]}'])
def test_an_unreadable_file_is_an_empty_state(path: Path, text: str) -> None:
    path.write_text(text)

    assert state_file.read(path) == AgentState()


# One agent per directory


def test_a_second_agent_of_a_directory_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    lock = state_file.lock(tmp_path, "first")

    with pytest.raises(state_file.AnotherAgent, match=rf"'first', pid {os.getpid()}.*\[agent\] state_dir"):
        state_file.lock(tmp_path, "second")
    os.close(lock)

    os.close(state_file.lock(tmp_path, "second"))


# A renamed host


def test_a_renamed_host_reads_the_workers_of_its_earlier_name(tmp_path: Path) -> None:
    state_file.write(tmp_path / "before.json", replace(STATE, epoch=7, boot=boot_id(), origin=5.0))

    state = state_file.read_all(tmp_path / "after.json")

    assert state.workers == STATE.workers
    assert (state.epoch, state.boot, state.origin) == (7, boot_id(), 5.0)


def test_the_file_of_the_earlier_name_is_removed_once_its_workers_are_in_the_new_one(tmp_path: Path) -> None:
    state_file.write(tmp_path / "before.json", STATE)

    writer = state_file.Writer(tmp_path / "after.json")
    writer.put(STATE)
    assert writer.close()

    assert [p.name for p in tmp_path.glob("*.json")] == ["after.json"]
    assert state_file.read(tmp_path / "after.json") == STATE


def test_a_back_off_does_not_outlive_a_reboot() -> None:
    failure = Failure(function="f", revision="r", instance="i", reason="x", at=1.0, retry_at=1e12)

    rebooted = state_file.after_restart(AgentState(failures=(failure,), boot="another-boot"))
    restarted = state_file.after_restart(AgentState(failures=(failure,), boot=boot_id()))

    assert (rebooted.failures[0].retry_at, restarted.failures[0].retry_at) == (0.0, 1e12)


def test_what_failed_is_remembered_for_the_same_driver_and_engines() -> None:
    builds = {"vllm": "0.32-ab", "driver": "580.65"}
    state = AgentState(
        unparkable={"r": {Tier.SLEEP: "HTTP 500"}}, tricks_off={"r": {"kernels": "it crashed"}}, builds=builds
    )

    assert state_file.after_restart(state).with_builds(dict(builds)) == state
    for other in ({**builds, "driver": "590.1"}, {**builds, "vllm": "0.33-cd"}, {}):
        assert state.with_builds(other) == AgentState(builds=other)


# Writing


class Disk:
    """A disk that hangs until it is let go, and then fails so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> None:
        self.let_go, self.reached, self.failures = threading.Event(), threading.Event(), failures
        self.written: list[AgentState] = []
        monkeypatch.setattr(state_file, "write", self.write)
        monkeypatch.setattr(state_file, "RETRY_S", 0.01)

    def write(self, _: Path, state: AgentState) -> None:
        self.reached.set()
        self.let_go.wait(30)
        if self.failures:
            self.failures -= 1
            raise OSError("No space left on device")
        self.written.append(state)


def test_a_hung_disk_blocks_no_caller_and_gets_the_newest_state(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    disk = Disk(monkeypatch)
    writer = state_file.Writer(path)

    writer.put(AgentState(epoch=1))
    disk.reached.wait(30)
    for epoch in (2, 3):
        writer.put(AgentState(epoch=epoch))
    disk.let_go.set()
    assert writer.close(30)

    assert [s.epoch for s in disk.written] == [1, 3]


def test_a_state_that_is_not_written_is_a_problem_until_it_is(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    disk = Disk(monkeypatch)
    writer = state_file.Writer(path)
    writer.put(AgentState(epoch=1))
    disk.reached.wait(30)

    eventually(lambda: "its disk does not answer" in writer.problem(), what="the problem to be said")
    disk.let_go.set()
    eventually(lambda: not writer.problem(), what="the problem to end")
    writer.close()


def test_a_full_disk_is_tried_again(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    disk = Disk(monkeypatch, failures=3)
    disk.let_go.set()
    writer = state_file.Writer(path)

    writer.put(AgentState(epoch=1))
    eventually(lambda: disk.written, what="the state to be written")

    assert writer.close()
