"""Count worker deaths per request, and refuse requests that are the likely cause for a while. Pure.

A request is identified by API key, function and a digest of its bytes; a second mark covers all requests of the key to
the function, against variations of one request. A request that was alone at its worker is the likely cause; one among
others may be a bystander and needs more deaths. Clients without a key have no second mark.
"""

import hashlib
from collections import deque

from msgspec import Struct

from cortex.platform.api_keys import ANONYMOUS
from cortex.router.dialects.core.large_object import Body, head, tail

WINDOW_S = 600.0
"""How long a death counts."""
REFUSED_S = 300.0
"""How long after its last death a suspect is refused."""
ALONE, IN_COMPANY, OF_KEY = 2, 4, 3
"""Deaths after which a request is refused: alone at the worker, in total, and for all requests of its key."""
MOST_MARKS, MOST_STRIKES = 2000, 8
EDGE = 64 * 1024
"""Bytes of each end of a body that its digest covers."""


class Fingerprint(Struct, frozen=True):
    """The identity of a request and its client."""

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


def digest(path: str, body: Body) -> str:
    """Return a digest of a request, at a cost that does not depend on its size."""
    edges = head(body, 2 * EDGE) if len(body) <= 2 * EDGE else head(body, EDGE) + tail(body, EDGE)
    return hashlib.blake2b(b"%s %d " % (path.encode(), len(body)) + edges, digest_size=12).hexdigest()


class Suspects:
    """Deaths by mark: time, and whether the request was alone at the worker. Bounded: drops the oldest mark."""

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
        """Return for how many seconds to refuse a request with these marks; 0: accept it."""
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
