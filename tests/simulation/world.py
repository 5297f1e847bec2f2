"""One simulated fleet: machines, Redis, routers, agents and clients, and the faults that befall them."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.platform.agent.host_name import NameTaken, check_name
from cortex.platform.api_keys import ANONYMOUS, RIGHTS, Principal, Scope
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.dialects.chat import stream as chat
from cortex.router.dialects.core.chunks import Plain, Tokens
from cortex.router.request.call import Call
from cortex.router.request.exchange import Exchange
from tests.simulation.agent_http import AgentServer, Transport
from tests.simulation.machine import Machine, System
from tests.simulation.network import Network
from tests.simulation.processes import AgentToken, SimulatedAgent, SimulatedRouter, Token, agent_settings, substitutions
from tests.simulation.redis_client import Client, Server
from tests.simulation.virtual_time import WALL, Phase, Process, VirtualLoop, virtual_clocks
from tests.simulation.worker_session import STREAM_WORDS, Fabric, Session
from tests.support.incoming import ReadingClient

RESTART_S = 1.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What a client got."""

    request: int
    function: str
    router: str
    began: float
    ended: float
    status: int
    """0: the router crashed; 499: the client left."""
    model: str = ""
    cold: bool = False
    queued_s: float = 0.0
    why: str = ""


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str, at: float) -> None:
        super().__init__(f"{invariant} at {at:.3f} s: {detail}")
        self.invariant, self.detail, self.at = invariant, detail, at


class RouterSlot:
    """A place for a router, which is started again after it crashed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: Process | None = None
        self.router: SimulatedRouter | None = None
        self.number = 0


class World:
    """A fleet on one virtual loop."""

    def __init__(self, loop: VirtualLoop, random: Random, catalogue: Catalogue, folder: Path) -> None:
        self.loop, self.random, self.catalogue = loop, random, catalogue
        self.network = Network(random)
        self.redis_wall_s = random.uniform(-50, 50)
        self.redis = Server(loop, self.network, random, lambda: WALL + self.redis_wall_s + loop.time())
        self.machines: dict[str, Machine] = {}
        self.servers: dict[str, AgentServer] = {}
        self.agents: dict[str, SimulatedAgent] = {}
        self.routers: dict[str, RouterSlot] = {}
        self.fabric = Fabric(loop, self.network, self.machines)
        self.outcomes: list[Outcome] = []
        self.open: dict[int, tuple[str, float]] = {}
        """Requests without an outcome: function and when they began."""
        self.faults: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.trace: list[str] = []
        self.digest = hashlib.sha256()
        """Of everything that scripts wrote to Redis and of all outcomes: equal in two runs of one seed."""
        self.violation: Violation | None = None
        self.closing = False
        """The run is over; its tasks are being cancelled."""
        self.on_decision: Callable[[SimulatedAgent], None] = lambda _: None
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.stop_grace_s = 2.0
        self.system = System(self.machines, folder)
        self._token = Token()
        self._models = folder / "models.toml"
        self._references: list[Any] = []

    # Time and faults.

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.loop.time()

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.loop.time():9.4f} {text}"
        self.trace.append(line)
        self.digest.update(line.encode())

    def fail(self, invariant: str, detail: str) -> None:
        """Record the first violation and end the run."""
        if self.violation is None and not self.closing:
            self.violation = Violation(invariant, detail, self.now)
            self.note(f"VIOLATION {invariant}: {detail}")
            self.loop.stop()

    # Machines and agents.

    def add_machine(self, name: str, devices: dict[str, int], ports: int) -> Machine:
        """Add a machine with an agent."""
        machine = self.machines[name] = Machine(self.loop, name, devices, ports, self.random)
        self.servers[name] = AgentServer(machine, AgentToken())
        return machine

    def start_agent(self, name: str) -> None:
        """Start the agent of a machine, unless it runs."""
        machine = self.machines[name]
        if machine.agent is not None and machine.agent.phase is not Phase.DEAD:
            return
        process = machine.agent = self.loop.process(
            f"agent {name}", monotonic_s=machine.monotonic_s, wall_s=machine.wall_s
        )
        self._references.append(process)
        process.start(self._run_agent(machine, process))

    async def _run_agent(self, machine: Machine, process: Process) -> None:
        settings = agent_settings(machine, self.stop_grace_s)
        registry = Registry(settings.redis_url, token=self._token, keeps_indexes=False)
        with contextlib.suppress(RecordUnavailable):
            while await self._name_is_taken(registry, machine):  # noqa: ASYNC110 (a record has to be read)
                await asyncio.sleep(RESTART_S)
        agent = SimulatedAgent(settings, registry, self.on_decision)
        self.agents[machine.name] = agent
        self.note(f"agent {machine.name} starts, epoch {agent.scheduler.record().epoch}")
        async with agent:
            self.servers[machine.name].agent = agent
            await self.loop.create_future()

    async def _name_is_taken(self, registry: Registry, machine: Machine) -> bool:
        """Whether the record of an earlier boot is alive: then the agent's service is started again later."""
        try:
            await check_name(registry, machine.name, machine.boot, look_s=0.25)
        except NameTaken:
            return True
        return False

    # Routers.

    def start_router(self, name: str) -> None:
        """Start a router, unless it runs."""
        slot = self.routers.setdefault(name, RouterSlot(name))
        if slot.process is not None and slot.process.phase is not Phase.DEAD:
            return
        slot.number += 1
        process = slot.process = self.loop.process(
            f"router {name}", monotonic_s=self.random.uniform(10, 1000), wall_s=self.random.uniform(-100, 100)
        )
        slot.router = None
        self._references.append(process)
        process.start(self._run_router(slot))

    async def _run_router(self, slot: RouterSlot) -> None:
        transport = Transport(self.loop, self.network, slot.name, self.servers)
        registry = Registry("redis://simulated", token=self._token)
        router = SimulatedRouter(
            f"{slot.name}-{slot.number}", slot.name, self._models, transport, Session(self.fabric, slot.name), registry
        )
        router.apply_catalogue(self.catalogue)
        async with router:
            slot.router = router
            await self.loop.create_future()

    # Clients.

    def request(
        self, number: int, function: str, router: str, patience_s: float | None = None, *, streams: bool = False
    ) -> None:
        """Send a request through a router; the client leaves after `patience_s`."""
        slot = self.routers.get(router)
        if slot is None or slot.router is None or slot.process is None or slot.process.phase is Phase.DEAD:
            alive = [s for s in self.routers.values() if s.router and s.process and s.process.phase is Phase.RUNNING]
            if not alive:
                self._settle(number, function, router, self.now, 0, why="no router")
                return
            slot = alive[0]
        assert slot.router is not None and slot.process is not None
        began = self.now
        self.open[number] = (function, began)
        client = _Client(self, number, function, slot.router, began, streams=streams)
        slot.process.ended.add_done_callback(lambda _: client.router_gone())
        slot.process.start(client.run())
        if patience_s is not None:
            self.loop.outside(patience_s, client.leave)

    def _settle(self, number: int, function: str, router: str, began: float, status: int, **more: Any) -> None:
        self.open.pop(number, None)
        outcome = Outcome(
            request=number, function=function, router=router, began=began, ended=self.now, status=status, **more
        )
        self.outcomes.append(outcome)
        self.note(f"request {number} for {function} by {router}: {status} {outcome.model} {outcome.why}"[:300])
        self.on_outcome(outcome)

    # The run.

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Put this world under the product's classes."""
        self._models.write_text("models = []\n")

        def client_at(place: str) -> Client:
            return Client(self.redis, place)

        def session_at(place: str) -> Session:
            return Session(self.fabric, place)

        with virtual_clocks(self.loop, self.random), substitutions(self.system, client_at, session_at):
            yield


