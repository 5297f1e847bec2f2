"""Whether a saved conversation is used. Pure.

A saved conversation is the memory of one build of an engine, for one model and one set of settings. Anything else that
read it would answer from numbers that mean something else, so every difference forbids its use, with the reason.
"""

import enum
import hashlib
from collections.abc import Sequence

from msgspec import Struct

from cortex.platform.contexts.seats import SlotContext
from cortex.platform.record import SavedContext

ON_HOST = frozenset({"--model", "--host", "--port", "--slot-save-path", "--chat-template-file"})
"""Options of a worker whose values belong to its host or to its start."""
MIB = 1024 * 1024
LEAST_TOKENS = 1024
"""A shorter prompt is processed sooner than it is saved and restored."""
MOST_SAVED = 16
"""Conversations of one instance that are saved."""
DISK_RATE = 200.0 * MIB
"""Bytes a second that a disk is expected to give before it was measured."""
PEER_RATE = 50.0 * MIB
"""The same for another host."""
SMOOTHING = 0.5
"""Weight of the newest measurement."""


class Unused(enum.StrEnum):
    """Why a saved conversation is not used."""

    FUNCTION = "it belongs to another function or to other settings of it"
    BUILD = "the engine has another build"
    MODEL = "the model's files differ"
    SETTINGS = "the worker has other settings"
    AGE = "it is too old"
    SLOW = "processing the prompt again takes less time"


class WorkerFacts(Struct, frozen=True, kw_only=True):
    """What the conversations of a worker depend on."""

    function: str
    revision: str
    build: str
    model: str
    settings: str


def worth_saving(held: Sequence[SlotContext]) -> tuple[SlotContext, ...]:
    """Return the conversations of an instance to save, the longest first."""
    long = [c for c in held if c.tokens >= LEAST_TOKENS]
    return tuple(sorted(long, key=lambda c: -c.tokens)[:MOST_SAVED])


def settings_digest(argv: Sequence[str]) -> str:
    """Return the digest of a worker's settings: its options from `--model` on, without those of its host."""
    words = list(argv)
    words = words[words.index("--model") :] if "--model" in words else words
    words_left, skip = [], False
    for word in words:
        if not skip and word not in ON_HOST:
            words_left.append(word)
        skip = not skip and word in ON_HOST
    return hashlib.sha256("\0".join(words_left).encode()).hexdigest()[:16]


def why_unused(saved: SavedContext, worker: WorkerFacts, *, age_s: float, most_age_s: float) -> Unused | None:
    """Return why a worker may not use a saved conversation; None: it fits exactly."""
    if (saved.function, saved.revision) != (worker.function, worker.revision):
        return Unused.FUNCTION
    if not worker.build or saved.build != worker.build:
        return Unused.BUILD
    if not worker.model or saved.model != worker.model:
        return Unused.MODEL
    if saved.settings != worker.settings:
        return Unused.SETTINGS
    return Unused.AGE if age_s > most_age_s else None


class Rates:
    """Measured speeds of restores from this host's disk, and of transfers from other hosts. Bytes a second."""

    def __init__(self) -> None:
        self._disk = 0.0
        self._peers: dict[str, float] = {}

    def restore_s(self, size: int, peer: str = "") -> float:
        """Return how long a restore should take; from a peer, with the transfer."""
        disk_s = size / (self._disk or DISK_RATE)
        return disk_s + size / self._peers.get(peer, PEER_RATE) if peer else disk_s

    def learn(self, size: int, took_s: float, peer: str = "") -> None:
        """Take a measurement: of a restore, or of a transfer from a peer."""
        rate = size / max(took_s, 1e-6)
        if peer:
            self._peers[peer] = _smooth(self._peers.get(peer, 0.0), rate)
        else:
            self._disk = _smooth(self._disk, rate)


def _smooth(before: float, rate: float) -> float:
    return SMOOTHING * rate + (1 - SMOOTHING) * before if before else rate


def is_slow(saved: SavedContext, rates: Rates, peer: str = "") -> bool:
    """Return whether a restore is expected to take longer than to process the prompt again."""
    return 0 < saved.prefill_s <= rates.restore_s(saved.size, peer)


def to_remove(saved: Sequence[SavedContext], limit: int, most: int, *, now: float, most_age_s: float) -> list[str]:
    """Return the ids to remove: those that are too old, then the oldest until `most` of `limit` bytes together remain.
    `saved` is ordered by age, the oldest first."""
    old = [c.id for c in saved if now - c.at > most_age_s]
    rest = [c for c in saved if now - c.at <= most_age_s]
    size = sum(c.size for c in rest)
    removed = []
    for number, context in enumerate(rest):
        if size <= limit and len(rest) - number <= most:
            break
        removed.append(context.id)
        size -= context.size
    return old + removed
