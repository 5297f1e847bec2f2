"""Freezing workers, with the real driver process and a driver's library of the tests."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from cortex.platform.process import process_id
from cortex.platform.record import ProcessId
from cortex.platform.workers.checkpoint import (
    DRIVER,
    FreezeFailed,
    Freezer,
    Limits,
    Recovery,
    rights_problem,
)
from cortex.platform.workers.checkpoint_driver import FreezeProblem
from cortex.platform.workers.process import kill_orphans
from cortex.platform.workers.worker_user import WorkerUser
from tests.support import cuda_double
from tests.support.cuda_double import MEMORY_MB, Card
from tests.support.stack import free_port
from tests.support.until import until

pytestmark = pytest.mark.skipif(cuda_double.COMPILER is None, reason="needs a C compiler for the driver's double")

QUICK = Limits(released_s=0.2)
IMPATIENT = Limits(move_s=0.5, slack_s=0.2)
AN_AGENT = """
import asyncio, json, sys
from cortex.platform.record import ProcessId
from cortex.platform.workers.checkpoint import Freezer

async def main(verb, leader, marker, files):
    async def used():
        return {int(pid): int(open(file).read()) for pid, file in files.items()}
    freezer, leader = Freezer(), ProcessId(*leader)
    await (freezer.freeze(leader, marker, used) if verb == "freeze" else freezer.restore(leader, marker))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    for name, value in cuda_double.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    card = Card(tmp_path, secrets.token_hex(8))  # unique: parallel tests mark processes too
    yield card
    card.close()


@pytest.fixture
async def freezer(card: Card) -> AsyncIterator[Freezer]:
    freezer = Freezer(limits=QUICK)
    yield freezer
    freezer.close()


async def problem_of(freezer: Freezer) -> str:
    await freezer.probe()
    return freezer.problem


async def failure_of(work: Awaitable[object]) -> FreezeFailed:
    with pytest.raises(FreezeFailed) as raised:
        await work
    return raised.value


# Whether this host can freeze.


async def test_a_driver_with_checkpoints_can_freeze(freezer: Freezer) -> None:
    assert await problem_of(freezer) == ""