class _Client:
    """One request of one client."""

    def __init__(
        self, world: World, number: int, function: str, router: SimulatedRouter, began: float, *, streams: bool
    ) -> None:
        self._world, self._number, self._function, self._router, self._began = world, number, function, router, began
        self._streams = streams
        self._client = ReadingClient()
        self._over = False

    async def run(self) -> None:
        """Serve it in the router's process."""
        call = self._call()
        try:
            target = self._router.live_catalogue.resolve_for(self._function, ANYBODY)
            exchange = Exchange(self._router.exchanges, target, call, f"r{self._number}", ANYBODY, parse=_same(call))
            await exchange(self._client)
        except Exception as error:
            if type(error).__name__ == "FunctionNotFound":
                self._finish(404, "not in the catalogue")
                return
            self._world.fail("no request raises", f"request {self._number}: {error!r}")
            raise
        status = self._client.status
        why = self._client.body.decode(errors="replace") if status != 200 else ""
        self._finish(status or 499, why)

    def _call(self) -> Call:
        body: dict[str, object] = {"model": self._function, "number": self._number}
        if not self._streams:
            encoded = msgspec.json.encode(body)
            return Call(dialect="embeddings", path="/v1/embeddings", body=encoded, reply=_Echo())
        reply = chat.Reply(id=f"r{self._number}", model=self._function)
        encoded = msgspec.json.encode(body | {"stream": True, "messages": []})
        return Call(dialect="chat", path="/v1/chat/completions", body=encoded, reply=reply, streams=reply)

    def leave(self) -> None:
        """Disconnect."""
        if not self._over and not self._client.is_lost:
            self._client.leave()

    def router_gone(self) -> None:
        """The connection breaks: the router crashed."""
        self._finish(0, "the router crashed")

    def _finish(self, status: int, why: str) -> None:
        if self._over:
            return
        self._over = True
        model = ""
        if status == 200 and self._streams:
            model, why = self._read_stream()
            status = status if model or why else 499  # the client left before the first piece
        elif status == 200:
            model = msgspec.json.decode(self._client.body)["model"]
        self._world._settle(
            self._number,
            self._function,
            self._router.place,
            self._began,
            status,
            model=model,
            cold=self._client.headers.get(b"x-cortex-start") == b"cold",
            queued_s=float(self._client.headers.get(b"x-cortex-queued-ms", b"0")) / 1000,
            why=why,
        )

    def _read_stream(self) -> tuple[str, str]:
        """Return the function that a stream names, and its error. Empty names: it has no text."""
        frames = [f.removeprefix(b"data: ") for f in self._client.body.split(b"\n\n") if f.startswith(b"data: ")]
        complete = frames[-1:] == [b"[DONE]"]
        events = [msgspec.json.decode(f) for f in frames if f != b"[DONE]"]
        error = next((str(e["error"]) for e in events if "error" in e), "")
        words = [c["delta"].get("content", "").strip() for e in events for c in e.get("choices", ())]
        names = [w for w in words if w]
        if not error and not self._client.is_lost and not (complete and len(names) == STREAM_WORDS):
            self._world.fail(
                "a stream ends whole or with an error", f"request {self._number}: {self._client.body!r}"[:500]
            )
        return " ".join(sorted(set(names))), error


class _Echo:
    """Passes a worker's answer on."""

    def plain(self, body: bytes) -> Plain:
        """Return the answer."""
        return Plain(body, Tokens())


def _same(call: Call) -> Callable[[object], Any]:
    async def understand(_: object) -> Call:
        return call

    return understand


ANYBODY = Principal(id=ANONYMOUS, name=ANONYMOUS, scope=ANONYMOUS, rights=RIGHTS[Scope.ADMIN])
"""A caller without a key who sees the reasons of refusals."""
