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


def home(mark: str, *, mounts: Path = Path("/proc/mounts"), own: Path = Path("/proc/self/cgroup")) -> Path | None:
    """Create and return the folder for this agent's workers; None where the host does not allow it."""
    with contextlib.suppress(OSError, IndexError):
        mount = next(
            (line.split()[1] for line in mounts.read_text().splitlines() if line.split()[2] == "cgroup2"), None
        )
        path = next((x[3:] for x in own.read_text().splitlines() if x.startswith("0::")), None)
        if mount is None or path is None:
            return None
        folder = Path(mount) / path.lstrip("/") / f"cortex-{mark}"
        folder.mkdir(exist_ok=True)
        return folder if (folder / "cgroup.kill").exists() else None
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
