"""Whether a ready worker makes progress. Pure.

Routers report instances that have requests in flight and send no byte to any of them. That alone proves nothing: an
answer without a stream may take minutes, and a slow client holds up its stream. So a silent instance with a free slot
is sent a request of one token, and is stopped only if it does not answer that either.
"""

from collections.abc import Iterable

from msgspec import Struct

from cortex.platform.record import RouterReport, Silence

DOUBT_S = 15.0
"""A silence after which a worker with a free slot is sent a request of one token."""
PROOF_S = 10.0
"""Timeout of that request."""
LEAST_S, LEAST_IDLE_S, LEAST_FULL_S = 60.0, 20.0, 300.0
"""The shortest silence after which a worker is stopped: one that uses CPU time, one that uses none, and one whose slots
are all busy, which cannot answer anything else."""
TIMES_USUAL = 10.0
"""How many times longer than usual a first byte may take."""


class Proof(Struct, frozen=True):
    """A request of one token to a worker."""

    sent: float
    answered: float = 0.0
    """When it, or an earlier one, was last answered."""


def silence(instance: str, reports: Iterable[RouterReport], proof: Proof | None, now: float) -> Silence | None:
    """Return for how long an instance has been silent for all routers; None: it is not.

    (1) one router's requests get bytes: it makes progress;
    (2) an answer to a proof ends the silence; requests of clients that have left do not start a new one.
    """
    silences: list[Silence] = []
    in_flight = 0
    for report in reports:
        here = report.in_flight.get(instance, 0)
        in_flight += here
        if instance in report.silent:
            silences.append(report.silent[instance])
        elif here and not report.id.startswith("agent:"):  # (1): an agent's relay does not report silence
            return None
    if not silences:
        return None
    for_s = min(s.for_s for s in silences)
    if proof is not None and proof.answered > now - for_s:  # (2)
        if not in_flight:
            return None
        for_s = now - proof.answered
    return Silence(for_s=for_s, usual_s=max(s.usual_s for s in silences))


def is_doubtful(silent: Silence, *, full: bool) -> bool:
    """Whether a worker must prove that it makes progress."""
    return silent.for_s >= max(LEAST_FULL_S if full else DOUBT_S, TIMES_USUAL * silent.usual_s)


def is_hung(silent: Silence, *, full: bool, worked: bool) -> bool:
    """Whether a worker that did not answer a request of one token is hung; `worked`: it used CPU time."""
    least_s = LEAST_FULL_S if full else LEAST_S if worked else LEAST_IDLE_S
    return silent.for_s >= max(least_s, TIMES_USUAL * silent.usual_s)
