"""What the activator does with what it sees. The record and the agents are values; nothing sleeps."""

import asyncio
from typing import cast

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import revision
from cortex.platform.agent_messages import Ensure, Going
from cortex.platform.flights import Flights
from cortex.platform.record import FailureKind, Fleet, Instance
from cortex.platform.registry import Registry
from cortex.platform.scheduling.failures import Failures
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents
from cortex.router.directory import Target
from cortex.router.refusals import StartFailed
from cortex.router.view import View
from tests.support.factories import a_function, a_host, an_instance

FUNCTION = a_function()
TARGET = Target(FUNCTION, revision(FUNCTION))


class Stage:
    """One host as the router sees it. Each proposal that is taken turns the record's page: `pages` says to what.

    A page that is a list is read line by line; its last line stands.
    """

    def __init__(self, *pages: tuple[Instance, ...] | list[tuple[Instance, ...]]) -> None:
        self._pages = [page if isinstance(page, list) else [page] for page in pages]
        self.proposed = 0
        self.asked: list[Ensure] = []
        self.failures = Failures()
        self._view = View(cast(Registry, self), "router-1")
        self.activator = Activator(self._view, cast(Registry, self), cast(Agents, self), Flights("router-1"))

    async def fleet(self, now: float) -> Fleet:
        page = self._pages[self.proposed]
        there = page.pop(0) if len(page) > 1 else page[0]
        host = replace(a_host(*there), failures=self.failures.all() if self.proposed else ())
        return Fleet(hosts={host.name: host}, at=now)

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        return True

    async def release(self, function: str, token: str) -> None:
        return None

    async def ensure(self, address: str, asked: Ensure) -> Going:
        self.asked.append(asked)
        self.proposed += 1
        return Going(f"new-{self.proposed}", State.STARTING)

    async def served(self) -> None:
        """Wait as a request does, while the record is read again and again."""
        await self._view.refresh()
        waiting = asyncio.create_task(self.activator.wait_until_ready(TARGET))
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
    stage.failures.add(dead, FailureKind.CRASH, "the worker was killed by SIGKILL while it was ready", (), 1.0)

    await stage.served()

    assert stage.proposed == 2


async def test_a_start_that_its_host_has_forgotten_is_made_again_at_once() -> None:
    """An agent that began anew knows nothing of a download it was waiting for."""
    fetching = an_instance("new-1", state=State.FETCHING)
    stage = Stage((), [*[(fetching,)] * 20, ()], (an_instance("new-2", ready=2.0),))

    await stage.served()

    assert stage.proposed == 2


async def test_a_start_that_fails_is_the_answer_of_everybody_who_waits_for_it() -> None:
    stage = Stage((), ())
    starting = an_instance("new-1", state=State.STARTING)
    stage.failures.add(starting, FailureKind.CRASH, "the worker exited with code 1 while starting", ("why",), 1.0)

    with pytest.raises(StartFailed, match=r"exited with code 1 while starting \(last line: why\)"):
        await stage.served()

    assert stage.proposed == 1


async def test_one_more_is_asked_for_beside_all_that_serve() -> None:
    stage = Stage((an_instance("a"), an_instance("b")), ())

    going = await stage.activator.add(TARGET, evict=False)

    assert going == Going("new-1", State.STARTING)
    assert stage.asked == [Ensure(FUNCTION, beside=("a", "b"), evict=False)]


async def test_no_further_one_is_asked_for_while_one_is_coming() -> None:
    stage = Stage((an_instance("a"), an_instance("b", state=State.STARTING)))

    assert await stage.activator.add(TARGET, evict=True) is None


async def test_a_plan_that_finds_no_place_says_why_of_a_host_that_was_not_worth_asking() -> None:
    pinned = an_instance("a", function="org/pinned", memory_mb=20_000, pinned=True, ready=1.0)
    stage = Stage((pinned,))
    await stage._view.refresh()

    planned, refusals = await stage.activator.plan(a_function(vram_mb=9000))

    assert planned is None
    assert refusals == {"host-a": "does not fit by 19000 MiB: org/pinned is pinned"}
