"""The requests that are at workers, as one router worker sees them: how many are aboard an instance together, and for
how long the instance has given none of them a byte.

A request is aboard from the moment it is sent until its answer ends. The cost per request is two entries in a dict;
everything else is computed for the report, once a second.
"""

import asyncio
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from cortex.platform.record import Silence
from cortex.router.metrics import latency
from cortex.router.request.request_record import RequestRecord
from cortex.router.request.upstream import Broken

WORTH_REPORTING_S = 10.0
"""A silence shorter than this says nothing."""
LATER_S = 0.5
"""How much later than a request that hung a worker one must be sent that is taken for a bystander."""
MOST_TIMES = 1000
"""Times to the first byte that are counted per function before the count is halved: old ones fade."""
_UNANSWERED = (asyncio.CancelledError, TimeoutError, Broken)


class _Deck:
    """The requests aboard one instance."""

    __slots__ = ("function", "left_waiting", "live", "lost", "oldest", "progress_at")

    def __init__(self, function: str) -> None:
        self.function = function
        self.live: dict[int, tuple[RequestRecord, float]] = {}
        self.progress_at = 0.0
        """When an answer last ended."""
        self.left_waiting = 0.0
        """When the oldest request was sent that ended without an answer and may still keep the worker busy."""
        self.lost = 0
        """How many were aboard when the first of them lost its connection."""
        self.oldest = 0.0
        """When the oldest request was sent that was owed an answer then."""


class OpenRequests:
    """The requests at all instances."""

    def __init__(self) -> None:
        self._decks: dict[str, _Deck] = {}
        self._usual: dict[str, latency.Histogram] = {}

    @contextmanager
    def sent(self, instance: str, journey: RequestRecord) -> Iterator[None]:
        """Be aboard an instance."""
        deck = self._decks.get(instance)
        if deck is None:
            deck = self._decks[instance] = _Deck(journey.function)
        began = time.monotonic()
        deck.live[id(journey)] = journey, began
        answered = True
        try:
            yield
        except BaseException as error:
            answered = not isinstance(error, _UNANSWERED)
            if isinstance(error, Broken):
                error.sent_at = began
                self.lose(instance)
            raise
        finally:
            del deck.live[id(journey)]
            if journey.first > began:
                self._note_first(journey.function, journey.first - began)
            if answered:
                deck.progress_at = time.monotonic()
            elif journey.last > began:
                deck.progress_at = max(deck.progress_at, journey.last)
            elif not deck.left_waiting or deck.left_waiting < deck.progress_at:
                deck.left_waiting = began

    def lose(self, instance: str) -> int:
        """Return how many requests were aboard an instance when the first connection to it was lost."""
        deck = self._decks.get(instance)
        if deck is None:
            return 1
        if not deck.lost:
            deck.lost, deck.oldest = len(deck.live), min(_owed(deck), default=0.0)
        return max(deck.lost, 1)

    def came_later(self, instance: str, sent_at: float) -> bool:
        """Whether an answer was owed to another request for a while when one was sent."""
        deck = self._decks.get(instance)
        return deck is not None and 0.0 < deck.oldest < sent_at - LATER_S

    def recovered(self, instance: str) -> None:
        """The instance lives: only a connection was lost."""
        if deck := self._decks.get(instance):
            deck.lost = 0

    def silences(self, now: float, present: Collection[str]) -> dict[str, Silence]:
        """Return the instances that have been silent for long, and forget those that are not present any more."""
        found = {}
        for instance, deck in list(self._decks.items()):
            if instance not in present and not deck.live:
                del self._decks[instance]
            elif (silent_s := _silent_s(deck, now)) >= WORTH_REPORTING_S:
                usual = self._usual.get(deck.function, {})
                found[instance] = Silence(for_s=round(silent_s, 1), usual_s=latency.percentile(usual, 0.95) or 0.0)
        return found

    def _note_first(self, function: str, seconds: float) -> None:
        spread = self._usual.setdefault(function, {})
        latency.add(spread, seconds)
        if sum(spread.values()) > MOST_TIMES:
            self._usual[function] = {step: count // 2 for step, count in spread.items() if count > 1}


def _owed(deck: _Deck) -> list[float]:
    """Return when the requests were sent that are owed an answer, those included whose clients have left."""
    owed = [began for _, began in deck.live.values()]
    return [*owed, deck.left_waiting] if deck.left_waiting > _progress_at(deck) else owed


def _progress_at(deck: _Deck) -> float:
    return max([deck.progress_at, *(j.last for j, _ in deck.live.values())])


def _silent_s(deck: _Deck, now: float) -> float:
    """Return for how long an instance has owed an answer without giving any request a byte; 0: it owes none."""
    owed = _owed(deck)
    return now - max(_progress_at(deck), min(owed)) if owed else 0.0
