"""Who has the next turn at an instance that works on so many requests at a time. Pure.

The rule, in the order in which it is asked:
(1) whoever was passed by `PASSES` later ones goes first, the one who has waited longest before others;
(2) the highest priority goes first;
(3) whoever came first goes first.

So `high` has the next turn before `normal`, and `normal` before `low`; and nobody starves: whatever comes after, a
waiter's turn comes when all that were there before it have had theirs, and `PASSES` more at the most.
"""

from cortex.platform.api_keys import Priority

PASSES = 8
"""How many that came later may go before a waiter of lower priority."""
ORDER = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


class Place:
    """One request's place in a row. `turn` says whether it may run."""

    def __init__(self, priority: Priority) -> None:
        self.rank, self.passed, self.turn = ORDER.index(priority), 0, False


class SlotQueue:
    """All requests at one instance: those that run, and those that wait, as they came."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._running: set[Place] = set()
        self.waiting: list[Place] = []

    def join(self, priority: Priority) -> Place:
        """Take a place at the end; it has its turn at once where one is free."""
        place = Place(priority)
        self.waiting.append(place)
        if len(self._running) < self._slots:
            self._next()
        return place

    def leave(self, place: Place) -> Place | None:
        """Give a place up. Return the one that has its turn now, if any."""
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
