"""The supervisor with real processes: no effect is lost, whatever fails during it."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from cortex.functions.launch import Launch
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function
from cortex.platform import clock
from cortex.platform.agent_messages import Ensure
from cortex.platform.faults import Faults
from cortex.platform.host import engines
from cortex.platform.keys import HostToken
from cortex.platform.process import environment, process_id, termination
from cortex.platform.record import Device, Held, HostRecord, ProcessId, Tier
from cortex.platform.scheduling.effects import Park, Stop, Wake
from cortex.platform.scheduling.events import CoolRequest, EnsureRequest, Event, Spawned
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.scheduling.state import Rules
from cortex.platform.settings import Agent, Settings
from cortex.platform.workers import process, supervisor
from cortex.platform.workers.supervisor import Supervisor

F = Function(id="f", engine=Engine.FAKE, vram_mb=1000)
INSTANCE = secrets.token_hex(8)  # unique to this run: parallel tests find and kill by marker
START = EnsureRequest(Ensure(F), LocalWeights("", 0), INSTANCE)
EXITS = [sys.executable, "-c", "raise SystemExit(1)"]
STAYS = ["sleep", "600"]
IGNORES_TERM = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]


class Host:
    """A scheduler and a supervisor, as an agent has them; `begin` is what a start runs."""

    def __init__(self, folder: Path) -> None:
        (folder / "token").write_text("a-token-of-this-test")
        agent = Agent(state_dir=str(folder / "state"), log_dir=str(folder / "log"), cache_dir=str(folder / "cache"))
        device = Device(id="gpu-0", name="d", kind="gpu", total_mb=24_000)
        record = HostRecord(name="a", address="http://x", engines={"fake": "1"}, devices=(device,))
        self.scheduler = Scheduler(record, Rules(stop_grace_s=0.3))
        self.faults = Faults()
        self.changed = asyncio.Event()
        self.begun: list[int] = []
        self.begin: Callable[[], tuple[list[str], str]] = lambda: (STAYS, "plain")
        self.supervisor = Supervisor(
            Settings(agent=agent),
            HostToken.of_fleet(folder / "token", "a"),
            engines.discover(()),
            self.tell,
            self.holders,
            self.scheduler.record,
            self.faults,
        )
        self.supervisor._start_process = self.spawn  # type: ignore[method-assign]

    def tell(self, event: Event) -> None:
        for effect in self.scheduler.handle(event, clock.now()):
            self.supervisor.perform(effect)
        self.changed.set()

    async def holders(self) -> tuple[Held, ...]:
        return ()

    async def spawn(
        self, instance: str, command: Launch, log_path: Path, not_warm: str, cache: str
    ) -> tuple["subprocess.Popen[bytes]", str, bool]:
        argv, path = self.begin()
        child = process.spawn(argv, {environment.OWNER: "test"}, log_path, instance)
        self.begun.append(child.pid)
        return child, path, path == "warm"

    def start(self) -> None:
        self.tell(START)

    def states(self) -> list[State]:
        return [i.state for i in self.scheduler.record().instances]

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until a condition holds after an event."""
        async with asyncio.timeout(20):
            while not true():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    running = Host(tmp_path)
    yield running
    await running.supervisor.close()
    for pid in running.begun:
        termination.signal_group(pid, signal.SIGKILL)


async def test_a_worker_that_ignores_term_is_killed_after_the_grace(host: Host) -> None:
    host.begin = lambda: (IGNORES_TERM, "plain")
    host.start()
    await host.until(lambda: bool(host.begun))

    host.tell(CoolRequest("f", at_once=True))
    await host.until(lambda: not host.states())

    assert not psutil.pid_exists(host.begun[0])


