"""Runs a program of the tests so that nothing which it starts outlives it, however it ends but by KILL.

SIGTERM (`timeout`, service managers) and SIGINT (Ctrl-C) raise `SystemExit` in the main thread, so that context
managers and `finally` end what they own. Further signals change nothing: a runner above often sends the same one again.
What is left then, or a minute after the signal, is killed: a process whose parent has ended becomes a child of the
program (`PR_SET_CHILD_SUBREAPER`, Linux only), so all are found, whatever their session.

`end_on_sigterm` does the same for pytest, whose fixtures own what the tests start: SIGTERM raises `KeyboardInterrupt`.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36
CLEANUP_S = 60


def run(main: Callable[[], int | None]) -> int:
    """Run a program's main function; return its exit code, 143 after SIGTERM and 130 after SIGINT."""
    _adopt_orphans()
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    try:
        return main() or 0
    finally:
        kill_descendants()


def end_on_sigterm() -> None:
    """Have SIGTERM end pytest as Ctrl-C does. Orphans become children only from then on: tests look for them before."""
    pid = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != pid:  # a process that was forked from this one
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _adopt_orphans()
        _bound_cleanup(number)
        atexit.register(kill_descendants)
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, interrupt)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end(number: int, _frame: FrameType | None) -> None:
    _bound_cleanup(number)
    sys.exit(128 + number)


def _bound_cleanup(number: int) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _pass)
    limit = threading.Timer(CLEANUP_S, _give_up, [128 + number])  # pytest-timeout sets SIGALRM
    limit.daemon = True
    limit.start()


def _pass(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. `SIG_IGN` would be inherited by the processes that cleaning up starts."""


def _give_up(code: int) -> None:
    print(f"cleaning up took over {CLEANUP_S} s", file=sys.stderr, flush=True)
    kill_descendants()
    os._exit(code)


def kill_descendants() -> None:
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
