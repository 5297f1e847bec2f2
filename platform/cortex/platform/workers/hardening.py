"""What the agent gives up for good when it starts, for itself and for whatever it starts.

Once here costs a worker's start nothing: the kernel hands it on to every child. No program a worker runs can gain
privileges by a set-user-id bit, and nothing leaves a core dump, which would hold prompts and keys.
"""

import contextlib
import ctypes
import os
import resource
import stat
import sys
import tempfile
from pathlib import Path

from cortex.platform.workers.worker_user import WorkerUser

_PR_SET_NO_NEW_PRIVS = 38


def confine(*, no_new_privs: bool = True) -> None:
    """Give it up, for this process and its children. Call it before there are threads."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # every connection of a stream is a descriptor
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if no_new_privs and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def temporary(instance: str, user: WorkerUser | None = None) -> Path:
    """Make a temporary directory that only a worker's user (default: ours) can look into. Raises OSError.

    Its path is short: engines put sockets into it, and those have room for 107 bytes.
    """
    path = temporary_path(instance)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if user is not None:
            user.own(path)
    found = path.lstat()
    its = os.geteuid() if user is None else user.uid
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != its or found.st_mode & 0o077:
        raise OSError(f"{path} belongs to somebody else")
    return path


def temporary_path(instance: str) -> Path:
    """Return where a worker's temporary files are."""
    return Path(tempfile.gettempdir()) / f"cortex-{instance}"
