"""Time that does not jump when the wall clock is set.

A clock gives Unix seconds for display, but only its origin comes from the wall clock: from then on it advances with the
kernel's monotonic clock, which neither NTP nor an administrator sets and which stops while the machine is suspended.
It measures silence, deadlines, idle time and back-off.

All processes of one boot share the monotonic clock. A process that continues the work of an earlier one also takes its
origin (`Clock(origin)`).
"""

import time


class Clock:
    """Unix seconds that advance evenly."""

    def __init__(self, origin: float | None = None) -> None:
        """`origin` is the Unix time at which the monotonic clock was zero; default: by the wall clock now."""
        self.origin = time.time() - time.monotonic() if origin is None else origin

    def now(self) -> float:
        """Return the time."""
        return self.origin + time.monotonic()


_process = Clock()


def now() -> float:
    """Return the time by this process's own clock."""
    return _process.origin + time.monotonic()  # as `_process.now()`, without its call: this is on the warm path


def origin() -> float:
    """Return the origin of this process's own clock."""
    return _process.origin


def resume(origin: float) -> None:
    """Continue the clock of an earlier process of this boot."""
    global _process
    _process = Clock(origin)


def wall(at: float) -> float:
    """Return a time of this process's clock by the wall clock, for display."""
    return at + time.time() - now()
