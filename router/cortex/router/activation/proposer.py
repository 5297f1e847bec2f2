"""Proposes a start to the hosts, the best first, until an agent accepts it; plans one in the same order.

An agent decides on its own host and answers with an instance or a rejection. The rejections of all hosts become one
error: a function that crashes everywhere is reported as such, and one for which there is no room now may be retried.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog
from msgspec.structs import replace

from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Accepted, Ensure, PlacementPlan, Rejected
from cortex.platform.fleet import use
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Failure
from cortex.platform.scheduling.placement import Need, NoRoom, When, misfit, need, place
from cortex.router.activation.agents import Agents, AgentUnavailable, AgentUnreachable
from cortex.router.activation.load_balancing import HostOrder, candidates, hosts_to_ask, why_nowhere
from cortex.router.activation.waits import ready_in_s
from cortex.router.decision_log import DecisionLog, RouterDecision
from cortex.router.errors import SEE_WHY, NoCapacity, RequestError, StartFailed
from cortex.router.fleet_view import FleetView

log = structlog.get_logger()

PROPOSE_S = 3.0
"""After this time no further host is tried under the same claim."""
SLOW_S = 30.0
"""How long an agent that did not answer is tried after all others."""
RETRY_AFTER_S = 5
MOST_RETRY_AFTER_S = 3600


class AnswerLost(NoCapacity):
    """An agent did not answer in time. It may have started an instance: the record must be read before the next host
    is tried."""


class Proposer:
    """Starts and plans instances on the hosts of a view."""

    def __init__(
        self,
        view: FleetView,
        agents: Agents,
        in_flight: InFlight,
        decision_log: DecisionLog | None = None,
        now: Callable[[], float] = lambda: clock.now(),
    ) -> None:
        """`now` is the time of the view's fleet."""
        self._view, self._agents, self._in_flight, self._now = view, agents, in_flight, now
        self._decision_log = decision_log or DecisionLog("")
        self._slow: dict[str, float] = {}
        """Until when a host that did not answer is tried last."""

    async def propose(self, request: Ensure) -> Accepted:
        """Start an instance on the first host that accepts it, whatever other hosts have.

        Raises RequestError; AnswerLost when an agent may have started one without an answer.
        """
        function = request.function
        function_need = need(function, None)
        fleet = self._view.fleet
        usage = use(fleet)
        present = self._view.by_host(function.id)
        hosts = hosts_to_ask(function_need, function, fleet, usage, self._now(), request.beside, present)
        order = HostOrder(self._slow_last(hosts), hosts.estimates)
        has_choice = len(order.first(2)) > 1
        refusals: dict[str, Rejected] = {}
        accepted = await self._first_host(order, replace(request, turn=request.turn and not has_choice), refusals)
        if accepted is None and request.turn and has_choice and (host := _soonest_turn(refusals)):
            accepted = await self._first_host([host], request, refusals)  # a host with room goes before a turn
        if accepted is None:
            refusal = self._refusal(function, function_need, refusals)
            self._decision_log.note_once(RouterDecision.NO_HOST, function.id, why=refusal.message)
            raise refusal
        host, started = accepted
        refusals.pop(host, None)
        estimates = candidates(function_need, order, fleet, usage, self._now())
        self._note_proposed(function, estimates, refusals, host, started)
        return started

    async def plan(self, function: Function) -> tuple[PlacementPlan | None, dict[str, str]]:
        """Return the plan of a start, and why the hosts before it, or all hosts, reject it."""
        function_need = need(function, None)
        fleet = self._view.fleet
        refusals: dict[str, str] = {}
        usage, now = use(fleet), self._now()
        for host in hosts_to_ask(function_need, function, fleet, usage, now):
            try:
                answer = await self._agents.plan(fleet.hosts[host], function)
            except AgentUnavailable as error:
                refusals[host] = str(error)
                continue
            if isinstance(answer, PlacementPlan):
                return _with_back_off(answer, fleet.hosts[host].failures, function.id), refusals
            refusals[host] = answer.reason
            if answer.turn_in_s is not None:
                refusals[host] += (
                    f"; for a request, instances in use are closed in at most {math.ceil(answer.turn_in_s)} s"
                )
        for name, record in fleet.hosts.items():
            estimate = misfit(function_need, record) or place(
                function_need, record, usage, now, cordoned=name in fleet.cordoned
            )
            if isinstance(estimate, NoRoom):
                refusals.setdefault(name, estimate.reason)
        return None, refusals

    def retry_after_s(self, function: str) -> int:
        """Return in how many seconds a function that waits for memory is ready, by the agents' estimate."""
        ready = ready_in_s(self._view.fleet, function, self._now())
        return RETRY_AFTER_S if ready is None else min(max(1, math.ceil(ready)), MOST_RETRY_AFTER_S)

    async def _first_host(
        self, order: Iterable[str], request: Ensure, refusals: dict[str, Rejected]
    ) -> tuple[str, Accepted] | None:
        """Return the first host that accepts a function, and its answer; add the rejections of others to `refusals`.

        Raises AnswerLost.
        """
        hosts, started_at = self._view.fleet.hosts, time.monotonic()
        for host in order:
            if host not in hosts:
                continue
            try:
                answer = await self._agents.ensure(hosts[host], request)
            except AgentUnavailable as error:
                log.warning("agent_away", host=host, why=str(error))
                self._slow[host] = time.monotonic() + SLOW_S
                if not isinstance(error, AgentUnreachable) or time.monotonic() - started_at > PROPOSE_S:
                    public = f"no room for '{request.function.id}' now"
                    why = f"{public}: {host}: {error}"
                    raise AnswerLost(why, retry_after=RETRY_AFTER_S, public=public + SEE_WHY) from None
                refusals[host] = Rejected(str(error), When.LATER)
                continue
            if isinstance(answer, Accepted):
                return host, answer
            refusals[host] = answer
        return None

    def _slow_last(self, hosts: Iterable[str]) -> Iterator[str]:
        """Yield the hosts, with those last whose agents recently did not answer."""
        now = time.monotonic()
        slow = self._slow = {host: until for host, until in self._slow.items() if until > now}
        last = []
        for host in hosts:
            if host in slow:
                last.append(host)
            else:
                yield host
        yield from sorted(last, key=slow.__getitem__)

    def _note_proposed(
        self,
        function: Function,
        estimates: Sequence[Mapping[str, object]],
        refusals: Mapping[str, Rejected],
        host: str,
        started: Accepted,
    ) -> None:
        """Log the decision: the estimates for hosts, and the rejections before this one."""
        inputs = {
            "candidates": estimates,
            "rejections": {name: rejection.reason for name, rejection in refusals.items()},
            "waiting": self._in_flight.waiting_for(function.id),
        }
        why = "the best of the hosts that take it" if not refusals else "the best of those that did not refuse"
        self._decision_log.note(
            RouterDecision.PROPOSED, function.id, host=host, instance=started.instance, why=why, inputs=inputs
        )

    def _refusal(self, function: Function, function_need: Need, refusals: Mapping[str, Rejected]) -> RequestError:
        """Merge the agents' rejections into one error: crashing beats full, full beats never."""
        if not refusals:
            fleet = self._view.fleet
            why = why_nowhere(function_need, fleet, use(fleet), self._now())
            public = f"no host can run '{function.id}'"
            return NoCapacity(
                f"{public}: {why}",
                public=public + SEE_WHY,
                # Waiting may help: a cordon may be lifted, a host may join.
                retry_after=RETRY_AFTER_S if fleet.cordoned or not fleet.hosts else None,
            )
        reasons = "; ".join(f"{host}: {refused.reason}" for host, refused in refusals.items())
        public = f"'{function.id}' cannot be started"
        if any(r.failure for r in refusals.values()):
            return StartFailed(f"{public}: {reasons}", public=public + SEE_WHY)
        if all(r.when is When.NEVER for r in refusals.values()):
            return StartFailed(f"{public}: {reasons}", public=public + SEE_WHY)
        public = f"no room for '{function.id}' now"
        if all(r.foreign_mb or r.when is When.NEVER for r in refusals.values()):
            # No instance that leaves makes room, so waiting does not help.
            public += ": processes outside cortex hold the memory"
            return NoCapacity(f"{public}: {reasons}", public=public + SEE_WHY)
        return NoCapacity(f"{public}: {reasons}", retry_after=self.retry_after_s(function.id), public=public + SEE_WHY)


def _soonest_turn(refusals: Mapping[str, Rejected]) -> str:
    """Return the host on which a function's turn comes first; empty: on none."""
    turns = [(refused.turn_in_s, host) for host, refused in refusals.items() if refused.turn_in_s is not None]
    return min(turns)[1] if turns else ""


def _with_back_off(planned: PlacementPlan, failures: Iterable[Failure], function: str) -> PlacementPlan:
    """Return a plan whose end of the back-off is by the wall clock here; the agent's answer has it by its own clock."""
    retry_at = next((f.retry_at for f in failures if f.function == function), 0.0)
    return replace(planned, retry_at=clock.wall(retry_at) if planned.retry_at and retry_at else 0.0)
