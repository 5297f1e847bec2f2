"""Time that no step of the wall clock moves.

A clock gives Unix seconds, so that they can be shown, but only its origin comes from the wall clock: from then on it
advances with the kernel's monotonic clock, which neither NTP nor an administrator sets and which stands still while
the machine is suspended. Silence, deadlines, idleness and back-off are measured by it.

The monotonic clock is common to all processes of one boot. A process that takes up the work of an earlier one takes
its origin, too (`Clock(origin)`), and goes on counting where that one stopped.
"""

import time


class Clock:
    """Unix seconds that advance evenly."""

    def __init__(self, origin: float | None = None) -> None:
        """`origin` is the Unix time at which the monotonic clock was zero; default: as the wall clock has it now."""
        self.origin = time.time() - time.monotonic() if origin is None else origin

    def now(self) -> float:
        """Return the time."""
        return self.origin + time.monotonic()


_process = Clock()


def now() -> float:
    """Return the time by this process's own clock."""
    return _process.now()


def origin() -> float:
    """Return the origin of this process's own clock."""
    return _process.origin


def resume(origin: float) -> None:
    """Go on with the clock of an earlier process of this boot, whose work this process takes up."""
    global _process
    _process = Clock(origin)


def wall(at: float) -> float:
    """Return a time of this process's clock as the wall clock has it now: to show it to people."""
    return at + time.time() - now()