async def test_a_host_without_the_drivers_library_cannot_freeze(
    freezer: Freezer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_LIBCUDA", "/nonexistent/libcuda.so.1")

    assert "the CUDA driver's library cannot be loaded: /nonexistent/libcuda.so.1" in await problem_of(freezer)


async def test_another_library_than_the_drivers_is_refused(freezer: Freezer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_LIBCUDA", "libc.so.6")

    assert await problem_of(freezer) == "libc.so.6 is not the CUDA driver's library"


async def test_a_driver_before_580_cannot_freeze(card: Card, freezer: Freezer) -> None:
    (card.folder / "version").write_text("12080")

    assert await problem_of(freezer) == (
        "the NVIDIA driver supports CUDA 12.8; freezing needs driver 580 or newer (CUDA 13.0)"
    )


async def test_a_host_on_which_cuda_does_not_start_cannot_freeze(card: Card, freezer: Freezer) -> None:
    (card.folder / "init").write_text("100")

    assert await problem_of(freezer) == "CUDA does not start: CUDA error 100"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("/nonexistent",), "the driver process could not be started"),
        (("sh", "-c", "exit 3"), "the driver process exited with code 3 during 'probe'"),
        (("sh", "-c", "echo rubbish; exec cat >/dev/null"), "the driver process sent an invalid answer during 'probe'"),
        (("sh", "-c", "exec sleep 600"), "the driver did not answer 'probe' within"),
    ],
)
async def test_a_driver_process_that_does_not_answer_properly_is_a_problem(
    command: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    freezer = Freezer(command=command, limits=Limits(start_s=0.1, short_s=0.1, slack_s=0.1), device=tmp_path)

    assert problem in await problem_of(freezer)


async def test_a_problem_is_examined_again_later(card: Card, freezer: Freezer) -> None:
    (card.folder / "init").write_text("100")
    assert freezer.probe_is_due
    await freezer.probe()

    assert not freezer.probe_is_due


async def test_a_host_without_an_nvidia_driver_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORTEX_LIBCUDA", raising=False)
    freezer = Freezer(command=("/nonexistent",), device=tmp_path / "nvidiactl")

    assert await problem_of(freezer) == f"this host has no NVIDIA driver: there is no {tmp_path}/nvidiactl"


@pytest.mark.parametrize(
    ("uid", "capabilities", "allowed"),
    [
        (os.geteuid(), "0000000000000000", True),
        (os.geteuid() + 1, "0000000000080000", True),
        (os.geteuid() + 1, "000001ffffffffff", True),
        (os.geteuid() + 1, "0000000000040000", False),
        (os.geteuid() + 1, "rubbish", False),
    ],
)
def test_workers_of_another_user_need_a_capability(uid: int, capabilities: str, allowed: bool, tmp_path: Path) -> None:
    (tmp_path / "status").write_text(f"Name:\tcortex\nCapEff:\t{capabilities}\n")
    user = WorkerUser(name="engines", uid=uid, gid=uid, home="/", setpriv="setpriv")

    problem = rights_problem(user, tmp_path / "status")

    assert problem == ("" if allowed else "the agent has no CAP_SYS_PTRACE, which it needs for workers of user engines")


# Freezing.


async def test_a_frozen_worker_has_no_device_memory_and_serves_after_the_restore(card: Card, freezer: Freezer) -> None:
    port = free_port()
    engine = card.start_engine(f"--port={port}")
    before = await answer(port)

    assert await freezer.freeze(engine, card.marker, card.used) == MEMORY_MB

    assert await card.used() == {}
    assert card.stopped(engine)
    assert (await freezer.recover(engine, card.marker)).state is Recovery.FROZEN

    await freezer.restore(engine, card.marker)

    assert await card.used() == {engine.pid: MEMORY_MB}
    assert await answer(port) == before


async def answer(port: int) -> object:
    """Return the fake engine's answer, once it is ready."""
    url, body = f"http://127.0.0.1:{port}/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}
    async with aiohttp.ClientSession() as http, asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(url, json={"model": "m", **body}) as response:
                    if response.status == 200:
                        return (await response.json())["choices"]
            await asyncio.sleep(0.02)


async def test_all_processes_are_locked_before_the_first_is_checkpointed(card: Card, freezer: Freezer) -> None:
    leader, _ = card.start(), card.start()

    await freezer.freeze(leader, card.marker, card.used)
    await freezer.restore(leader, card.marker)

    order = ["lock", "checkpoint", "restore", "unlock"]
    assert [call.split()[0] for call in card.calls()] == [name for name in order for _ in range(2)]


async def test_only_processes_with_device_memory_are_frozen_and_restored(card: Card, freezer: Freezer) -> None:
    leader, engine = card.start(memory_mb=0), card.start()

    await freezer.freeze(leader, card.marker, card.used)

    assert card.calls() == ["lock 1", "checkpoint 1"]
    assert (card.stopped(leader), card.stopped(engine)) == (False, True)

    await freezer.restore(leader, card.marker)

    assert card.calls()[2:] == ["restore 1", "unlock 1"]


async def test_a_process_of_another_worker_is_not_frozen(card: Card, freezer: Freezer) -> None:
    ours = card.start()
    card.marker = secrets.token_hex(8)
    card.start()

    await freezer.freeze(ours, "", card.used)

    assert card.calls() == ["lock 0", "checkpoint 0"]


async def test_a_worker_without_device_memory_is_not_frozen(card: Card, freezer: Freezer) -> None:
    leader = card.start(memory_mb=0)

    failure = await failure_of(freezer.freeze(leader, card.marker, card.used))

    assert (failure.problem, failure.runs) == (FreezeProblem.NOTHING_HELD, True)
    assert card.calls() == []


async def test_a_pid_that_another_process_has_now_is_not_touched(card: Card, freezer: Freezer) -> None:
    process = card.start()
    earlier = replace(process, ticks=process.ticks - 1)
    other = f"no-{card.marker}"

    assert (await failure_of(freezer.freeze(earlier, other, card.used))).problem is FreezeProblem.NOTHING_HELD
    assert (await failure_of(freezer.restore(earlier, other))).problem is FreezeProblem.STATE
    assert card.calls() == []


def test_the_driver_process_proves_the_identity_itself(card: Card) -> None:
    process = card.start()
    request = {"do": "lock", "process": {"boot": process.boot, "pid": process.pid, "ticks": process.ticks - 1}}

    answers = subprocess.run(DRIVER, input=json.dumps(request) + "\n", capture_output=True, text=True, check=True)

    assert json.loads(answers.stdout) == {"problem": "gone", "text": f"process {process.pid} has ended"}
    assert card.calls() == []


# Failures.


@pytest.mark.parametrize(
    ("operation", "word", "problem", "calls"),
    [
        ("lock", "600", FreezeProblem.BUSY, ["lock 0", "lock 1", "unlock 0"]),
        ("lock", "800", FreezeProblem.RIGHTS, ["lock 0", "lock 1", "unlock 0"]),
        ("checkpoint", "801", FreezeProblem.UNSUPPORTED, ["checkpoint 1", "restore 0", "unlock 0", "unlock 1"]),
        ("checkpoint", "2", FreezeProblem.NO_ROOM, ["checkpoint 1", "restore 0", "unlock 0", "unlock 1"]),
        ("checkpoint", "die", FreezeProblem.NO_ANSWER, ["checkpoint 1", "restore 0", "unlock 0", "unlock 1"]),
        ("checkpoint", "stay", FreezeProblem.MEMORY_STAYS, ["checkpoint 1", "restore 0", "restore 1", "unlock 0"]),
    ],
)
async def test_a_freeze_that_fails_half_way_is_undone(
    operation: str, word: str, problem: FreezeProblem, calls: list[str], card: Card, freezer: Freezer
) -> None:
    leader, second = card.start(), card.start()
    card.fault(operation, word, second.pid)

    failure = await failure_of(freezer.freeze(leader, card.marker, card.used))

    assert (failure.problem, failure.runs) == (problem, True)
    first = card.calls().index(calls[0])
    assert card.calls()[first : first + len(calls)] == calls
    await until(lambda: not card.stopped(leader) and not card.stopped(second))
    assert await card.used() == {leader.pid: MEMORY_MB, second.pid: MEMORY_MB}
    card.repair()
    assert (await freezer.recover(leader, card.marker)).state is Recovery.RUNNING


async def test_a_worker_whose_checkpoint_broke_does_not_run(card: Card, freezer: Freezer) -> None:
    leader = card.start()
    card.fault("checkpoint", "fail")

    failure = await failure_of(freezer.freeze(leader, card.marker, card.used))

    assert (failure.problem, failure.runs) == (FreezeProblem.DRIVER, False)
    recovered = await freezer.recover(leader, card.marker)
    assert (recovered.state, recovered.text) == (Recovery.BROKEN, "the driver reports that its checkpoint failed")


async def test_memory_that_cannot_be_read_counts_as_not_released(card: Card, freezer: Freezer) -> None:
    leader = card.start()

    async def used() -> dict[int, int] | None:
        return None if card.calls() else {leader.pid: MEMORY_MB}

    failure = await failure_of(freezer.freeze(leader, card.marker, used))

    assert (failure.problem, failure.runs) == (FreezeProblem.MEMORY_STAYS, True)
    assert "NVML cannot be read" in str(failure)


async def test_a_driver_that_hangs_is_killed(card: Card) -> None:
    leader, freezer = card.start(), Freezer(limits=IMPATIENT)
    card.fault("checkpoint", "wait")

    failure = await failure_of(freezer.freeze(leader, card.marker, card.used))

    assert (failure.problem, failure.runs) == (FreezeProblem.NO_ANSWER, True)
    assert card.calls() == ["lock 0", "checkpoint 0", "unlock 0"]
    freezer.close()


@pytest.mark.parametrize("word", ["2", "999", "fail", "die"])
async def test_a_restore_that_fails_leaves_a_worker_that_does_not_run(word: str, card: Card, freezer: Freezer) -> None:
    leader = card.start()
    await freezer.freeze(leader, card.marker, card.used)
    card.fault("restore", word)

    failure = await failure_of(freezer.restore(leader, card.marker))

    assert not failure.runs
    assert (await freezer.recover(leader, card.marker)).state is not Recovery.RUNNING


async def test_a_worker_that_is_not_frozen_cannot_be_restored(card: Card, freezer: Freezer) -> None:
    leader = card.start()

    assert (await failure_of(freezer.restore(leader, card.marker))).problem is FreezeProblem.STATE


async def test_a_worker_that_waits_for_the_driver_does_not_hold_up_another(card: Card, freezer: Freezer) -> None:
    slow, fast = card.start(), card.start()
    card.fault("checkpoint", "wait", slow.pid)
    patient = Freezer()
    freezing = asyncio.create_task(patient.freeze(slow, "", card.used))
    await until(lambda: "checkpoint 0" in card.calls())

    await patient.freeze(fast, "", card.used)

    assert not freezing.done()
    card.go()
    await freezing
    patient.close()


async def test_a_cancelled_freeze_ends_after_its_operation(card: Card) -> None:
    leader = card.start()
    card.fault("checkpoint", "wait")
    freezer = Freezer()
    freezing = asyncio.create_task(freezer.freeze(leader, card.marker, card.used))
    await until(lambda: "checkpoint 0" in card.calls())

    freezing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freezing
    card.go()

    assert (await freezer.recover(leader, card.marker)).state is Recovery.FROZEN
    freezer.close()


# After the end of the agent.


@pytest.mark.parametrize(
    ("verb", "operation", "state"),
    [
        ("freeze", "lock", Recovery.RUNNING),
        ("freeze", "checkpoint", Recovery.FROZEN),
        ("restore", "restore", Recovery.RUNNING),
        ("restore", "unlock", Recovery.RUNNING),
    ],
)
async def test_an_operation_ends_although_its_agent_is_killed(
    verb: str, operation: str, state: Recovery, card: Card, freezer: Freezer
) -> None:
    leader = card.start()
    if verb == "restore":
        await freezer.freeze(leader, card.marker, card.used)
    card.fault(operation, "wait")
    agent = start_agent(verb, card, leader)
    await until(lambda: f"{operation} 0" in card.calls())

    agent.kill()
    agent.wait(10)
    recovering = asyncio.create_task(freezer.recover(leader, card.marker))
    card.go()

    assert (await recovering).state is state
    await until(lambda: card.stopped(leader) is (state is Recovery.FROZEN))
    assert await card.used() == ({} if state is Recovery.FROZEN else {leader.pid: MEMORY_MB})


async def test_a_worker_left_half_way_is_broken(card: Card, freezer: Freezer) -> None:
    leader, second = card.start(), card.start()
    card.fault("checkpoint", "die", second.pid)
    card.fault("restore", "die")
    failure = await failure_of(freezer.freeze(leader, card.marker, card.used))

    recovered = await freezer.recover(leader, card.marker)

    assert (recovered.state, recovered.text) == (Recovery.BROKEN, "its checkpoint was left half-way")
    assert not failure.runs


async def test_a_worker_that_the_driver_does_not_know_is_broken(card: Card, freezer: Freezer) -> None:
    other, leader = start_other()

    recovered = await freezer.recover(leader, card.marker)

    other.kill()
    other.wait(10)
    assert (recovered.state, recovered.text) == (Recovery.BROKEN, "the driver does not know it")


async def test_a_frozen_worker_can_be_killed(card: Card, freezer: Freezer) -> None:
    leader = card.start()
    await freezer.freeze(leader, card.marker, card.used)

    assert kill_orphans(card.marker) == [leader]

    assert card.processes[0].wait(10) == -signal.SIGKILL


async def test_a_frozen_worker_that_lost_a_process_is_noticed_by_its_agent_and_by_the_next(
    card: Card, freezer: Freezer
) -> None:
    """The process that holds the memory in RAM is what the kernel kills when RAM is short, not the worker's first."""
    leader, _, _ = card.start(memory_mb=0), card.start(), card.start()
    await freezer.freeze(leader, card.marker, card.used)
    following = Freezer()
    await following.recover(leader, card.marker)
    before = [f.has_lost_a_process(card.marker) for f in (freezer, following)]

    card.processes[1].kill()
    card.processes[1].wait(10)

    after = [f.has_lost_a_process(card.marker) for f in (freezer, following)]
    following.close()
    assert (before, after) == ([False, False], [True, True])
    freezer.forget(card.marker)
    assert not freezer.has_lost_a_process(card.marker)


def start_other() -> tuple["subprocess.Popen[bytes]", ProcessId]:
    """Start a process without device memory."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    leader = process_id.identify(child.pid)
    assert leader
    return child, leader


def start_agent(verb: str, card: Card, leader: ProcessId) -> "subprocess.Popen[bytes]":
    """Start a process that freezes or restores a worker, as an agent does."""
    files = {p.pid: str(card.memory_file(n)) for n, p in enumerate(card.processes)}
    arguments = json.dumps([verb, [leader.boot, leader.pid, leader.ticks], card.marker, files])
    return subprocess.Popen([sys.executable, "-c", AN_AGENT, arguments])
