"""Counters of requests, and the last requests without headers, prompts or answers.

A request is running from its body to its last byte and has exactly one outcome, so
`started == finished + aborted + failed + in_flight` always holds.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

MOST_ENTRIES = 100

Outcome = Literal["running", "finished", "aborted", "failed"]


class Entry(msgspec.Struct, kw_only=True):
    """One request and its outcome."""

    number: int
    nth: int
    path: str
    model: str
    stream: bool
    prompt_tokens: int
    traceparent: str = ""
    tokens: int = 0
    received: int = 0
    """Bytes of a form's files that it has read."""
    outcome: Outcome = "running"


class Ledger:
    """Counts since the start, and since the last change of the script."""

    def __init__(self) -> None:
        self.started = 0
        self.counts: dict[Outcome, int] = {"running": 0, "finished": 0, "aborted": 0, "failed": 0}
        self.entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self._started_before = 0
        self._finished_before = 0

    @property
    def served(self) -> int:
        """Requests finished since the last change of the script."""
        return self.counts["finished"] - self._finished_before

    def mark(self) -> None:
        """Reset the counts since the last change of the script."""
        self._started_before = self.started
        self._finished_before = self.counts["finished"]

    def clear(self) -> None:
        """Drop everything except running requests."""
        self.started = self.counts["running"]
        self.counts |= {"finished": 0, "aborted": 0, "failed": 0}
        self.entries = deque((entry for entry in self.entries if entry.outcome == "running"), maxlen=MOST_ENTRIES)
        self.mark()

    @contextmanager
    def opened(
        self, *, path: str, model: str, stream: bool, prompt_tokens: int, traceparent: str = ""
    ) -> Iterator[Entry]:
        """Count a request while the block runs. A client that disconnects aborts it."""
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
        """Count a request as failed by the script."""
        self._settle(entry, "failed")

    def _settle(self, entry: Entry, outcome: Outcome) -> None:
        if entry.outcome != "running":
            return
        self.counts["running"] -= 1
        self.counts[outcome] += 1
        entry.outcome = outcome
