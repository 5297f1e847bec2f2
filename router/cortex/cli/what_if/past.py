"""What the decisions of a time say about it: what was requested and when, what starts took, and what came of it.

Requests to a ready instance leave no decision. An instance that stayed ready was in use at least once in every
`idle_after_s`, so its use is taken as requests at half that interval, from its start to its last use. A use during a
request that waited is that request.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from cortex.platform.decisions import DecisionRecord
from cortex.platform.scheduling.ledger import WAKING
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.router.decision_log import RouterDecision

BEFORE_THE_WORKER = frozenset({"fetching", "placing"})
"""Phases of a start in which no worker runs yet."""
LONGEST_STEP_S = 600.0
SAME_S = 1.0
"""A last use so soon after the end of a request is that request's."""
ENDS = frozenset(
    {DecisionKind.DRAINING, DecisionKind.STOPPED, DecisionKind.EXITED, DecisionKind.FAILED}
    | {DecisionKind.EVICTED, DecisionKind.CLOSED}
)
EVICTIONS = frozenset({DecisionKind.EVICTED, DecisionKind.CLOSED})
LEAVES = EVICTIONS | {DecisionKind.DRAINING}
"""What is decided about an instance that is ready."""


class Visit(Struct, frozen=True):
    """A request."""

    at: float
    function: str
    work_s: float = 0.0
    """Seconds that an instance works on it."""


class Tally(Struct, kw_only=True):
    """What came of the requests for one function."""

    starts: int = 0
    waits: int = 0
    """Requests that waited for an instance and were served."""
    wait_s: float = 0.0
    """Of all of them together."""
    longest_wait_s: float = 0.0
    evictions: int = 0
    """How often an instance of it left so that another function fits."""
    not_served: int = 0

    def waited(self, seconds: float) -> None:
        """Count a request that was served after a wait."""
        self.waits += 1
        self.wait_s = round(self.wait_s + seconds, 3)
        self.longest_wait_s = round(max(self.longest_wait_s, seconds), 3)


class Measured(Struct, frozen=True, kw_only=True):
    """What is known of a function from its starts."""

    start_s: float
    """From the worker's launch to ready."""
    memory_mb: int = 0
    """Over all its devices, where placement goes by a measurement; 0: it goes by the declaration or an estimate."""


class Past(Struct, kw_only=True):
    """A time, by its decisions."""

    begin: float
    end: float
    visits: list[Visit] = []
    carried: tuple[str, ...] = ()
    """Functions with a ready instance at the beginning."""
    did: dict[str, Tally] = {}
    measured: dict[str, Measured] = {}


def read_past(
    decisions: Iterable[DecisionRecord],
    begin: float,
    end: float,
    *,
    idle_after_s: Callable[[str], float],
    last_used: Mapping[str, float],
) -> Past:
    """Read the decisions of a time. `idle_after_s` and `last_used` are of functions."""
    inside = sorted((d for d in decisions if begin <= d.at <= end and d.function), key=lambda d: d.at)
    past = Past(begin=begin, end=end)
    uses: list[Visit] = []
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    """By function, from when to when there was a request that waited and was served."""
    ready: dict[str, tuple[str, float]] = {}
    """Function of each ready instance, and since when."""
    ended: set[str] = set()
    carried: set[str] = set()
    for decision in inside:
        tally = past.did.setdefault(decision.function, Tally())
        match decision.what:
            case DecisionKind.READY:
                ready[decision.instance] = (decision.function, decision.at)
                if not _is_return(decision):
                    tally.starts += 1
                    past.measured[decision.function] = _measure(decision)
            case DecisionKind.DRAIN_CANCELLED | DecisionKind.ADOPTED:
                ready.setdefault(decision.instance, (decision.function, decision.at))
            case RouterDecision.WAITED | RouterDecision.NOT_SERVED:
                visit = _visit(decision, tally)
                past.visits.append(visit)
                if decision.what == RouterDecision.WAITED:
                    spans[decision.function].append((visit.at, decision.at + SAME_S))
            case what if what in ENDS:
                tally.evictions += what in EVICTIONS
                if (
                    decision.instance not in ready
                    and decision.instance not in ended
                    and what in EVICTIONS | {"draining"}
                ):
                    carried.add(decision.function)
                    ready[decision.instance] = (decision.function, begin)
                if decision.instance in ready:
                    function, since = ready.pop(decision.instance)
                    ended.add(decision.instance)
                    until = max(since, decision.at - _idle_s(decision))
                    uses += _uses(function, since, until, idle_after_s(function))
    for function, since in ready.values():
        until = min(end, max(since, last_used.get(function, since)))
        uses += _uses(function, since, until, idle_after_s(function))
    past.visits += (u for u in uses if not any(since <= u.at <= until for since, until in spans[u.function]))
    past.visits.sort(key=lambda v: v.at)
    past.carried = tuple(sorted(carried))
    return past


def _visit(decision: DecisionRecord, tally: Tally) -> Visit:
    """Return a request that waited, and count it."""
    queued_s = _number(decision.inputs, "queued_ms") / 1000
    took_s = max(queued_s, _number(decision.inputs, "took_ms") / 1000)
    if decision.what == RouterDecision.WAITED:
        tally.waited(queued_s)
    else:
        tally.not_served += 1
    return Visit(decision.at - took_s, decision.function, took_s - queued_s)


def _is_return(decision: DecisionRecord) -> bool:
    """Whether an instance became ready by its return from a tier."""
    phases = decision.inputs.get("phases")
    return isinstance(phases, Mapping) and WAKING in phases


def _measure(decision: DecisionRecord) -> Measured:
    phases = decision.inputs.get("phases")
    seconds = phases.items() if isinstance(phases, Mapping) else ()
    start_s = sum(s for phase, s in seconds if phase not in BEFORE_THE_WORKER and isinstance(s, int | float))
    return Measured(start_s=round(start_s, 3))


def _idle_s(decision: DecisionRecord) -> float:
    """Return how long an instance had been idle when it was decided to end; 0 for one in use."""
    victim = decision.inputs.get("victim", decision.inputs)
    if not isinstance(victim, Mapping) or _number(victim, "in_flight"):
        return 0.0
    return _number(victim, "idle_s")


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _uses(function: str, since: float, until: float, idle_after_s: float) -> Sequence[Visit]:
    step = max(1.0, min(idle_after_s / 2, LONGEST_STEP_S))
    number = int((until - since) / step)
    return [*(Visit(since + step * n, function) for n in range(1, number + 1)), Visit(until, function)]
