"""What went wrong with each function on a host, kept for the next caller, and when to try again. Pure."""

import re
from collections.abc import Iterable, Sequence

from cortex.platform import untrusted
from cortex.platform.record import Failure, FailureKind, Instance

FAILURES_BEFORE_BACKOFF = 3
FIRST_BACKOFF_S = 60.0
LONGEST_BACKOFF_S = 1800.0
EARLY_S = 10.0
"""How long after it was ready a worker's death may still be its own fault. Later, it had served."""
EARLY_BEFORE_BACKOFF = 6
"""Early deaths in a row before starts back off: more than one API key can cause before it is refused."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|cudaMalloc failed|failed to allocate|"
    r"No available memory for the cache blocks|ErrorOutOfDeviceMemory|MemoryError",
    re.IGNORECASE,
)
"""How vLLM, PyTorch, llama.cpp and Python say that memory ran out."""

MOST_REASON, MOST_LINE, MOST_LINES = 1000, 400, 20
"""What is remembered of one failure: characters of its reason and of a line, and lines."""

KEPT = 200
"""Functions remembered; the oldest failure is forgotten first."""


def says_out_of_memory(lines: Sequence[str]) -> bool:
    """Whether a worker's last words are that memory ran out."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)


class Failures:
    """The last failure of each function. From the third crash in a row on, starts back off: 1, 2, 4 … minutes."""

    def __init__(self, kept: Iterable[Failure] = ()) -> None:
        self._by_function = {f.function: f for f in kept}

    def all(self) -> tuple[Failure, ...]:
        """Return every failure kept, oldest first."""
        return tuple(self._by_function.values())

    def of(self, function: str, revision: str) -> Failure | None:
        """Return the last failure of this revision; one of an older revision says nothing about it."""
        failure = self._by_function.get(function)
        return failure if failure and failure.revision == revision else None

    def add(
        self,
        instance: Instance,
        kind: FailureKind,
        reason: str,
        last_lines: Sequence[str],
        now: float,
        *,
        died: bool = False,
        hung: bool = False,
    ) -> Failure:
        """Keep a failure. Whether starts back off after it:

        (1) no room, or a cancelled start, is no crash: an earlier back-off stands;
        (2) a worker that had been ready (`died`) may be the victim of a request: its death is no failed start, and
            only a row of deaths right after ready backs off;
        (3) a crash on the way up counts.
        """
        before = self.of(instance.function, instance.revision)
        row, early = (before.count, before.early) if before else (0, 0)
        over = -1  # (1)
        if died and now - instance.ready < EARLY_S:  # (2)
            early += 1
            over = early - EARLY_BEFORE_BACKOFF
        elif not died and kind in (FailureKind.CRASH, FailureKind.OUT_OF_MEMORY):  # (3)
            row += 1
            over = row - FAILURES_BEFORE_BACKOFF
        if over >= 0:
            retry_at = now + min(FIRST_BACKOFF_S * 2.0 ** min(over, 16), LONGEST_BACKOFF_S)
        else:
            retry_at = before.retry_at if before else 0.0  # a cancelled start does not end a back-off
        failure = Failure(
            function=instance.function,
            revision=instance.revision,
            instance=instance.id,
            kind=kind,
            reason=untrusted.text(reason, MOST_REASON),
            at=now,
            count=row,
            retry_at=retry_at,
            last_lines=tuple(untrusted.line(one, MOST_LINE) for one in last_lines[-MOST_LINES:]),
            served=instance.ready > 0,
            early=early,
            hung=hung,
        )
        self._by_function.pop(instance.function, None)  # the newest goes last
        self._by_function[instance.function] = failure
        while len(self._by_function) > KEPT:
            del self._by_function[next(iter(self._by_function))]
        return failure

    def forget(self, function: str) -> None:
        """Forget a function's failures: it proved stable, or its operator says it is mended."""
        self._by_function.pop(function, None)

    def keep_only(self, functions: Iterable[str]) -> None:
        """Forget functions that are no longer declared."""
        known = set(functions)
        self._by_function = {k: f for k, f in self._by_function.items() if k in known}
