"""What was wrong, and what a fault explains. Both are told by several threads at once."""

import time
from collections.abc import Callable

LINGERS_S = 5.0
"""How long after a fault is healed an answer may still break of it, as a rule."""

MOST_KEPT = 20


class Wrong:
    """Faults that a soak finds; the first few are enough."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.faults: list[str] = []

    def add(self, text: str) -> None:
        """Note one."""
        if len(self.faults) < MOST_KEPT:
            self.faults.append(f"{time.monotonic() - self._began:6.2f} s: {text}")


class Harm:
    """Who was under harm, and when: a function's answers, an agent, the routers.

    "start of X" is no harm, but an operator's warm or drain: these start what they want without the claim.
    """

    def __init__(self) -> None:
        self._windows: dict[str, list[list[float]]] = {}

    def begin(self, whom: str, lingers_s: float = LINGERS_S) -> Callable[[], None]:
        """Note that harm begins; call what is returned when it is healed."""
        window = [time.time() - 1.0, float("inf")]
        self._windows.setdefault(whom, []).append(window)

        def healed() -> None:
            window[1] = time.time() + lingers_s

        return healed

    def done(self, whom: str, lingers_s: float = LINGERS_S) -> None:
        """Note harm that is over at once, but may linger."""
        self.begin(whom, lingers_s)()

    def explains(self, whom: str, began: float, ended: float) -> bool:
        """Whether `whom` was under harm at any time in between."""
        return any(start <= ended and began <= end for start, end in list(self._windows.get(whom, ())))
