"""Worker processes: starting, identifying, waiting for and killing them, with their descendants.

A worker leads its own session and process group, has its instance's id in its environment, and writes to its instance's
log. So its descendants are found in four ways: the group, the session (children that left the group), the marker
(children that left the session) and the log (children that have overwritten their environment, as vLLM's engine core
does with its title, and whose leader ended while no agent ran). Only processes proven to be a worker's are signalled:
by identity (`process_id.py`), by the marker in the environment, by the log that their output goes to, or by the session
of a leader that was proven while it was alive.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import psutil

from cortex.functions.names import slug
from cortex.platform.process import environment, process_id
from cortex.platform.process.environment import MARKER, OWNER
from cortex.platform.process.termination import signal_group
from cortex.platform.record import ProcessId
from cortex.platform.workers.worker_user import WorkerUser


def spawn(argv: Sequence[str], env: Mapping[str, str], log: Path, marker: str) -> subprocess.Popen[bytes]:
    """Start a worker. Appends its output to `log`; it does not inherit the agent's secrets. Raises OSError."""
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
    """Return a worker's full environment, its marker last."""
    return {**environment.worker_environment(os.environ, env), MARKER: marker}


def write_private(path: Path, content: bytes, user: WorkerUser | None = None, *, durable: bool = False) -> None:
    """Replace a file that only a user (default: the agent's) may read. Raises OSError.

    An error leaves the old file or none, never a part of the new one; `durable`: so does a power failure.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if user is not None:
            os.fchown(descriptor, user.uid, user.gid)
        file.write(content)
        if durable:
            file.flush()
            os.fsync(descriptor)
    fresh.replace(path)


def owner(state_dir: Path) -> str:
    """Return the mark of the agent with this state directory; it is stable across restarts."""
    return hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]


def find_owned(owner_mark: str) -> list[tuple[str, ProcessId]]:
    """Return every process with an agent's mark, with its instance."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            identity, env = process_id.identify(process.pid), process.environ()
            if env.get(OWNER) == owner_mark and identity is not None and process_id.is_alive(identity):
                processes.append((env.get(MARKER, ""), identity))
    return processes


def has_marker(pid: int, marker: str) -> bool:
    """Return whether the process with this pid has an instance's marker in its environment."""
    with contextlib.suppress(psutil.Error, OSError):
        return bool(marker) and psutil.Process(pid).environ().get(MARKER) == marker
    return False


def log_of(pid: int, instance: str) -> str:
    """Return the log (`log_name`) to which the process with this pid writes as a worker of an instance; "" for none."""
    paths = (target.split("/")[-2:] for target in _outputs(pid))
    return next(("/".join(path) for path in paths if path[-1] == f"{slug(instance)}.log"), "")


def writes_to(pid: int, log: str) -> bool:
    """Return whether the output of the process with this pid goes to an instance's log (`log_name`)."""
    return bool(log) and any(target.endswith(f"/{log}") for target in _outputs(pid))


def _outputs(pid: int) -> list[str]:
    """Return the paths of the files that are a process's standard output and standard error. Opens none of them."""
    paths = []
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            paths.append(os.readlink(f"/proc/{pid}/fd/{stream}").removesuffix(" (deleted)"))  # noqa: PTH115
    return paths


def cpu_s(pid: int) -> float:
    """Return the CPU seconds used by a worker and its children."""
    return sum(_of_family(pid, lambda p: sum(p.cpu_times()[:2])))


def resident_mb(pid: int) -> int | None:
    """Return the memory of a worker and its children in MiB; None when it has exited.

    Shared memory counts once: children of a parked launcher share most of their imports.
    """
    total = sum(_of_family(pid, lambda p: p.memory_full_info().pss))
    return int(total) // (1024 * 1024) or None


def number_in(path: Path) -> int | None:
    """Return the number in a fake worker's scratch file, its pretended device memory."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _of_family(pid: int, read: Callable[[psutil.Process], float]) -> list[float]:
    """Return `read()` of a worker and each of its children, without those that have exited."""
    values: list[float] = []
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                values.append(read(process))
    return values


def families(leaders: Mapping[str, int]) -> dict[int, str]:
    """Return the instance of every worker process by pid, from its leader's session or its marker."""
    by_leader = {pid: instance for instance, pid in leaders.items()}
    owners = dict(by_leader)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            instance = by_leader.get(os.getsid(process.pid)) or process.environ().get(MARKER, "")
            if instance in leaders:
                owners[process.pid] = instance
    return owners


def signal_worker(leader: ProcessId, number: signal.Signals) -> bool:
    """Signal a worker's process group. False when its leader has exited, since its pid may have been reused."""
    if not process_id.is_alive(leader):
        return False
    signal_group(leader.pid, number)
    return True


def session_of(leader: ProcessId) -> frozenset[ProcessId]:
    """Return the processes of a worker's session.

    Call it while the leader is alive, not yet waited for, or has just exited: later, another session may have its pid.
    """
    status = process_id.status(leader.pid)
    if status is not None and status.ticks != leader.ticks:
        return frozenset()
    members = (process_id.identify(pid) for pid in psutil.pids() if _session(pid) == leader.pid)
    return frozenset(m for m in members if m is not None)


def orphans_of(marker: str, proven: Collection[ProcessId] = (), log: str = "") -> list[ProcessId]:
    """Return a worker's remaining processes: those with its marker or its log, the `proven` ones, and all in the
    sessions of the latter."""
    proven = {p for p in proven if process_id.is_alive(p)}
    sessions = {_session(p.pid) for p in proven} - {_session(os.getpid()), -1}
    orphans = []
    for pid in psutil.pids():
        candidate = process_id.identify(pid) if pid != os.getpid() else None
        if candidate is None or not process_id.is_alive(candidate):
            continue
        if candidate in proven or _session(pid) in sessions or has_marker(pid, marker) or writes_to(pid, log):
            orphans.append(candidate)
    return orphans


def kill_orphans(marker: str, proven: Collection[ProcessId] = (), log: str = "") -> list[ProcessId]:
    """KILL a worker's remaining processes and return them. Call again until it returns none."""
    remaining = orphans_of(marker, proven, log)
    for orphan in remaining:
        process_id.send(orphan, signal.SIGKILL)
    return remaining


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
