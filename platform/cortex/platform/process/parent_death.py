"""Ends a process when its parent ends, even by KILL (`PR_SET_PDEATHSIG`, Linux only).

`cortex up` starts all its children through it, so no child outlives it. On other systems the children of a killed
parent keep running.

`python -m cortex.platform.process.parent_death PARENT-PID COMMAND…` makes the setting for itself and then executes the
command, which keeps it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel send TERM to this process when its parent dies. Exits at once if the parent is dead already."""
    if sys.platform != "linux":
        return
    parent = parent if parent is not None else os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the setting took effect
        sys.exit(0)


def main() -> None:
    """Execute a command that ends with the given parent."""
    parent, *command = sys.argv[1:]
    die_with_parent(int(parent))
    os.execvp(command[0], command)  # noqa: S606 (the command comes from our own parent)


if __name__ == "__main__":
    main()
