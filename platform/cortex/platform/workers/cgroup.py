"""A control group per worker, where the host has cgroup v2 and lets us: the one net nothing slips through.

A process may leave its group, its session and its environment behind, but not its control group. Without v2, or
without the right to make groups (systemd: `Delegate=yes`), the other nets of `process.py` have to do. No
controller is enabled: a group is only a list of processes and a switch that kills them.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

GONE_WITHIN_S = 2.0


def home(mark: str, *, mounts: Path = Path("/proc/mounts"), own: Path = Path("/proc/self/cgroup")) -> Path | None:
    """Return the folder for this agent's workers, making it; None where the host does not allow it."""
    with contextlib.suppress(OSError, IndexError):
        mounted = next(
            (line.split()[1] for line in mounts.read_text().splitlines() if line.split()[2] == "cgroup2"), None
        )
        here = next((x[3:] for x in own.read_text().splitlines() if x.startswith("0::")), None)
        if mounted is None or here is None:
            return None
        folder = Path(mounted) / here.lstrip("/") / f"cortex-{mark}"
        folder.mkdir(exist_ok=True)
        return folder if (folder / "cgroup.kill").exists() else None
    return None


def entered(home: Path | None, instance: str, argv: Sequence[str]) -> list[str]:
    """Return the command that becomes `argv` inside a group of its own, made here.

    The process enters before it is the worker: one that was put in from outside could have forked before. The
    arguments go to the shell as positions, never as text.
    """
    door = made(home, instance)
    return list(argv) if door is None else ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(door), *argv]


def made(home: Path | None, instance: str) -> Path | None:
    """Make a worker's group; return the file in which a process writes its number to enter, None without groups."""
    if home is None:
        return None
    with contextlib.suppress(OSError):
        (home / instance).mkdir(exist_ok=True)
        return home / instance / "cgroup.procs"
    return None


def leave(home: Path | None) -> None:
    """Take the folder away once no worker is in it."""
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
    """KILL a worker's whole group at once, forks in progress included, and take the group away."""
    if home is None or not (home / instance).is_dir():
        return
    with contextlib.suppress(OSError):
        (home / instance / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < deadline:
        try:
            (home / instance).rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)  # the kernel empties it after the kill, and tells nobody but a watch on its file
        else:
            return
