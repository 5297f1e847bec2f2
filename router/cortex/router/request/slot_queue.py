"""Pick the next request at an instance with a fixed number of slots. Pure.

The rules, in order:
(1) a request that `PASSES` later ones have overtaken, the longest waiting first;
(2) the highest priority;
(3) first in, first out.

So `high` goes before `normal` and `normal` before `low`, without starvation: a request waits for those ahead of it and
for at most `PASSES` later ones.
"""

from cortex.platform.api_keys import Priority

PASSES = 8
"""How many later requests may overtake one of lower priority."""
ORDER = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Place:
    """One request's place in a queue."""

    def __init__(self, priority: Priority, function: str = "") -> None:
        self.rank, self.passed, self.turn, self.function = ORDER.index(priority), 0, False, function


class SlotQueue:
    """All requests at one instance: running, and waiting in order of arrival."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._running: set[Place] = set()
        self.waiting: list[Place] = []

    def waiting_of(self, function: str) -> int:
        """Return how many waiting requests are for a function. Other functions may share the instance."""
        return sum(place.function == function for place in self.waiting)

    def join(self, priority: Priority, function: str = "") -> Place:
        """Append a place; it may run at once if a slot is free."""
        place = Place(priority, function)
        self.waiting.append(place)
        if len(self._running) < self._slots:
            self._next()
        return place

    def leave(self, place: Place) -> Place | None:
        """Remove a place. Return the one that may run now, if any."""
        if place in self._running:
            self._running.remove(place)
            return self._next()
        self.waiting.remove(place)
        return None

    def __bool__(self) -> bool:
        return bool(self._running or self.waiting)

    def _next(self) -> Place | None:
        if not self.waiting:
            return None
        overdue = (place for place in self.waiting if place.passed >= PASSES)
        chosen = next(overdue, None) or min(self.waiting, key=lambda place: place.rank)
        for earlier in self.waiting[: self.waiting.index(chosen)]:
            earlier.passed += 1
        self.waiting.remove(chosen)
        self._running.add(chosen)
        chosen.turn = True
        return chosen
