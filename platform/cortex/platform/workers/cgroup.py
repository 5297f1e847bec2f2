"""A control group per worker, where the host has cgroup v2 and the agent may create groups.

A process can leave its process group, session and environment, but not its control group. Without v2 or without the
right to create groups (systemd: `Delegate=yes`), only the other means of `process.py` apply. No controller is
enabled: a group is only a list of processes and a switch that kills them.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

EMPTY_WITHIN_S = 2.0


MOUNTS, OWN = Path("/proc/mounts"), Path("/proc/self/cgroup")
MIB = 1 << 20


def home(mark: str, *, mounts: Path = MOUNTS, own: Path = OWN) -> Path | None:
    """Create and return the folder for this agent's workers; None where the host does not allow it."""
    with contextlib.suppress(OSError):
        if (groups := _groups(mounts, own)) is not None:
            folder = groups[0] / f"cortex-{mark}"
            folder.mkdir(exist_ok=True)
            return folder if (folder / "cgroup.kill").exists() else None
    return None


def free_mb(*, mounts: Path = MOUNTS, own: Path = OWN) -> int | None:
    """Return how much memory the limits of this process's groups leave, without what the kernel can take back from file
    caches; None without a limit. Workers are in the same groups."""
    left = [mb for group in _groups(mounts, own) or () if (mb := _left_mb(group)) is not None]
    return min(left, default=None)


def _left_mb(group: Path) -> int | None:
    """Return what a group's limit leaves; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = next((int(value) for name, value in lines if name == "inactive_file"), 0)
        return max(0, limit - used + cached) // MIB
    return None  # "max", or a group without the memory controller


def _groups(mounts: Path, own: Path) -> list[Path] | None:
    """Return the folders of this process's group and of the groups around it; None without cgroup v2."""
    with contextlib.suppress(OSError, IndexError):
        mount = next(
            (line.split()[1] for line in mounts.read_text().splitlines() if line.split()[2] == "cgroup2"), None
        )
        path = next((x[3:] for x in own.read_text().splitlines() if x.startswith("0::")), None)
        if mount is not None and path is not None:
            group, top = Path(mount) / path.lstrip("/"), Path(mount)
            return [group, *(p for p in group.parents if p == top or top in p.parents)]
    return None


def wrap_command(home: Path | None, instance: str, argv: Sequence[str]) -> list[str]:
    """Create a worker's group; return the command that enters it and then executes `argv`.

    The process enters its group before the exec: a process moved from outside could have forked already. Arguments go
    to the shell as positional parameters, never as text.
    """
    procs_file = create(home, instance)
    return list(argv) if procs_file is None else ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(procs_file), *argv]


def create(home: Path | None, instance: str) -> Path | None:
    """Create a worker's group; return the file to which a process writes its pid to enter. None without groups."""
    if home is None:
        return None
    with contextlib.suppress(OSError):
        (home / instance).mkdir(exist_ok=True)
        return home / instance / "cgroup.procs"
    return None


def remove_home(home: Path | None) -> None:
    """Remove the folder if it has no workers."""
    if home is not None:
        with contextlib.suppress(OSError):
            home.rmdir()


def instances(home: Path | None) -> list[str]:
    """Return the instances that have a group."""
    if home is None:
        return []
    try:
        return sorted(entry.name for entry in home.iterdir() if entry.is_dir())
    except OSError:
        return []


def members(home: Path | None, instance: str) -> list[int]:
    """Return the processes of a worker's group."""
    if home is None:
        return []
    try:
        return [int(pid) for pid in (home / instance / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []


def kill(home: Path | None, instance: str) -> None:
    """KILL a worker's whole group at once, including forks in progress, and remove the group."""
    if home is None or not (home / instance).is_dir():
        return
    with contextlib.suppress(OSError):
        (home / instance / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + EMPTY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            (home / instance).rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)  # the kernel empties it after the kill; only a watch on its file would report that
        else:
            return
