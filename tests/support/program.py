"""Runs a program of the tests so that nothing which it starts outlives it, however it ends but by KILL.

SIGTERM (`timeout`, service managers) and SIGINT (Ctrl-C) raise `SystemExit` in the main thread, so that context
managers and `finally` end what they own. Further signals change nothing: a runner above often sends the same one again.
What is left then, or a minute after the signal, is killed: a process whose parent has ended becomes a child of the
program (`PR_SET_CHILD_SUBREAPER`, Linux only), so all are found, whatever their session.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36
CLEANUP_S = 60


def run(main: Callable[[], int | None]) -> int:
    """Run a program's main function; return its exit code, 143 after SIGTERM and 130 after SIGINT."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    try:
        return main() or 0
    finally:
        _kill_descendants()


def _end(number: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _pass)
    signal.signal(signal.SIGALRM, lambda *_: _give_up(128 + number))
    signal.alarm(CLEANUP_S)
    sys.exit(128 + number)


def _pass(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. `SIG_IGN` would be inherited by the processes that cleaning up starts."""


def _give_up(code: int) -> None:
    print(f"cleaning up took over {CLEANUP_S} s", file=sys.stderr, flush=True)
    _kill_descendants()
    os._exit(code)


def _kill_descendants() -> None:
    """Kill all processes below this one, and those that become its children by that."""
    while left := [p for p in psutil.Process().children(recursive=True) if _runs(p)]:
        for process in left:
            with contextlib.suppress(psutil.Error):
                print(f"killed, because it was left running: {process.pid} {process.name()}", file=sys.stderr)
                process.kill()
        psutil.wait_procs(left, timeout=5)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
