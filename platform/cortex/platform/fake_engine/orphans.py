"""Processes that outlive the engine, which an agent must find, recognise as its worker's, and stop.

Both inherit the environment with the agent's marker. They sleep for an hour, so that a forgotten one ends by itself.
"""

import os
import subprocess

SLEEP = ("sleep", "3600")


def leave_grandchild(*, hold_stdout: bool) -> int:
    """Start a child in the engine's process group that is never waited for. Return its pid."""
    output = None if hold_stdout else subprocess.DEVNULL
    process = subprocess.Popen(SLEEP, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    return process.pid


def leave_daemon(*, hold_stdout: bool) -> int:
    """Start a process by a double fork: it has its own session and group, and its parent has exited. Return its pid."""
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
