"""Which requests were aboard workers that died, and which of them are refused for a while. Pure.

A request is known by its API key, its function and a digest of its bytes; a second mark stands for everything the key
sends to the function, for whoever changes a word each time. A request that was alone aboard is the likely cause. In
company it may be a bystander, so that takes more deaths. Clients without a key share none: only the exact request
counts there.
"""

import hashlib
from collections import deque

from msgspec import Struct

from cortex.platform.api_keys import ANONYMOUS

WINDOW_S = 600.0
"""How long a death is remembered."""
REFUSED_S = 300.0
"""How long after its last death a suspect is refused."""
ALONE, IN_COMPANY, OF_KEY = 2, 4, 3
"""Deaths after which a request is refused: those it was alone aboard, all of them, and those of its key's requests."""
MOST_MARKS, MOST_STRIKES = 2000, 8
_EDGE = 64 * 1024


class Fingerprint(Struct, frozen=True):
    """Who a request is from, and what it is."""

    key: str
    who: str
    function: str
    request: str
    digest: str

    @property
    def marks(self) -> tuple[str, ...]:
        """Return the marks its deaths are counted under: the request's and, if it has a key, the key's."""
        exact = f"{self.key}\n{self.function}\n{self.digest}"
        return (exact,) if self.key == ANONYMOUS else (exact, f"{self.key}\n{self.function}")


def digest(path: str, body: bytes) -> str:
    """Return what tells a request from others, at a cost that its size does not change."""
    edges = body if len(body) <= 2 * _EDGE else body[:_EDGE] + body[-_EDGE:]
    return hashlib.blake2b(b"%s %d " % (path.encode(), len(body)) + edges, digest_size=12).hexdigest()


class Suspects:
    """Deaths by mark: when, and whether the request was alone aboard. Bounded; the oldest mark is forgotten first."""

    def __init__(self) -> None:
        self._deaths: dict[str, deque[tuple[float, bool]]] = {}

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def strike(self, mark: str, *, alone: bool, now: float) -> None:
        """Count a death."""
        deaths = self._deaths.pop(mark, None) or deque(maxlen=MOST_STRIKES)
        deaths.append((now, alone))
        self._deaths[mark] = deaths  # the newest goes last
        while len(self._deaths) > MOST_MARKS:
            del self._deaths[next(iter(self._deaths))]

    def refused_for(self, marks: tuple[str, ...], now: float) -> float:
        """Return for how many seconds a request with these marks is refused; 0: it is not."""
        return max(self._refused_for(mark, now) for mark in marks)

    def _refused_for(self, mark: str, now: float) -> float:
        deaths = self._deaths.get(mark)
        if deaths is None:
            return 0.0
        recent = [alone for at, alone in deaths if now - at < WINDOW_S]
        if not recent:
            del self._deaths[mark]
            return 0.0
        of_key = mark.count("\n") == 1
        if sum(recent) < (OF_KEY if of_key else ALONE) and (of_key or len(recent) < IN_COMPANY):
            return 0.0
        return max(0.0, deaths[-1][0] + REFUSED_S - now)
