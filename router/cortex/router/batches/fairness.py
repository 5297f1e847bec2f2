"""Which line is sent next, how many are in flight at a time, and when a batch is expected to end. Pure.

Keys take turns line by line: next is the key with the fewest lines in flight, and of those the one that has waited
longest. Within a key the oldest batch goes first. A model that has to wait does not delay the others.
"""

from collections import deque
from collections.abc import Iterable

from msgspec import Struct

MOST_OF_MODEL, MOST_IN_ALL = 32, 64
"""Maximum numbers of lines in flight at a time."""
STEADY_S = 5.0
"""How long the number of lines in flight does not grow after a refusal."""
RATE_S = 900.0
"""The window of progress from which the end is estimated."""
LEAST_LINES, LEAST_S = 5, 10.0
"""Minimum progress for an estimate."""


class Pace:
    """How many lines of one key for one model are in flight, and how many may be: one more after each success, fewer
    after a refusal."""

    def __init__(self) -> None:
        self.under_way, self.most, self.resumes_at = 0, 1, 0.0
        self._grows_at = 0.0

    def may_send(self, now: float) -> bool:
        """Whether one more line may be sent."""
        return self.under_way < self.most and now >= self.resumes_at

    def succeeded(self, now: float) -> None:
        """Allow one more."""
        if now >= self._grows_at:
            self.most = min(MOST_OF_MODEL, self.most + 1)

    def refused(self, now: float, pause_s: float) -> None:
        """Allow as many as are in flight. If there are none, pause; otherwise the next one to end makes room."""
        self.most = max(1, self.under_way)
        self._grows_at = now + STEADY_S
        if not self.under_way:
            self.resumes_at = now + pause_s


class Candidate(Struct, frozen=True):
    """A model of a batch with lines to send."""

    key: str
    batch: str
    created: float
    model: str


def next_candidate(
    candidates: Iterable[Candidate], under_way: dict[str, int], last_sent: dict[str, float]
) -> Candidate | None:
    """Return the candidate whose line is sent next; None if there are no candidates."""
    return min(
        candidates,
        key=lambda c: (under_way.get(c.key, 0), last_sent.get(c.key, 0.0), c.created, c.batch, c.model),
        default=None,
    )


class Progress:
    """The progress of one batch over the last `RATE_S`, pauses included."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """Note how many lines have results, about once a second."""
        self._samples.append((now, done))
        while now - self._samples[0][0] > RATE_S:
            self._samples.popleft()

    def finish_in_s(self, total: int) -> float:
        """Return the expected number of seconds until all lines have results; 0: too little progress to tell."""
        if not self._samples:
            return 0.0
        (began, before), (now, done) = self._samples[0], self._samples[-1]
        if done - before < LEAST_LINES or now - began < LEAST_S:
            return 0.0
        return (total - done) * (now - began) / (done - before)
