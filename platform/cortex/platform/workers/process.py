"""Worker processes: starting one, knowing it again, waiting for its end, ending all of it.

A worker leads its own session and process group and carries its instance's id in its environment. Three nets
so catch whatever it starts: the group, the session (children that left the group) and the marker (children
that left the session). A process is identified by pid *and* start time: pids are used again.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

import psutil

from cortex.platform.workers import environment
from cortex.platform.workers.identity import WorkerUser

MARKER, OWNER = "CORTEX_INSTANCE", "CORTEX_OWNER"
"""Environment variables of every worker: its instance, and the agent whose it is."""


class NoPort(Exception):
    """No port of the allowed range is free."""


def spawn(argv: Sequence[str], env: Mapping[str, str], log: Path, marker: str) -> subprocess.Popen[bytes]:
    """Start a worker. Its output is appended to `log`; it inherits nothing meant for the agent. Raises OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            list(argv),
            env=worker_environment(env, marker),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def worker_environment(env: Mapping[str, str], marker: str) -> dict[str, str]:
    """Return a worker's whole environment, its marker last: what of the agent's is handed on, and its own over it."""
    return {**environment.handed_on(os.environ), **env, MARKER: marker}


def write_private(path: Path, content: str, user: WorkerUser | None = None) -> None:
    """Write a file that only a user (default: ours) may read. Raises OSError."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if user is not None:
            os.fchown(descriptor, user.uid, user.gid)
        file.write(content)


def owner(state_dir: Path) -> str:
    """Return the mark of the agent that keeps its state in a directory; it outlives the agent's restarts."""
    return hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]


def owned(mark: str) -> list[tuple[str, int]]:
    """Return instance and pid of every process that carries an agent's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            env = process.environ()
            if env.get(OWNER) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append((env.get(MARKER, ""), process.pid))
    return found


def started_at(pid: int) -> float:
    """Return when a process started (its identity beside the pid), or 0 when there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def alive(pid: int, started: float) -> bool:
    """Whether that very process still runs; a zombie does not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 0.02 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a worker and its children have used so far."""
    return sum(_of_family(pid, lambda p: sum(p.cpu_times()[:2])))


def resident_mb(pid: int) -> int | None:
    """Return the memory a worker and its children hold, in MiB; None when it is gone.

    What they share counts once: children of a parked launcher have most of what they imported in common.
    """
    total = sum(_of_family(pid, lambda p: p.memory_full_info().pss))
    return int(total) // (1024 * 1024) or None


def _of_family(pid: int, read: Callable[[psutil.Process], float]) -> list[float]:
    """Read something of a worker and of each of its children, as far as they are there."""
    found: list[float] = []
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        for one in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found.append(read(one))
    return found


def families(leaders: Mapping[str, int]) -> dict[int, str]:
    """Return the instance of every process that belongs to one: by its leader's session, or by its mark."""
    by_leader = {pid: instance for instance, pid in leaders.items()}
    found = dict(by_leader)
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            instance = by_leader.get(os.getsid(one.pid)) or one.environ().get(MARKER, "")
            if instance in leaders:
                found[one.pid] = instance
    return found


async def ended(pid: int) -> None:
    """Return when the process with this pid has ended. It need not be a child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def how_it_ended(code: int | None) -> str:
    """Say a return code in words."""
    if code is None:
        return "ended"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a worker's process group, if there still is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def remains(pid: int, marker: str) -> list[psutil.Process]:
    """Return the processes a worker left behind: of its session, or with its marker in their environment."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and (
                (pid and os.getsid(process.pid) == pid) or process.environ().get(MARKER) == marker
            ):
                found.append(process)
    return found


def kill_remains(pid: int, marker: str) -> list[psutil.Process]:
    """KILL whatever a worker left behind. Return what was found; ask again until it is nothing."""
    found = remains(pid, marker)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return found


def free_port(host: str, ports: str = "", *, taken: Container[int] = ()) -> int:
    """Return a port that can be bound on `host` now, from a range such as "20000-20100". Raises NoPort.

    `taken` are ports given to workers that may not have bound them yet.
    """
    first, _, last = ports.partition("-")
    candidates = range(int(first), int(last or first) + 1) if ports else (0,)
    for port in candidates:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            found = int(probe.getsockname()[1])
            if found not in taken:
                return found
    raise NoPort(f"no port of {ports} on {host} is free" if ports else f"no port on {host} is free")


async def accepts(host: str, port: int, *, within_s: float) -> bool:
    """Wait until something accepts connections at an address. False when the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.close()
                    return True
                await asyncio.sleep(0.02)
    return False


def tail(log: Path, lines: int = 20, most_bytes: int = 16_384) -> tuple[str, ...]:
    """Return the last lines of a log, whatever its size and encoding."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line[:400] for line in text.splitlines() if line.strip())[-lines:]
