"""The requests so far: counters, and the last few without headers, prompts or answers.

A request is open from its body to its last byte, and has exactly one outcome, so that
`started == finished + aborted + failed + in_flight` always holds.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

KEPT = 100

Outcome = Literal["running", "finished", "aborted", "failed"]


class Entry(msgspec.Struct, kw_only=True):
    """One request: what it asked for by name, and how it went."""

    number: int
    nth: int
    path: str
    model: str
    stream: bool
    prompt_tokens: int
    traceparent: str = ""
    tokens: int = 0
    outcome: Outcome = "running"


class Ledger:
    """Counts since the start, and since the script was last changed."""

    def __init__(self) -> None:
        self.started = 0
        self.counts: dict[Outcome, int] = {"running": 0, "finished": 0, "aborted": 0, "failed": 0}
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self._started_before = 0
        self._finished_before = 0

    @property
    def served(self) -> int:
        """Requests finished since the script was last changed."""
        return self.counts["finished"] - self._finished_before

    def mark(self) -> None:
        """Count anew for the script."""
        self._started_before = self.started
        self._finished_before = self.counts["finished"]

    def clear(self) -> None:
        """Forget all but what is still running."""
        self.started = self.counts["running"]
        self.counts |= {"finished": 0, "aborted": 0, "failed": 0}
        self.entries = deque((entry for entry in self.entries if entry.outcome == "running"), maxlen=KEPT)
        self.mark()

    @contextmanager
    def opened(
        self, *, path: str, model: str, stream: bool, prompt_tokens: int, traceparent: str = ""
    ) -> Iterator[Entry]:
        """One request from start to outcome; a client that leaves is counted as aborted."""
        self.started += 1
        entry = Entry(
            number=self.started,
            nth=self.started - self._started_before,
            path=path,
            model=model,
            stream=stream,
            prompt_tokens=prompt_tokens,
            traceparent=traceparent,
        )
        self.entries.append(entry)
        self.counts["running"] += 1
        try:
            yield entry
        except (asyncio.CancelledError, ConnectionError):
            self._settle(entry, "aborted")
            raise
        except BaseException:
            self._settle(entry, "failed")
            raise
        else:
            self._settle(entry, "finished")

    def fail(self, entry: Entry) -> None:
        """Settle a request that the script lets fail."""
        self._settle(entry, "failed")

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        if entry.outcome != "running":
            return
        self.counts["running"] -= 1
        self.counts[outcome] += 1
        entry.outcome = outcome
