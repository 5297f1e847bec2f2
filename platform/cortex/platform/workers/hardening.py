"""Restrictions that the agent puts on itself at startup; the kernel passes them to every worker.

No program that a worker runs can gain privileges through a set-user-id bit, and no process leaves a core dump, which
would contain prompts and keys.
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


def harden_process(*, no_new_privs: bool = True) -> None:
    """Restrict this process and its children. Call before starting threads."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # each stream's connection needs a descriptor
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if no_new_privs and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def temporary(instance: str, user: WorkerUser | None = None) -> Path:
    """Make a temporary directory private to a worker's user (default: the agent's). Raises OSError.

    Its path is short: engines put sockets into it, and socket paths have at most 107 bytes.
    """
    path = temporary_path(instance)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        if user is not None:
            user.own(path)
    stat_result = path.lstat()
    owner = os.geteuid() if user is None else user.uid
    if not stat.S_ISDIR(stat_result.st_mode) or stat_result.st_uid != owner or stat_result.st_mode & 0o077:
        raise OSError(f"{path} belongs to another user or is not private")
    return path


def temporary_path(instance: str) -> Path:
    """Return the path of a worker's temporary directory."""
    return Path(tempfile.gettempdir()) / f"cortex-{instance}"
