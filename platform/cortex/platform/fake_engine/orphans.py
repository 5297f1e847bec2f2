"""Processes that outlive the engine: what an agent must find and stop, and must be able to prove its own.

Both inherit the environment and so the marker that agents put there. They sleep for an hour, not for ever, so
that a forgotten one goes away by itself.
"""

import os
import subprocess

SLEEP = ("sleep", "3600")


def leave_grandchild(*, hold_stdout: bool) -> int:
    """A child of this engine, in its process group, that nobody will ever wait for."""
    output = None if hold_stdout else subprocess.DEVNULL
    process = subprocess.Popen(SLEEP, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    return process.pid


def leave_daemon(*, hold_stdout: bool) -> int:
    """A process forked twice: own session, own group, and its parent already gone."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        daemon = os.fork()
        if daemon:
            os.write(writer, str(daemon).encode())
            os._exit(0)
        if not hold_stdout:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
        os.execvp(SLEEP[0], SLEEP)  # noqa: S606 - a constant argv, and no shell
    os.waitpid(middle, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())
