"""What the activator does with what it sees. The record and the agents are values; nothing sleeps."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, revision
from cortex.platform import clock
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.in_flight import InFlight
from cortex.platform.record import FailureKind, HostRecord, InLine, Instance, Tier
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.failures import Failures, Incident, evidence_in
from cortex.platform.scheduling.placement import When
from cortex.router.activation.activator import CLAIM_S, MOST_CLAIMS, Activator
from cortex.router.activation.agents import TIMEOUT_S, Agents, AgentUnavailable
from cortex.router.activation.probe import Pulse
from cortex.router.activation.proposer import Proposer
from cortex.router.errors import NoCapacity, NotReadyInTime, RecordIsAway, StartFailed
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from tests.support.factories import a_function, a_host, an_instance

FUNCTION = a_function()
TARGET = Target(FUNCTION, revision(FUNCTION))


class Catalogue:
    """A catalogue that declares one function, until it is told otherwise."""

    def __init__(self) -> None:
        self.digest = "here"
        self.targets: dict[str, Target] = {FUNCTION.id: TARGET}
        self._changed = asyncio.Event()

    def get(self, name: str) -> Target | None:
        return self.targets.get(name)

    async def change(self, timeout_s: float, *others: asyncio.Future[Any]) -> None:
        changed = asyncio.create_task(self._changed.wait())
        await asyncio.wait((changed, *others), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()

    def becomes(self, *functions: Function) -> None:
        self.targets = {f.id: Target(f, revision(f)) for f in functions}
        self._changed.set()


class Stage:
    """One host as the router sees it. Each proposal that is taken turns the record's page: `pages` says to what.

    A page that is a list is read line by line; its last line stands.
    """

    def __init__(self, *pages: tuple[Instance, ...] | list[tuple[Instance, ...]]) -> None:
        self._pages = [page if isinstance(page, list) else [page] for page in pages]
        self.proposed = 0
        self.proposals: list[Ensure] = []
        self.failures = Failures()
        self._view = FleetView(cast(Registry, self), "router-1")
        self.addresses: list[str] = []
        self.others: dict[str, HostRecord] = {}
        self.catalogue = ""
        self.lost = 0
        self.turns: dict[str, float] = {}
        """Hosts that are full of instances in use, and when a turn comes there."""
        self.foreign_mb: dict[str, int] = {}
        """Hosts whose memory foreign processes hold, and how much."""
        self.directory = Catalogue()
        self.pulses: list[Pulse] = []
        self.probes: list[str] = []
        self.in_flight = InFlight("router-1")
        self.proposer = Proposer(self._view, cast(Agents, self), self.in_flight)
        self.activator = Activator(
            self._view, cast(Registry, self), self.proposer, self.in_flight, self.directory, self
        )

    async def fleet(self, now: float) -> Fleet:
        page = self._pages[self.proposed]
        there = page.pop(0) if len(page) > 1 else page[0]
        failures = self.failures.all() if self.proposed else ()
        host = replace(a_host(*there), failures=failures, catalogue=self.catalogue)
        return Fleet(hosts={host.name: host, **self.others}, at=now)

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        return True

    async def release(self, function: str, token: str) -> None:
        return None

    async def ensure(self, host: HostRecord, request: Ensure) -> Accepted | Rejected:
        self.proposals.append(request)
        self.addresses.append(host.address)
        if host.name in self.foreign_mb:
            held_mb = self.foreign_mb[host.name]
            return Rejected(f"foreign processes hold {held_mb} MiB", When.LATER, foreign_mb=held_mb)
        if host.name in self.turns and not request.turn:
            return Rejected("in use", When.LATER, turn_in_s=self.turns[host.name])
        self.proposed += 1
        if self.lost:
            self.lost -= 1
            raise AgentUnavailable("no answer in time")
        return Accepted(f"new-{self.proposed}", State.STARTING)

    async def pulse(self, instance: Instance) -> Pulse:
        self.probes.append(instance.id)
        return self.pulses.pop(0)

    async def served(self) -> None:
        """Wait as a request does, while the record is read again and again."""
        await self._view.refresh()
        with self.in_flight.waiting(FUNCTION.id):
            waiting = asyncio.create_task(self.activator.wait_until_ready(TARGET, FUNCTION.start_timeout_s))
            async with asyncio.timeout(5):
                while not waiting.done():
                    await asyncio.sleep(0)
                    await self._view.refresh()
            await waiting


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING, State.RECLAIMING])
async def test_an_instance_on_its_way_out_is_not_waited_for(state: State) -> None:
    stage = Stage((an_instance("old", state=state),), (an_instance("new-1", ready=1.0),))

    await stage.served()

    assert stage.proposed == 1


async def test_a_worker_that_dies_before_its_agent_says_so_is_no_failed_start() -> None:
    """The agent answers `ensure` with the worker it still believes in; what it says next is that it crashed."""
    dead = an_instance("new-1", ready=1.0)
    stage = Stage((), (replace(dead, state=State.RECLAIMING),), (an_instance("new-2", ready=2.0),))
    stage.failures.add(dead, Incident("the worker was killed by SIGKILL while it was ready"), 1.0)

    await stage.served()

    assert stage.proposed == 2


async def test_a_start_that_its_host_no_longer_has_is_proposed_again_at_once() -> None:
    """An agent that began anew knows nothing of a download it was waiting for."""
    fetching = an_instance("new-1", state=State.FETCHING)
    stage = Stage((), [*[(fetching,)] * 20, ()], (an_instance("new-2", ready=2.0),))

    await stage.served()

    assert stage.proposed == 2


async def test_an_instance_that_returns_as_soon_as_it_is_parked_is_waited_for() -> None:
    parking = an_instance("one", state=State.PARKING, parks_to=Tier.SLEEP)
    stage = Stage([*[(parking,)] * 20, (an_instance("one"),)], ())

    await stage.served()

    assert stage.proposed == 0


async def test_a_start_that_fails_is_the_answer_of_everybody_who_waits_for_it() -> None:
    stage = Stage((), ())
    starting = an_instance("new-1", state=State.STARTING)
    reason = "the worker exited with code 1 while starting"
    stage.failures.add(starting, Incident(reason, evidence=evidence_in(("a prompt",))), 1.0)

    with pytest.raises(StartFailed, match=r"exited with code 1 while starting$"):
        await stage.served()

    assert stage.proposed == 1


async def test_one_more_is_asked_for_beside_all_that_serve() -> None:
    stage = Stage((an_instance("a"), an_instance("b")), ())

    going = await stage.activator.add(TARGET, evict=False, for_request=True)

    assert going == Accepted("new-1", State.STARTING)
    assert stage.proposals == [Ensure(FUNCTION, beside=("a", "b"), evict=False)]


async def test_one_for_the_minimum_may_evict_and_is_marked_as_such() -> None:
    stage = Stage((), ())

    await stage.activator.add(TARGET, evict=True, for_request=False)

    assert stage.proposals == [Ensure(FUNCTION, evict=True, minimum=True)]


async def test_one_for_a_baseline_evicts_nothing_and_any_request_may_evict_it() -> None:
    stage = Stage((), ())

    await stage.activator.add(TARGET, evict=False, for_request=False)

    assert stage.proposals == [Ensure(FUNCTION, evict=False, minimum=True)]


async def test_the_only_host_gets_the_request_for_a_turn_at_once_with_how_long_requests_have_waited() -> None:
    stage = Stage((), (an_instance("new-1", ready=1.0),))
    stage.turns = {"host-a": 5.0}

    await stage.served()

    assert [a.turn for a in stage.proposals] == [True]
    assert stage.proposals[0].waited_s > 0


async def test_a_host_with_room_goes_before_a_turn() -> None:
    other = replace(a_host(), name="host-b", address="http://host-b:13131")
    stage = Stage((), (an_instance("new-1", ready=1.0),))
    stage.others, stage.turns = {other.name: other}, {"host-a": 0.0}

    await stage.served()

    assert [(address[7:13], a.turn) for address, a in zip(stage.addresses, stage.proposals, strict=True)] == [
        ("host-a", False),
        ("host-b", False),
    ]


async def test_where_no_host_has_room_the_one_with_the_soonest_turn_gets_the_request_for_it() -> None:
    other = replace(a_host(), name="host-b", address="http://host-b:13131")
    stage = Stage((), (an_instance("new-1", ready=1.0),))
    stage.others, stage.turns = {other.name: other}, {"host-a": 20.0, "host-b": 3.0}

    await stage.served()

    assert [(address[7:13], a.turn) for address, a in zip(stage.addresses, stage.proposals, strict=True)] == [
        ("host-a", False),
        ("host-b", False),
        ("host-b", True),
    ]


async def test_what_an_operator_warms_takes_no_turn() -> None:
    stage = Stage((), ())
    stage.turns = {"host-a": 0.0}
    await stage._view.refresh()

    with pytest.raises(NoCapacity, match="in use"):
        await stage.activator.ensure(lambda: TARGET, force=True)

    assert [a.turn for a in stage.proposals] == [False]


async def test_where_foreign_processes_hold_the_memory_a_request_is_refused_at_once_with_the_numbers() -> None:
    stage = Stage((), ())
    stage.foreign_mb = {"host-a": 100_964}

    with pytest.raises(NoCapacity, match="host-a: foreign processes hold 100964 MiB") as refused:
        await stage.served()

    assert len(stage.proposals) == 1
    assert refused.value.retry_after is None
    assert "processes outside cortex hold the memory" in refused.value.public
    assert "host-a" not in refused.value.public


async def test_a_request_is_held_while_one_host_may_have_room_later() -> None:
    other = replace(a_host(), name="host-b", address="http://host-b:13131")
    stage = Stage((), (an_instance("new-1", ready=1.0),))
    stage.others, stage.foreign_mb, stage.turns = {other.name: other}, {"host-a": 100_964}, {"host-b": 3.0}

    await stage.served()

    assert [a.turn for a in stage.proposals][-1] is True


async def test_a_request_whose_time_is_up_in_line_learns_for_whom_it_waited_and_when_to_come_back() -> None:
    stage = Stage((an_instance("busy", function="org/busy"),))
    place = InLine(function=FUNCTION.id, since=clock.now() - 9, turn_at=clock.now() + 20, closes=("busy",), start_s=4.0)
    there = replace(a_host(an_instance("busy", function="org/busy")), name="host-b", line=(place,))
    stage.others = {"host-b": there}
    await stage._view.refresh()

    late = stage.activator.late(FUNCTION)

    assert late.retry_after == 24
    assert "it has waited for memory on host-b for 9 s; org/busy closes for it in at most 20 s" in late.message


async def test_no_further_one_is_asked_for_while_one_is_coming() -> None:
    stage = Stage((an_instance("a"), an_instance("b", state=State.STARTING)))

    assert await stage.activator.add(TARGET, evict=True, for_request=False) is None


async def test_a_plan_that_finds_no_place_says_why_of_a_host_that_was_not_worth_asking() -> None:
    pinned = an_instance("a", function="org/pinned", memory_mb=20_000, pinned=True, ready=1.0)
    stage = Stage((pinned,))
    await stage._view.refresh()

    planned, refusals = await stage.proposer.plan(a_function(vram_mb=9000))

    assert planned is None
    assert refusals == {"host-a": "does not fit by 19000 MiB: org/pinned is pinned"}


async def test_a_suspect_that_is_well_is_chosen_again_and_nothing_is_started() -> None:
    """One broken connection is no reason for a second instance."""
    stage = Stage((an_instance("one"),))
    await stage._view.refresh()
    stage._view.suspect("one")
    stage.pulses = [Pulse.WELL]

    await stage.served()

    assert (stage.probes, stage.proposed) == (["one"], 0)


async def test_a_suspect_that_does_not_answer_has_its_host_asked_first() -> None:
    other = replace(a_host(), name="host-0")
    stage = Stage((an_instance("one"),), (an_instance("new-1", ready=1.0),))
    stage.others = {other.name: other}
    await stage._view.refresh()
    stage._view.suspect("one")
    stage.pulses = [Pulse.GONE]

    await stage.served()

    assert stage.addresses == ["http://host-a:13131"]


async def test_a_start_of_what_is_not_declared_any_more_ends_and_proposes_nothing_else() -> None:
    """Who waits for it is woken and looks its name up again."""
    stage = Stage((), (an_instance("new-1", state=State.STARTING),))
    await stage._view.refresh()

    with stage.in_flight.waiting(FUNCTION.id):
        waiting = asyncio.create_task(stage.activator.wait_until_ready(TARGET, 60))
        await until(lambda: stage.proposed == 1)
        stage.directory.becomes(a_function(args=("--changed",)))
        await asyncio.wait_for(waiting, 5)
        stage._view.wake()
        await until(lambda: not stage.activator._starts)

    assert stage.proposed == 1


async def test_a_start_that_was_superseded_is_made_again() -> None:
    """This router has not read the new file yet, or the host has been told an old one."""
    stage = Stage((), (), (an_instance("new-2", ready=2.0),))
    starting = an_instance("new-1", state=State.STARTING)
    stage.failures.add(starting, Incident("given up while it was starting: superseded", FailureKind.ROOM), 1.0)

    await stage.served()

    assert stage.proposed == 2


async def test_a_start_that_was_cooled_is_the_answer() -> None:
    stage = Stage((), ())
    starting = an_instance("new-1", state=State.STARTING)
    stage.failures.add(starting, Incident("given up while it was starting: cool", FailureKind.CANCELLED), 1.0)

    with pytest.raises(StartFailed, match="given up while it was starting: cool"):
        await stage.served()


async def test_an_agent_that_does_not_answer_in_time_has_the_record_read_before_another_is_asked() -> None:
    """It may have started one: two starts of a function with `max = 1` would be one too many."""
    other = replace(a_host(), name="host-b", address="http://host-b:13131")
    stage = Stage((), (an_instance("new-1", ready=1.0),))
    stage.others = {other.name: other}
    stage.lost = 1

    await stage.served()

    assert stage.addresses == ["http://host-a:13131"]


async def test_an_agent_that_did_not_answer_in_time_is_asked_after_the_others() -> None:
    other = replace(a_host(), name="host-b", address="http://host-b:13131")
    stage = Stage((), (), (an_instance("new-2", ready=1.0),))
    stage.others = {other.name: other}
    stage.lost = 1

    await stage.served()

    assert stage.addresses == ["http://host-a:13131", "http://host-b:13131"]


async def test_the_claim_outlasts_an_agent_that_does_not_answer() -> None:
    assert CLAIM_S > TIMEOUT_S


async def test_who_waits_too_long_is_refused_whatever_the_catalogue_does() -> None:
    stage = Stage((), (an_instance("new-1", state=State.STARTING),))
    await stage._view.refresh()

    with stage.in_flight.waiting(FUNCTION.id), pytest.raises(NotReadyInTime):
        await stage.activator.wait_until_ready(TARGET, 0)


async def test_warm_looks_the_name_up_again_while_it_waits() -> None:
    changed = a_function(args=("--changed",))
    stage = Stage((), (an_instance("new-1", revision=revision(changed), ready=1.0),))
    stage.lost = 1
    matches = [TARGET, Target(changed, revision(changed))]

    instance = await stage.activator.ensure(lambda: matches.pop(0) if len(matches) > 1 else matches[0], force=True)

    assert (instance, stage.proposed) == ("new-1", 1)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 (no event tells: what is awaited is the activator's own state)
            await asyncio.sleep(0)


async def test_of_agents_that_did_not_answer_the_one_that_failed_longest_ago_is_first() -> None:
    """Else one that stays away would keep all behind it from being asked."""
    proposer = Stage(()).proposer
    proposer._slow = {"a": time.monotonic() + 20, "b": time.monotonic() + 10, "c": time.monotonic() - 1}

    assert list(proposer._slow_last(["a", "b", "c", "d"])) == ["c", "d", "b", "a"]


# Many cold functions at a time.


class CrowdedStage(Stage):
    """A record in which claims take a while; `reachable` false: they fail then."""

    def __init__(self) -> None:
        super().__init__(*[()] * (8 * MOST_CLAIMS))
        self.open = asyncio.Event()
        self.reachable = True
        self.claiming = self.most = self.claims = 0

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        self.claiming += 1
        self.claims += 1
        self.most = max(self.most, self.claiming)
        await self.open.wait()
        self.claiming -= 1
        if not self.reachable:
            raise RecordUnavailable("no answer")
        return True

    def begin(self, functions: int) -> list[asyncio.Task[str]]:
        """Have so many cold functions requested at once."""
        cold = [a_function(id=f"cold-{n}") for n in range(functions)]
        find = [partial(Target, f, revision(f)) for f in cold]
        return [asyncio.create_task(self.activator.ensure(one)) for one in find]


async def test_many_cold_functions_take_a_few_claims_at_a_time_and_all_start() -> None:
    stage = CrowdedStage()
    starts = stage.begin(4 * MOST_CLAIMS)
    await asyncio.sleep(0)
    stage.open.set()

    await asyncio.gather(*starts)

    assert (stage.most, stage.proposed) == (MOST_CLAIMS, 4 * MOST_CLAIMS)


async def test_when_redis_does_not_answer_those_in_line_for_a_claim_fail_with_the_first() -> None:
    stage = CrowdedStage()
    stage.reachable = False
    starts = stage.begin(4 * MOST_CLAIMS)
    await asyncio.sleep(0)
    stage.open.set()

    errors = await asyncio.gather(*starts, return_exceptions=True)

    assert {type(e) for e in errors} == {RecordIsAway}
    assert stage.claims == MOST_CLAIMS
