"""A leash: a process that ends when its parent ends, however the parent ended.

`cortex up` puts all its children on one, so that even `kill -9` of the parent leaves nothing behind. Linux
only (`PR_SET_PDEATHSIG`); elsewhere a killed parent leaves its children running, as with most programs.

As a program, `python -m cortex.platform.process.parent_death PARENT-PID COMMAND…` puts itself on the leash and
becomes the command: the setting survives `exec`.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel send TERM to this process when its parent dies. Exits at once if that has happened."""
    if sys.platform != "linux":
        return
    parent = parent if parent is not None else os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the setting took hold
        sys.exit(0)


def main() -> None:
    """Become the command given, on a leash to the parent given."""
    parent, *command = sys.argv[1:]
    die_with_parent(int(parent))
    os.execvp(command[0], command)  # noqa: S606 (the command is our own parent's)


if __name__ == "__main__":
    main()
