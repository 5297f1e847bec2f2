"""The last failure of each function on a host, for the next caller, and when to try again. Pure."""

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from cortex.platform import untrusted
from cortex.platform.record import Cause, Failure, FailureKind, Instance

FAILURES_BEFORE_BACKOFF = 3
FIRST_BACKOFF_S = 60.0
LONGEST_BACKOFF_S = 1800.0
EARLY_S = 10.0
"""A worker that dies within this time after it was ready counts as an early death."""
EARLY_BEFORE_BACKOFF = 6
"""Consecutive early deaths before starts back off: more than one API key can cause before it is refused."""
_SIGNS: tuple[tuple[Cause, str], ...] = (
    (
        Cause.OUT_OF_MEMORY,
        r"out of memory|OutOfMemoryError|cudaMalloc failed|failed to allocate|"
        r"No available memory for the cache blocks|ErrorOutOfDeviceMemory|MemoryError",
    ),
    (Cause.DISK_FULL, r"No space left on device|Disk quota exceeded"),
    (Cause.PORT_IN_USE, r"Address already in use|couldn't bind HTTP server socket|EADDRINUSE"),
    (
        Cause.NO_DEVICE,
        r"no CUDA-capable device|CUDA driver version is insufficient|No CUDA GPUs are available|no CUDA GPU|"
        r"Found no NVIDIA driver|no kernel image is available|Failed to infer device type",
    ),
    (
        Cause.MISSING_LIBRARY,
        r"ModuleNotFoundError|ImportError|cannot open shared object file|error while loading shared libraries",
    ),
    (
        Cause.BAD_ARGUMENT,
        r"unrecognized arguments?:|invalid argument:|unknown argument:|error: argument |expected one argument",
    ),
    (
        Cause.CONTEXT_TOO_LARGE,
        r"larger than the maximum number of tokens that can be stored in KV cache|"
        r"KV cache is needed, which is larger than the available|is larger than the maximum model length|"
        r"is greater than the derived max_model_len",
    ),
    (
        Cause.UNSUPPORTED_MODEL,
        r"unknown model architecture|are not supported for now|does not recognize this architecture|"
        r"unsupported (?:model|architecture)|Unknown quantization method|no vLLM implementation",
    ),
    (
        Cause.BAD_WEIGHTS,
        r"failed to load model|error loading model|invalid magic|SafetensorError|tensor .{0,200} data is not within|"
        r"wrong number of tensors|HeaderTooLarge|InvalidHeader|missing tensor|Cannot find any model weights",
    ),
    (Cause.MISSING_FILE, r"No such file or directory|FileNotFoundError"),
    (Cause.NO_PERMISSION, r"Permission denied|PermissionError|Operation not permitted"),
)
_CAUSES = tuple((cause, re.compile(signs, re.IGNORECASE)) for cause, signs in _SIGNS)
"""Error texts of vLLM, PyTorch, llama.cpp, Python and the system. The first entry that matches any line counts: entries
further up are nearer to the root cause."""

MOST_REASON, MOST_LINES = 1000, 20
"""Limits of one failure: characters of its reason, and last log lines that are read."""

MOST_FAILURES = 200
"""Failures in the table; the oldest is removed first."""


class Evidence(Struct, frozen=True):
    """What a worker's last log lines show: their cause and number, never their text."""

    cause: Cause = Cause.UNKNOWN
    lines: int = 0


class Incident(Struct, frozen=True):
    """What went wrong with an instance."""

    reason: str
    kind: FailureKind = FailureKind.CRASH
    evidence: Evidence = Evidence()
    died: bool = False
    """It had been ready."""
    hung: bool = False
    serves: bool = False
    """Its server answers, but cannot be used."""


def evidence_in(lines: Sequence[str]) -> Evidence:
    """Return what a worker's last log lines show."""
    last = lines[-MOST_LINES:]
    cause = next((c for c, signs in _CAUSES if any(signs.search(line) for line in last)), Cause.UNKNOWN)
    return Evidence(cause, len(last))


class Failures(Struct):
    """The last failure of each function. From the third consecutive crash on, starts back off: 1, 2, 4 … minutes."""

    by_function: dict[str, Failure] = {}

    @classmethod
    def restored(cls, failures: Iterable[Failure]) -> "Failures":
        """Return the table with these failures."""
        return cls({f.function: f for f in failures})

    def all(self) -> tuple[Failure, ...]:
        """Return all failures, oldest first."""
        return tuple(self.by_function.values())

    def of(self, function: str, revision: str) -> Failure | None:
        """Return the last failure of this revision; failures of other revisions do not count."""
        failure = self.by_function.get(function)
        return failure if failure and failure.revision == revision else None

    def add(self, instance: Instance, incident: Incident, now: float) -> Failure:
        """Record a failure. Back-off of starts:

        (1) no room or a cancelled start is not a crash: an earlier back-off stands;
        (2) a worker that had been ready (`died`) may be the victim of a request: only consecutive early deaths
            count;
        (3) a crash during the start counts.
        """
        before = self.of(instance.function, instance.revision)
        crashes, early = (before.count, before.early) if before else (0, 0)
        over = -1  # (1)
        if incident.died and now - instance.ready < EARLY_S:  # (2)
            early += 1
            over = early - EARLY_BEFORE_BACKOFF
        elif not incident.died and incident.kind in (FailureKind.CRASH, FailureKind.OUT_OF_MEMORY):  # (3)
            crashes += 1
            over = crashes - FAILURES_BEFORE_BACKOFF
        if over >= 0:
            retry_at = now + min(FIRST_BACKOFF_S * 2.0 ** min(over, 16), LONGEST_BACKOFF_S)
        else:
            retry_at = before.retry_at if before else 0.0  # a cancelled start does not end a back-off
        cause = incident.evidence.cause
        failure = Failure(
            function=instance.function,
            revision=instance.revision,
            instance=instance.id,
            kind=incident.kind,
            reason=untrusted.text(f"{incident.reason}: {cause}" if cause else incident.reason, MOST_REASON),
            at=now,
            count=crashes,
            retry_at=retry_at,
            cause=cause,
            lines=incident.evidence.lines,
            served=instance.ready > 0,
            early=early,
            hung=incident.hung,
        )
        self.by_function.pop(instance.function, None)  # the newest goes last
        self.by_function[instance.function] = failure
        while len(self.by_function) > MOST_FAILURES:
            del self.by_function[next(iter(self.by_function))]
        return failure

    def forget(self, function: str) -> None:
        """Remove a function's failure: it is stable now, or its operator has fixed it."""
        self.by_function.pop(function, None)

    def keep_only(self, functions: Iterable[str]) -> None:
        """Remove functions that are no longer declared."""
        declared = set(functions)
        self.by_function = {k: f for k, f in self.by_function.items() if k in declared}
