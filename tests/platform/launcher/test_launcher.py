"""The launcher: eligible starts, parking, hand-over and death, with a real process and a small engine.

The engine here is a folder of a few modules called `vllm`, enough for the launcher to import and to run: what is
shown is the launcher's own work. Real vLLM is in `tests/vllm`.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cortex.platform.launcher import pool as launcher_pool
from cortex.platform.launcher.eligibility import ineligibility
from cortex.platform.launcher.pool import ForkedWorker, LauncherPool
from cortex.platform.process import environment, termination
from cortex.platform.process.process_id import identify, is_alive, send
from cortex.platform.workers import process
from cortex.platform.workers.launch_context import LAUNCHER_ENV
from tests.support.until import until

INSTANCE = f"{secrets.token_hex(8)}-2"  # of this run: tests in parallel find and kill processes by this mark too
OWNER = secrets.token_hex(4)

SERVER = """
import importlib, json, multiprocessing, os, random, sys, time
import vllm.platforms
import vllm.v1.engine.core as core

def main():
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=core.run, args=(sender,))
    child.start()
    said = receiver.recv()
    said["front"] = {"secret": multiprocessing.current_process().authkey.hex(), "random": random.random(),
                     "argv": sys.argv, "imported_s": core.IMPORTED, "env": os.environ.get("ASKED"), "pid": os.getpid(),
                     "devices": vllm.platforms.devices(),
                     "check": importlib.import_module("cortex_key_check").RequireKey.__name__}
    print(json.dumps(said), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    main()
"""
SCRIPT = "from vllm.entrypoints.openai.api_server import main\nif __name__ == '__main__':\n    main()\n"
PLATFORMS = """
import functools, os

@functools.cache
def devices():
    return os.environ.get("CUDA_VISIBLE_DEVICES", "none")

class Platform:
    def __getattr__(self, name):
        print("Current platform does not have", name)

current_platform = Platform()
devices()
"""
SETPROCTITLE = """
def setproctitle(title):
    raise RuntimeError("the library overwrites the environment")
"""
CORE = """
import multiprocessing, os, sys, time
import vllm.platforms
IMPORTED = time.time()

def worker(answer):
    answer.send({"env": os.environ.get("ASKED"), "imported_s": IMPORTED, "pid": os.getpid(), "argv": sys.argv,
                 "devices": vllm.platforms.devices()})
    time.sleep(60)

def run(answer):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=worker, args=(sender,)).start()
    print("the core speaks", flush=True)
    if os.environ.get("TITLE"):
        import setproctitle
        setproctitle.setproctitle(os.environ["TITLE"])
    answer.send({"core": {"env": os.environ.get("ASKED"), "imported_s": IMPORTED, "pid": os.getpid(),
                          "devices": vllm.platforms.devices()},
                 "worker": receiver.recv()})
    time.sleep(60)
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """How the small engine is run."""
    root = tmp_path / "lib" / "vllm"
    for name, text in {
        "__init__.py": "", "platforms.py": PLATFORMS,
        "v1/__init__.py": "", "v1/engine/__init__.py": "", "v1/engine/core.py": CORE,
        "entrypoints/__init__.py": "", "entrypoints/openai/__init__.py": "", "entrypoints/openai/api_server.py": SERVER,
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "lib" / "setproctitle.py").write_text(SETPROCTITLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    return (sys.executable, "-m", "vllm.entrypoints.openai.api_server")


class RunningPool:
    """A keeper at work, and what it told."""

    def __init__(self, command: tuple[str, ...], folder: Path) -> None:
        self.messages: list[str] = []
        self.folder = folder
        self.keeper = LauncherPool(
            command,
            base_env=LAUNCHER_ENV,
            owner=OWNER,
            log_path=folder / "launcher.log",
            busy=lambda: False,
            on_state=lambda state, memory_mb: self.messages.append(f"{state} {memory_mb}" if memory_mb else state),
        )
        self.command = command

    async def until(self, state: str, times: int = 1) -> None:
        await until(lambda: sum(t.startswith(state) for t in self.messages) >= times)

    def pid(self) -> int:
        """Return the launcher's pid."""
        assert self.keeper._child is not None
        return self.keeper._child.pid

    async def start(self, instance: str = INSTANCE, **env: str) -> ForkedWorker | str:
        argv = (*self.command, "--model", "tiny")
        wanted = process.worker_environment({**LAUNCHER_ENV, environment.OWNER: OWNER, **env}, instance)
        return await self.keeper.hand_over(argv, wanted, self.log(instance), None)

    def log(self, instance: str = INSTANCE) -> Path:
        return self.folder / f"{instance}.log"

    async def report(self, instance: str = INSTANCE) -> dict[str, dict[str, object]]:
        log = self.log(instance)
        await until(lambda: log.exists() and '"front"' in log.read_text())
        answer: dict[str, dict[str, object]] = json.loads(
            next(line for line in log.read_text().splitlines() if line.startswith("{"))
        )
        return answer


@pytest.fixture
async def pool(engine: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningPool]:
    monkeypatch.setattr(launcher_pool, "FIRST_PAUSE_S", 0.05)  # shortens a pause, and changes no decision
    running = RunningPool(engine, tmp_path)
    task = asyncio.ensure_future(running.keeper.keep())
    before = {p.pid for p in psutil.process_iter()}
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await running.keeper.close()
        for _, worker in process.find_owned(OWNER):
            if worker.pid not in before:
                send(worker, signal.SIGKILL)


async def test_the_launcher_forks_the_instance_with_all_three_processes_preloaded(pool: RunningPool) -> None:
    await pool.until("parked")
    parked, handed_over = pool.pid(), time.time()

    child = await pool.start(ASKED="yes")
    output = await pool.report()

    assert isinstance(child, ForkedWorker)
    assert child.pid == os.getsid(child.pid) == os.getpgid(child.pid) == output["front"]["pid"]
    assert {os.getsid(int(str(one["pid"]))) for one in output.values()} == {child.pid}
    assert pool.pid() == parked != child.pid
    assert output["front"]["argv"] == ["vllm", "--model", "tiny"] == output["worker"]["argv"]
    assert output["front"]["check"] == "RequireKey"
    for one in output.values():
        assert one["env"] == "yes"
        assert float(str(one["imported_s"])) < handed_over
        # The marker of the instance is what any process of the machine sees, and so is found by.
        assert psutil.Process(int(str(one["pid"]))).environ()[environment.MARKER] == INSTANCE
    assert "the core speaks" in pool.log().read_text()
    assert {worker.pid for name, worker in process.find_owned(OWNER) if name == INSTANCE} >= {
        int(str(one["pid"])) for one in output.values()
    }


async def test_a_script_runs_as_its_own_command(engine: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    (folder / "vllm").write_text(SCRIPT)
    pool = RunningPool((str(folder / "vllm"), "serve"), tmp_path)
    task = asyncio.ensure_future(pool.keeper.keep())
    await pool.until("parked")

    child = await pool.start()
    output = await pool.report()

    assert isinstance(child, ForkedWorker)
    assert output["front"]["argv"] == ["vllm", "serve", "--model", "tiny"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pool.keeper.close()
    await until(lambda: not process.kill_orphans(INSTANCE))


async def test_two_starts_in_a_row_are_both_forked_from_one_launcher(pool: RunningPool) -> None:
    await pool.until("parked")
    second = f"{INSTANCE}b"
    parked = pool.pid()

    children = [await pool.start(ASKED="one"), await pool.start(second, ASKED="two")]
    output = await pool.report(), await pool.report(second)

    assert [type(c) for c in children] == [ForkedWorker, ForkedWorker]
    assert [{one["env"] for one in of_instance.values()} for of_instance in output] == [{"one"}, {"two"}]
    for of_instance, instance in zip(output, (INSTANCE, second), strict=True):
        pids = [int(str(one["pid"])) for one in of_instance.values()]
        assert {psutil.Process(pid).environ()[environment.MARKER] for pid in pids} == {instance}
    assert pool.pid() == parked
    assert [t.partition(" ")[0] for t in pool.messages].count("parked") == 1


async def test_instances_of_one_launcher_share_neither_secrets_nor_random_numbers(pool: RunningPool) -> None:
    await pool.until("parked")
    second = f"{INSTANCE}b"

    await pool.start()
    await pool.start(second)
    one, two = await pool.report(), await pool.report(second)

    assert one["front"]["secret"] != two["front"]["secret"]
    assert one["front"]["random"] != two["front"]["random"]


async def test_the_memory_of_a_parked_launcher_is_reported(pool: RunningPool) -> None:
    await pool.until("parked")

    (parked,) = (t for t in pool.messages if t.startswith("parked"))

    assert int(parked.removeprefix("parked ")) > 5


async def test_an_exit_code_is_reported_by_the_launcher(pool: RunningPool) -> None:
    await pool.until("parked")
    child = await pool.start()
    assert isinstance(child, ForkedWorker)
    await pool.report()
    leader = identify(child.pid)
    assert leader is not None

    os.kill(child.pid, signal.SIGKILL)
    await termination.wait_for_exit(leader)

    assert await asyncio.to_thread(child.wait) == -signal.SIGKILL
    assert identify(child.pid) is None


async def test_a_worker_outlives_its_launcher_and_its_exit_code_is_unknown_then(pool: RunningPool) -> None:
    await pool.until("parked")
    child = await pool.start()
    assert isinstance(child, ForkedWorker)
    await pool.report()
    leader = identify(child.pid)
    assert leader is not None

    os.kill(pool.pid(), signal.SIGKILL)
    await pool.until("failed")
    alive = is_alive(leader)
    os.kill(child.pid, signal.SIGKILL)
    await termination.wait_for_exit(leader)

    assert alive
    assert child.wait() is None


async def test_the_log_is_emptied_for_each_launcher_and_appended_to(pool: RunningPool) -> None:
    """A launcher that is still exiting would otherwise write at its old position, after a gap."""
    await pool.until("parked")
    log, first = pool.folder / "launcher.log", pool.pid()
    flags = flags_of_output(first)
    with log.open("ab") as output:
        output.write(b"of the first launcher\n")

    os.kill(first, signal.SIGKILL)
    await pool.until("parked", times=2)

    assert flags & os.O_APPEND
    assert b"of the first launcher" not in log.read_bytes()


async def test_all_processes_of_the_worker_are_killed_by_its_marker(pool: RunningPool) -> None:
    await pool.until("parked")
    child = await pool.start()
    assert isinstance(child, ForkedWorker)
    output = await pool.report()
    os.kill(child.pid, signal.SIGKILL)

    await until(lambda: not process.kill_orphans(INSTANCE))

    assert not [one for one in output.values() if _runs(int(str(one["pid"])))]


async def test_a_launcher_killed_while_parked_is_replaced(pool: RunningPool) -> None:
    await pool.until("parked")
    first = pool.pid()

    os.killpg(first, signal.SIGKILL)
    await pool.until("failed: it was killed by SIGKILL while it was parked")
    refused = await pool.start()
    await pool.until("parked", times=2)

    assert isinstance(refused, str)
    assert pool.pid() != first


async def test_a_launcher_killed_while_it_forks_is_replaced_and_leaves_no_worker(pool: RunningPool) -> None:
    await pool.until("parked")
    first = pool.pid()
    os.kill(first, signal.SIGSTOP)
    starting = asyncio.ensure_future(pool.start())
    await asyncio.sleep(0)

    os.killpg(first, signal.SIGKILL)
    refused = await starting
    await pool.until("parked", times=2)

    assert isinstance(refused, str)
    assert refused.startswith("the launcher did not fork: ")
    assert process.orphans_of(INSTANCE) == []


async def test_a_start_that_is_cancelled_while_it_is_forked_leaves_no_worker(
    pool: RunningPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send_fds = threading.Event(), socket.send_fds

    def send(*order: Any) -> int:
        number = send_fds(*order)
        sent.set()
        return number

    await pool.until("parked")
    monkeypatch.setattr(socket, "send_fds", send)
    before = set(children_of(pool.pid()))
    os.kill(pool.pid(), signal.SIGSTOP)
    starting = asyncio.ensure_future(pool.start())
    assert await asyncio.to_thread(sent.wait, 20)  # and not carried out

    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    os.kill(pool.pid(), signal.SIGCONT)

    await until(lambda: not set(children_of(pool.pid())) - before)
    assert not pool.log().exists()


async def test_a_parked_launcher_ends_with_its_agent(pool: RunningPool) -> None:
    await pool.until("parked")
    pid = pool.pid()
    assert pool.keeper._line is not None

    pool.keeper._line.close()  # as the kernel does when an agent dies, however it dies

    await until(lambda: not _runs(pid))


async def test_cached_device_facts_are_cleared_at_the_hand_over(engine: tuple[str, ...], pool: RunningPool) -> None:
    """What the engine remembered of them while it was parked is of no device that the instance has."""
    del engine
    await pool.until("parked")
    await pool.start(CUDA_VISIBLE_DEVICES="GPU-1")

    output = await pool.report()

    assert [one["devices"] for one in output.values()] == ["GPU-1"] * 3
    assert "does not have" not in pool.log().read_text()


async def test_a_process_of_the_engine_can_name_itself(pool: RunningPool) -> None:
    await pool.until("parked")
    await pool.start(TITLE="VLLM::Core")

    output = await pool.report()

    core = psutil.Process(int(str(output["core"]["pid"])))
    assert (core.name(), core.cmdline()[0]) == ("VLLM::Core", "VLLM::Core")
    assert core.environ()[environment.MARKER] == INSTANCE


async def test_an_engine_whose_import_initialises_cuda_is_not_parked(engine: tuple[str, ...], tmp_path: Path) -> None:
    torch = tmp_path / "lib" / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("from torch import cuda\n")
    (torch / "cuda.py").write_text("def is_initialized():\n    return True\n")
    core = tmp_path / "lib" / "vllm" / "v1" / "engine" / "core.py"
    core.write_text(f"import torch\n{core.read_text()}")
    pool = RunningPool(engine, tmp_path)
    task = asyncio.ensure_future(pool.keeper.keep())

    await pool.until("failed: it exited with code 1 while importing")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert "importing the engine initialised CUDA" in (tmp_path / "launcher.log").read_text()


async def test_an_engine_that_cannot_be_imported_is_a_reported_failure(tmp_path: Path) -> None:
    pool = RunningPool((sys.executable, "-m", "vllm.entrypoints.openai.api_server"), tmp_path)
    task = asyncio.ensure_future(pool.keeper.keep())

    await pool.until("failed: it exited with code 1 while importing")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert isinstance(await pool.start(), str)
    assert "could not import the engine's core" in (tmp_path / "launcher.log").read_text()


async def test_a_launcher_that_closes_its_socket_and_runs_on_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_pool, "CLOSED_S", 0.1)  # shortens a wait, and changes no decision
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60 <&-\n")
    python.chmod(0o700)
    pool = RunningPool((str(python), "-m", "vllm"), tmp_path)
    task = asyncio.ensure_future(pool.keeper.keep())

    await pool.until("failed: it closed its socket while importing and did not exit")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert not _runs(int(pid.read_text()))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("head -c 200000 /dev/zero", "it wrote an endless line"),
        ("echo '[]'", "its greeting is not valid JSON"),
        ("echo not-json", "its greeting is not valid JSON"),
    ],
    ids=["endless", "no-object", "no-json"],
)
async def test_a_launcher_with_an_invalid_greeting_is_not_parked(tmp_path: Path, command: str, why: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{command} >&0\nexec sleep 60\n")
    python.chmod(0o700)
    pool = RunningPool((str(python), "-m", "vllm"), tmp_path)
    task = asyncio.ensure_future(pool.keeper.keep())

    await pool.until(f"failed: {why}")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert isinstance(await pool.start(), str)


@pytest.mark.parametrize(
    ("argv", "wanted", "why"),
    [
        ((), {"CUDA_VISIBLE_DEVICES": "GPU-1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}, ""),
        ((), {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}, "OMP_NUM_THREADS is read at import time"),
        ((), {"HF_HUB_OFFLINE": "0"}, "HF_HUB_OFFLINE is read at import time"),
        ((), {}, "HF_HUB_OFFLINE is read at import time"),
        (("--numa-bind",), {"HF_HUB_OFFLINE": "1"}, "--numa-bind needs a fresh process"),
    ],
)
def test_a_start_that_changes_import_time_settings_is_ineligible(
    argv: tuple[str, ...], wanted: dict[str, str], why: str
) -> None:
    assert ineligibility(argv, wanted, {"HF_HUB_OFFLINE": "1", "CORTEX_OWNER": "o"}) == why


def flags_of_output(pid: int) -> int:
    """Return the flags that a process's standard output was opened with."""
    return int(Path(f"/proc/{pid}/fdinfo/1").read_text().split("flags:")[1].split()[0], 8)


def children_of(pid: int) -> list[int]:
    """Return the children of a process that have not exited."""
    return [c.pid for c in psutil.Process(pid).children() if _runs(c.pid)]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
