"""Worker processes: starting one, recognising it, waiting for its end, ending all of it.

A worker leads its own session and process group and carries its instance's id in its environment. Three nets
so catch whatever it starts: the group, the session (children that left the group) and the marker (children
that left the session). Nothing is signalled that is not proved to be a worker's: by its identity (`process_id.py`), by
the marker in its environment, or by the session of a leader that was proved when it was last alive.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from pathlib import Path

import psutil

from cortex.platform import process_id, untrusted
from cortex.platform.record import ProcessId
from cortex.platform.workers import environment
from cortex.platform.workers.worker_user import WorkerUser

MARKER, OWNER = "CORTEX_INSTANCE", "CORTEX_OWNER"
"""Environment variables of every worker: its instance, and the agent whose it is."""


LINE_LENGTH = 400
"""Characters that are shown of one line of a log."""


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
    """Return a worker's whole environment, its marker last."""
    return {**environment.whole(os.environ, env), MARKER: marker}


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


def started_at(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot; 0 when there is none."""
    found = process_id.status(pid)
    return found.ticks if found else 0


def alive(pid: int, ticks: int) -> bool:
    """Whether the process of this boot with that pid and start still runs; a zombie does not."""
    return process_id.is_alive(ProcessId(process_id.boot_id(), pid, ticks))


def carries(pid: int, marker: str) -> bool:
    """Whether the process with this pid has an instance's marker in its environment."""
    with contextlib.suppress(psutil.Error, OSError):
        return bool(marker) and psutil.Process(pid).environ().get(MARKER) == marker
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


async def ended(process: ProcessId) -> None:
    """Return when a process has ended. It need not be a child of ours."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        if not process_id.is_alive(process):  # the descriptor may be another's, who has the pid now
            return
        loop.add_reader(descriptor, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
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
    """Signal the process group of a child of ours that was not waited for yet: until then its pid is not used again."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def signal_worker(leader: ProcessId, number: signal.Signals) -> bool:
    """Signal a worker's process group. False when its leader does not run any more: the number may be another's."""
    if not process_id.is_alive(leader):
        return False
    signal_group(leader.pid, number)
    return True


def session_of(leader: ProcessId) -> frozenset[ProcessId]:
    """Return the processes of a worker's session.

    Call it while the leader is alive, not yet waited for, or has ended this moment: later, another session may have
    its number.
    """
    found = process_id.status(leader.pid)
    if found is not None and found.ticks != leader.ticks:
        return frozenset()
    members = (process_id.identify(pid) for pid in psutil.pids() if _session(pid) == leader.pid)
    return frozenset(m for m in members if m is not None)


def remains(marker: str, proved: Collection[ProcessId] = ()) -> list[ProcessId]:
    """Return the processes a worker left behind: those that carry its marker, those that are `proved` to be its own,
    and whatever these have started in their sessions since."""
    proved = {p for p in proved if process_id.is_alive(p)}
    sessions = {_session(p.pid) for p in proved} - {_session(os.getpid()), -1}
    found = []
    for pid in psutil.pids():
        one = process_id.identify(pid) if pid != os.getpid() else None
        if one is None or not process_id.is_alive(one):
            continue
        if one in proved or _session(pid) in sessions or carries(pid, marker):
            found.append(one)
    return found


def kill_remains(marker: str, proved: Collection[ProcessId] = ()) -> list[ProcessId]:
    """KILL whatever a worker left behind. Return what was there; call it again until that is nothing."""
    left = remains(marker, proved)
    for one in left:
        process_id.send(one, signal.SIGKILL)
    return left


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


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


def note(log: Path, text: str) -> None:
    """Add a line of ours to a worker's log: what it answered belongs there, and nowhere else."""
    with contextlib.suppress(OSError), log.open("ab") as file:
        file.write(f"cortex: {text}\n".encode(errors="replace"))


def tail(log: Path, lines: int = 20, most_bytes: int = 16_384) -> tuple[str, ...]:
    """Return the last lines of a log, cleaned, whatever its size and encoding."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    last = (untrusted.line(line, LINE_LENGTH) for line in text.splitlines())
    return tuple(line for line in last if line.strip())[-lines:]
