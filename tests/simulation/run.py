"""Runs one scenario."""

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.functions.spec import Function
from cortex.platform.registry import RecordUnavailable
from cortex.router.activation.agents import AgentUnavailable
from cortex.router.errors import RequestError
from cortex.router.operations import Operations
from tests.simulation.invariants import Invariants
from tests.simulation.machine import Machine
from tests.simulation.network import Cut
from tests.simulation.scenario import Client, Fault, Scenario
from tests.simulation.virtual_time import Phase, Process, VirtualLoop
from tests.simulation.worker import Manner, Worker
from tests.simulation.world import Outcome, World

PROVES_EVERY = 5
"""One of so many seeds ends with a request to each function."""
MOST_TRIES = 6
THINKING_S = 0.01
"""From an answer to a client's next request."""
OVERRIDES: tuple[dict[str, int | bool], ...] = ({"pinned": True}, {"min": 1}, {"max": 3})
"""What an operator overrides, by the detail of the fault."""
REST_S = 1.0
"""How long everything must be at rest before a run ends."""


class Result(Struct, frozen=True, kw_only=True):
    """What a run came to."""

    seed: int
    violation: str = ""
    invariant: str = ""
    faults: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    longest_wait_s: float = 0.0
    starts: dict[str, int] = {}
    converged_s: float = 0.0
    """From the end of faults and load until everything was at rest."""
    virtual_s: float = 0.0
    digest: str = ""
    requests: tuple[Outcome, ...] = ()
    """Every request, in the order in which they ended."""
    trace: tuple[str, ...] = ()


def simulate(scenario: Scenario) -> Result:
    """Run a scenario to its end or to its first violation."""
    loop = VirtualLoop()
    random = Random(scenario.seed ^ 0x5EED)
    with tempfile.TemporaryDirectory(prefix="cortex-simulation-") as folder:
        world = World(loop, random, scenario.catalogue, Path(folder))
        with world.running():
            run = Run(world, scenario)
            asyncio.set_event_loop(None)
            try:
                loop.run_until_complete(run.main())
            except RuntimeError:  # stopped by a violation
                if world.violation is None:
                    raise
            finally:
                run.close()
    return run.result()