@pytest.mark.parametrize("move", [Park, Wake])
async def test_a_worker_whose_freeze_or_restore_is_cancelled_by_its_stop_is_killed_without_grace(
    host: Host, move: type[Park | Wake], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.begin = lambda: (IGNORES_TERM, "plain")
    host.start()
    await host.until(lambda: any(i.pid for i in host.scheduler.record().instances))
    (instance,) = host.scheduler.record().instances
    moving = asyncio.Event()

    async def never(*_: object) -> int:
        moving.set()
        return await asyncio.Future()

    monkeypatch.setattr(host.supervisor.freezer, "freeze", never)
    monkeypatch.setattr(host.supervisor.freezer, "restore", never)
    host.supervisor.scratch(INSTANCE).with_name("canary").write_text("a digest")
    host.supervisor.perform(move(instance, F, Tier.FREEZE))
    await asyncio.wait_for(moving.wait(), 20)

    host.supervisor.perform(Stop(instance, grace_s=600.0))
    await host.until(lambda: not host.states())

    assert not host.supervisor.tiers.may_be_locked(instance)


@pytest.mark.parametrize("error", [KeyError("x"), OSError("no"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no")])
async def test_any_exception_in_a_start_is_a_failed_start(host: Host, error: Exception) -> None:
    def begin() -> tuple[list[str], str]:
        raise error

    host.begin = begin
    host.start()
    await host.until(lambda: not host.states())

    (failure,) = host.scheduler.record().failures
    assert failure.reason.startswith("the worker could not be started")


async def test_a_stop_that_raises_is_retried_and_reported(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.05)
    host.start()
    await host.until(lambda: bool(host.begun))
    signal_worker, raised = process.signal_worker, list[int]()

    def once(*arguments: object) -> bool:
        if not raised:
            raised.append(1)
            raise ValueError("a bug")
        return signal_worker(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "signal_worker", once)
    host.tell(CoolRequest("f", at_once=True))
    await host.until(lambda: not host.states())

    assert [(f.work, f.kind) for f in host.faults.all()] == [("stop", "ValueError")]


async def test_a_reclaim_that_raises_is_retried(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.05)
    host.begin = lambda: (EXITS, "plain")
    orphans_of, raised = process.orphans_of, list[int]()

    def once(*arguments: object) -> object:
        if not raised:
            raised.append(1)
            raise RuntimeError("a bug")
        return orphans_of(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "orphans_of", once)
    host.start()
    await host.until(lambda: not host.states())

    assert ("reclaim", "RuntimeError") in [(f.work, f.kind) for f in host.faults.all()]


async def test_stopping_an_instance_without_a_process_reports_its_exit(host: Host) -> None:
    host.scheduler.handle(START, clock.now())  # the start is lost

    host.tell(CoolRequest("f", at_once=True))
    await host.until(lambda: not host.states())

    assert host.begun == []


async def test_a_worker_that_survives_kill_is_reported_until_it_exits(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "KILLED_WITHIN_S", 0.1)
    host.start()
    await host.until(lambda: bool(host.begun))
    signal_worker = process.signal_worker
    monkeypatch.setattr(process, "signal_worker", lambda *_: True)
    monkeypatch.setattr(process_id, "is_uninterruptible", lambda _: True)

    host.tell(CoolRequest("f", at_once=True))
    await host.until(lambda: any(i.problem for i in host.scheduler.record().instances))
    (stuck,) = host.scheduler.record().instances
    monkeypatch.setattr(process, "signal_worker", signal_worker)
    await host.until(lambda: not host.states())

    assert stuck.problem == (
        f"process {host.begun[0]} sleeps in the kernel and cannot be killed: its device's driver or a mount hangs"
    )
    assert stuck.devices == ("gpu-0",)


async def test_a_stop_during_the_cleanup_of_a_failed_warm_start_prevents_the_plain_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    clearing, go_on, kill = asyncio.Event(), asyncio.Event(), host.supervisor._remains.kill

    async def slowly(instance: str, function: str) -> object:
        clearing.set()
        await go_on.wait()
        return await kill(instance, function)

    monkeypatch.setattr(host.supervisor._remains, "kill", slowly)
    host.begin = lambda: (EXITS, "warm")
    host.start()
    await clearing.wait()

    host.tell(CoolRequest("f", at_once=True))
    go_on.set()
    await host.until(lambda: not host.states())

    assert len(host.begun) == 1


async def test_a_stop_for_a_reused_pid_sends_no_signal(host: Host) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    host.scheduler.handle(START, clock.now())
    other = ProcessId(process_id.boot_id(), stranger.pid, 1)
    host.scheduler.handle(Spawned(INSTANCE, other, "http://127.0.0.1:1"), clock.now())
    (instance,) = host.scheduler.record().instances

    host.tell(CoolRequest("f", at_once=True))
    await host.until(lambda: not host.states())
    host.supervisor.perform(Stop(instance, 0.0))

    assert stranger.returncode is None
    os.kill(stranger.pid, signal.SIGKILL)
    await stranger.wait()
