"""The network between simulated places: delay, loss, partition, reordering.

A place is a host, a router or Redis. A message between two places takes a random time, so messages on different
connections overtake each other; messages on one connection do not. A lost message of TCP arrives late. Through a
partition nothing arrives, or connections are refused, as its kind says.
"""

import enum
from random import Random

SLOW_SHARE = 0.03
"""The share of messages that are retransmitted or wait in a queue."""


class Cut(enum.Enum):
    """How a partition shows at the sender."""

    SILENT = enum.auto()
    """Messages vanish; the sender waits until its own timeout."""
    REFUSED = enum.auto()
    """Connections are refused or reset at once."""


class Network:
    """The state of all links."""

    def __init__(self, random: Random, usual_s: float = 0.002) -> None:
        self._random, self._usual_s = random, usual_s
        self._cuts: dict[tuple[str, str], Cut] = {}
        self._slow: dict[str, float] = {}

    def cut(self, one: str, other: str, kind: Cut, *, one_way: bool = False) -> None:
        """Separate two places; `one_way`: only messages from `one` to `other` are lost."""
        self._cuts[one, other] = kind
        if not one_way:
            self._cuts[other, one] = kind

    def heal(self, one: str, other: str) -> None:
        """Connect two places again."""
        self._cuts.pop((one, other), None)
        self._cuts.pop((other, one), None)

    def slow(self, place: str, most_s: float) -> None:
        """Delay messages to and from a place by up to `most_s`; 0 ends that."""
        if most_s:
            self._slow[place] = most_s
        else:
            self._slow.pop(place, None)

    def heal_all(self) -> None:
        """End every fault."""
        self._cuts.clear()
        self._slow.clear()

    def is_cut(self, one: str, other: str) -> bool:
        """Whether no round trip between two places succeeds."""
        return (one, other) in self._cuts or (other, one) in self._cuts

    def leg(self, sender: str, receiver: str) -> float | Cut:
        """Return how long one message takes, or how it is lost."""
        if self._cuts and (cut := self._cuts.get((sender, receiver))) is not None:
            return cut
        draw = self._random.random()
        delay = self._usual_s * (0.25 + draw)
        if draw < SLOW_SHARE:
            delay += 0.2 * self._random.random()
        if self._slow:
            delay += self._random.random() * max(self._slow.get(sender, 0.0), self._slow.get(receiver, 0.0))
        return delay
