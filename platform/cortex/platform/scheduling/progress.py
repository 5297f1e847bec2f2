"""Whether a ready worker makes progress. Pure.

Routers report instances that owe them an answer and give no byte to any request. That alone is no proof: a plain answer
may take minutes, and a client that reads slowly holds up its stream. So an instance that has a free slot and is silent
is given a request of one token, and only one that does not answer that either is stopped.
"""

from collections.abc import Iterable

from msgspec import Struct

from cortex.platform.record import RouterReport, Silence

DOUBT_S = 15.0
"""A silence after which a worker with a free slot is given a request of one token."""
PROOF_S = 10.0
"""How long that may take."""
LEAST_S, LEAST_IDLE_S, LEAST_FULL_S = 60.0, 20.0, 300.0
"""The shortest silence after which a worker is stopped: one that computes, one that uses no CPU time, and one whose
slots are all taken, which cannot answer anything else."""
TIMES_USUAL = 10.0
"""How many times longer than usual a first byte may take."""


class Proof(Struct, frozen=True):
    """A request of one token that a worker was given."""

    sent: float
    answered: float = 0.0
    """When it, or an earlier one, was last answered."""


def silence(instance: str, reports: Iterable[RouterReport], proof: Proof | None, now: float) -> Silence | None:
    """Return for how long an instance has been silent for all routers; None: it is not.

    (1) one router's requests get bytes: it makes progress;
    (2) a proof that it answered ends the silence; what is owed to clients that have left does not begin it again.
    """
    found: list[Silence] = []
    in_flight = 0
    for report in reports:
        here = report.in_flight.get(instance, 0)
        in_flight += here
        if instance in report.silent:
            found.append(report.silent[instance])
        elif here and not report.id.startswith("agent:"):  # (1): an agent's relay does not look
            return None
    if not found:
        return None
    for_s = min(one.for_s for one in found)
    if proof is not None and proof.answered > now - for_s:  # (2)
        if not in_flight:
            return None
        for_s = now - proof.answered
    return Silence(for_s=for_s, usual_s=max(one.usual_s for one in found))


def is_doubtful(silent: Silence, *, full: bool) -> bool:
    """Whether a worker is to prove that it makes progress."""
    return silent.for_s >= max(LEAST_FULL_S if full else DOUBT_S, TIMES_USUAL * silent.usual_s)


def is_hung(silent: Silence, *, full: bool, worked: bool) -> bool:
    """Whether a worker that did not answer a request of one token makes no progress; `worked`: it used CPU time."""
    least_s = LEAST_FULL_S if full else LEAST_S if worked else LEAST_IDLE_S
    return silent.for_s >= max(least_s, TIMES_USUAL * silent.usual_s)