class Run:
    """One run of a scenario."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world, self.scenario = world, scenario
        self.invariants = Invariants(world, scenario)
        self._parking_random = Random(f"parked workers {scenario.seed}")
        self._works = {n: r.work_s for n, r in enumerate(scenario.requests)}
        self._converged = 0.0
        self._undone: set[tuple[str, str]] = set()
        """Overrides and cordons of operators that have to be taken back."""

    async def main(self) -> None:
        """Bring the fleet up, let the load and the faults come, and see that it comes to rest."""
        world, scenario = self.world, self.scenario
        for name, devices in scenario.machines.items():
            machine = world.add_machine(name, devices, scenario.ports[name])
            machine.manner, machine.park_ram_mb = self._manner, scenario.park_ram_mb
            machine.sleeps, machine.freezes = scenario.sleeps, scenario.freezes
            machine.hub.seconds = {f: fetch.seconds for f, fetch in scenario.fetches.items()}
            self.invariants.watch_machine(machine)
        world.fabric.service_s = self._service_s
        world.fabric.counts_requests = lambda worker: worker.function.id not in scenario.uncounted
        for name in scenario.machines:
            world.start_agent(name)
        for name in scenario.routers:
            world.start_router(name)
        for number, request in enumerate(scenario.requests):
            send = partial(world.request, streams=request.streams)
            world.loop.outside(request.at, send, number, request.function, request.router, request.patience_s)
        for client in scenario.clients:
            world.loop.outside(client.at, self._send_next, client)
        for fault in scenario.faults:
            world.loop.outside(fault.at, self._begin, fault)
        await asyncio.sleep(scenario.load_ends)
        self._heal()
        self.invariants.peace = world.now
        while world.now < scenario.ends:
            self._undo()
            await asyncio.sleep(0.5)
            self.invariants.check_all()
            if self.invariants.at_rest() and not self._undone:
                self._converged = self._converged or world.now - scenario.load_ends
                if world.now - scenario.load_ends - self._converged >= REST_S:
                    break
            else:
                self._converged = 0.0
        if not scenario.rests:
            return
        self.invariants.check_end()
        if scenario.seed % PROVES_EVERY == 0 and world.violation is None:
            await self._serve_every_function()

    async def _serve_every_function(self) -> None:
        """Send a request to each function: nothing that happened keeps one from being served."""
        for name in sorted(self.world.catalogue.functions):
            for _ in range(MOST_TRIES):
                number = len(self._works)
                self._works[number] = 0.1
                self.world.request(number, name, self.scenario.routers[0])
                while number in self.world.open:  # noqa: ASYNC110 (virtual time)
                    await asyncio.sleep(0.5)
                if self.world.outcomes[-1].status == 200:
                    break
            else:
                self.world.fail("every function can be served afterwards", f"{name}: {self.world.outcomes[-1].why}")

    def close(self) -> None:
        """Cancel every task, also of processes that crashed, so that nothing is left behind."""
        loop = self.world.loop
        self.world.closing = True
        loop.call_soon(loop.stop)
        loop.run_forever()
        for process in loop.processes:
            process.revive()

        async def end() -> None:
            for _ in range(20):
                left = [t for p in loop.processes for t in p.tasks if not t.done()]
                if not left:
                    return
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=1.0)

        loop.run_until_complete(end())
        loop.close()

    def result(self) -> Result:
        """Return what the run came to."""
        world, violation = self.world, self.world.violation
        outcomes: dict[str, int] = {}
        for outcome in world.outcomes:
            name = name_of(outcome)
            outcomes[name] = outcomes.get(name, 0) + 1
        return Result(
            seed=self.scenario.seed,
            violation=str(violation) if violation else "",
            invariant=violation.invariant if violation else "",
            faults=dict(world.faults),
            outcomes=outcomes,
            longest_wait_s=max((o.queued_s for o in world.outcomes), default=0.0),
            starts=dict(world.starts),
            converged_s=self._converged,
            virtual_s=world.now,
            digest=world.digest.hexdigest(),
            requests=tuple(world.outcomes),
            trace=tuple(world.trace),
        )

    # Clients that wait for their answers.

    def _send_next(self, client: Client) -> None:
        if self.world.now >= self.scenario.load_ends:
            return
        number = len(self._works)
        self._works[number] = client.work_s
        self.invariants.after[number] = lambda: self.world.loop.outside(THINKING_S, self._send_next, client)
        self.world.request(number, client.function, client.router)

    # Workers.

    def _manner(self, function: Function) -> Manner:
        random, start = self.world.random, self.scenario.starts[function.id]
        return Manner(
            start_s=start.seconds * random.uniform(1 - start.spread, 1 + start.spread),
            ends_s=random.choice((0.02, 0.1, 0.8)),
            ignores_term=random.random() < 0.03,
            **self._parking(function, random),
        )

    def _parking(self, function: Function, random: Random) -> dict[str, Any]:
        parks = self.scenario.parks.get(function.id)
        if parks is None:
            return {}
        refuses = random.choice(("sleep", "wake", "dies")) if random.random() < parks.refuses else ""
        freezing = {}
        if self.scenario.freezes or parks.hangs:
            own = self._parking_random
            if own.random() < parks.refuses:
                refuses = own.choice(("sleep", "wake", "dies", "lock", "checkpoint", "restore", "unlock", "damaged"))
            hangs = own.choice(("sleep", "wake", "checkpoint", "restore")) if own.random() < parks.hangs else ""
            freezing = {"freeze_s": parks.freeze_s, "hangs": hangs}
        return {"stays_mb": parks.stays_mb, "first_sleep_s": parks.first_s, "refuses": refuses, **freezing}

    def _service_s(self, worker: Worker, body: bytes) -> float:
        number = msgspec.json.decode(body).get("number")
        return self._works.get(number, 0.1) if isinstance(number, int) else 0.05

    # Faults.

    def _begin(self, fault: Fault) -> None:
        world = self.world
        world.faults[fault.kind] += 1
        world.note(f"fault: {fault}")
        network, later = world.network, world.loop.outside
        match fault.kind:
            case "cut from redis" | "cut from host":
                other = fault.other or "redis"
                kind = Cut.REFUSED if fault.detail == 1 else Cut.SILENT
                network.cut(fault.place, other, kind, one_way=fault.detail == 2)
                later(fault.for_s, network.heal, fault.place, other)
            case "slow network":
                network.slow(fault.place, fault.detail)
                later(fault.for_s, network.slow, fault.place, 0.0)
            case "redis restarts" | "redis restarts empty":
                world.redis.stop()
                later(fault.for_s, lambda: world.redis.restart(empty=fault.kind == "redis restarts empty"))
            case "agent crashes":
                process = world.machines[fault.place].agent
                if process is not None and process.phase is not Phase.DEAD:
                    process.on_crash = lambda: self._agent_died(fault)
                    process.crashes_in = int(fault.detail)
            case "router crashes":
                slot = world.routers[fault.place]
                if slot.process is not None and slot.process.phase is not Phase.DEAD:
                    slot.process.on_crash = lambda: self._router_died(fault)
                    slot.process.crashes_in = int(fault.detail)
            case "process stalls":
                stalled = self._process(fault.place)
                if stalled is not None:
                    stalled.stall()
                    later(fault.for_s, stalled.resume)
            case "worker dies" | "worker hangs":
                workers = world.machines[fault.place].alive()
                if workers:
                    worker = workers[int(fault.detail) % len(workers)]
                    self.invariants.broken.add(worker.instance)
                    worker.hang() if fault.kind == "worker hangs" else worker.die(-11)
            case "host reboots":
                self._reboot(world.machines[fault.place], fault)
            case "clock steps":
                self._step_clock(fault)
            case "hub fails" | "hub is slow":
                hub = world.machines[fault.place].hub
                hub.fails, hub.slower = fault.kind == "hub fails", 1.0 if fault.kind == "hub fails" else 4.0
                later(fault.for_s, hub.recover)
            case "function cooled" | "function overridden" | "host cordoned" | "host drained":
                self._operate(fault)
            case "catalogue edited":
                slot = world.routers[fault.place]
                world.catalogue = Catalogue(functions=self.scenario.edited, aliases={})
                if slot.router is not None:
                    slot.router.apply_catalogue(world.catalogue)
            case _:
                raise AssertionError(fault.kind)

    # Operators.

    def _operate(self, fault: Fault) -> None:
        """Carry out what an operator orders of a router; `_undo` takes back what lasts, when the load is over."""
        subject = fault.other
        match fault.kind:
            case "function cooled":
                if fault.detail:
                    self.invariants.may_cut.add(subject)
                self._order(fault.place, lambda o: o.cool(subject, at_once=bool(fault.detail)))
            case "function overridden":
                self._undone.add(("reset", subject))
                changes = OVERRIDES[int(fault.detail)]
                self._order(fault.place, lambda o: o.override(subject, **changes))
            case "host cordoned" | "host drained":
                self._undone.add(("uncordon", subject))
                drains = fault.kind == "host drained"
                self._order(fault.place, lambda o: o.drain(subject) if drains else o.cordon(subject, cordoned=True))

    def _undo(self) -> None:
        """Lift cordons and overrides through any router that runs. What fails is tried again."""
        for what, subject in sorted(self._undone):

            async def undo(own: Operations, what: str = what, subject: str = subject) -> None:
                if what == "reset":
                    await own.override(subject, pinned=None, min=None, max=None)
                else:
                    await own.cordon(subject, cordoned=False)
                self._undone.discard((what, subject))

            self._order(self.scenario.routers[0], undo)

    def _order(self, router: str, order: Callable[[Operations], Awaitable[object]]) -> None:
        slot = self.world.routers[router]
        if slot.router is None or slot.process is None or slot.process.phase is Phase.DEAD:
            return

        async def carry_out(operations: Operations) -> None:
            with contextlib.suppress(RecordUnavailable, AgentUnavailable, RequestError, KeyError):
                await order(operations)

        slot.process.start(carry_out(slot.router.operations), name="operator")

    def _process(self, place: str) -> Process | None:
        if place in self.world.machines:
            return self.world.machines[place].agent
        return self.world.routers[place].process

    def _agent_died(self, fault: Fault) -> None:
        self.world.note(f"agent {fault.place} crashed")
        self.world.servers[fault.place].agent = None
        self.world.loop.outside(fault.for_s, self.world.start_agent, fault.place)

    def _router_died(self, fault: Fault) -> None:
        self.world.note(f"router {fault.place} crashed")
        self.world.loop.outside(fault.for_s, self.world.start_router, fault.place)

    def _reboot(self, machine: Machine, fault: Fault) -> None:
        self.invariants.broken.update(w.instance for w in machine.alive())
        if machine.agent is not None:
            machine.agent.on_crash = lambda: None
        self.world.servers[machine.name].agent = None
        machine.reboot()
        self.world.loop.outside(fault.for_s, self.world.start_agent, machine.name)

    def _step_clock(self, fault: Fault) -> None:
        if fault.place == "redis":
            self.world.redis_wall_s += fault.detail
            self.world.redis.emptied_at = self.world.now  # what has a lifetime may have expired
            return
        process = self._process(fault.place)
        if process is not None:
            process.wall_s += fault.detail
        if fault.place in self.world.machines:
            self.world.machines[fault.place].wall_s += fault.detail

    def _heal(self) -> None:
        """End every fault; each process that is down comes up again at its time."""
        world = self.world
        world.network.heal_all()
        for machine in world.machines.values():
            machine.hub.recover()
        for process in world.loop.processes:
            process.resume()
            if process.crashes_in is not None:
                process.crashes_in = None


def name_of(outcome: Outcome) -> str:
    """Return the row of an outcome in the table."""
    match outcome.status:
        case 200 if outcome.why:
            return "stream with an error"
        case 200:
            return "served cold" if outcome.cold else "served"
        case 499:
            return "client left"
        case 0:
            return "router crashed"
        case status:
            return str(status)
