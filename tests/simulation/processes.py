"""Agents and routers as simulated processes: the product's own classes, wired to the simulated world.

`substitutions` replaces what these classes call of the operating system and of other machines; everything that decides
stays: the agent's loop with scheduler, supervisor, monitor, publisher and adoption; the router's view, activator,
exchange, reports, sweep and probes; the registry with its scripts and codec.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import structlog

from cortex.functions.catalogue import Catalogue
from cortex.platform import faults, record_connection, worker_http
from cortex.platform.agent import loop, monitor
from cortex.platform.cancel import cancel_tasks
from cortex.platform.host import engines
from cortex.platform.host.devices import Reading
from cortex.platform.in_flight import InFlight
from cortex.platform.keys import FleetToken, HostToken, fleet_mark
from cortex.platform.process import process_id
from cortex.platform.record import Device, Instance, Tier
from cortex.platform.redis_clients import Generation
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling import upgrades
from cortex.platform.settings import Agent as AgentSettings
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.workers import activity, checkpoint, orphans, ports, remains, supervisor, tiers
from cortex.router import start_history
from cortex.router.activation import agents as agents_module
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents
from cortex.router.activation.probe import Probe
from cortex.router.activation.proposer import Proposer
from cortex.router.background import COUNT_S, Reporter, Sweeper, probe_silent_hosts
from cortex.router.decision_log import DecisionLog
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.operations import Operations
from cortex.router.request import upstream
from cortex.router.request.adapters import AdapterLoads
from cortex.router.request.admission import Admission
from cortex.router.request.context_restores import ContextRestores
from cortex.router.request.deaths import Deaths
from cortex.router.request.exchange import Exchanges
from cortex.router.request.substitutes import Substitutes
from cortex.router.request_record import RequestRecords
from cortex.router.tracing import PassThroughTracing
from tests.simulation import driver
from tests.simulation.agent_http import Transport
from tests.simulation.machine import (
    Fetches,
    LogFollower,
    Looks,
    Machine,
    NoLauncher,
    StateWriter,
    System,
    launch,
)
from tests.simulation.redis_client import Client
from tests.simulation.virtual_time import PROCESS, replaced
from tests.simulation.worker import TOKEN, key_of
from tests.simulation.worker_session import Connections, Session

ENGINES = engines.Engines(versions={"fake": "1"}, tools={"fake": ("fake",)})


class Token(FleetToken):
    """The fleet's token, without a file. Keys are computed once, since thousands of probes need them."""

    def __init__(self) -> None:
        pass

    @property
    def current(self) -> str:
        """Return the token."""
        return TOKEN

    def worker_keys(self, hosts: Iterable[str], instance: str) -> list[str]:
        """Return the key of an instance, whatever its host."""
        return [key_of(instance)]

    def fleet_marks(self) -> list[str]:
        """Return the mark of the fleet."""
        return [_MARK]

    def for_agent(self, host: str, address: str) -> str:
        """Return what opens the agent of a host."""
        return f"{TOKEN} {address}"


class AgentToken(HostToken):
    """The token of a host, without a file."""

    def __init__(self) -> None:
        pass

    def opens(self, bearer: str, address: str) -> bool:
        """Whether a token opens the agent at an address."""
        return bearer == f"{TOKEN} {address}"

    def worker_key(self, instance: str) -> str:
        """Return the key of an instance."""
        return key_of(instance)

    def worker_keys(self, instance: str) -> list[str]:
        """Return the key of an instance."""
        return [key_of(instance)]

    def fleet_marks(self) -> list[str]:
        """Return the mark of the fleet."""
        return [_MARK]


_MARK = fleet_mark(TOKEN)


class Devices:
    """The readings of a machine's devices."""

    def __init__(self, machine: Machine) -> None:
        self._devices = devices_of(machine)

    async def read(self) -> Reading:
        """Return the devices."""
        return Reading(devices=self._devices)

    async def close(self) -> None:
        """Close."""


class ControlKeys:
    """The keys of what workers do for their agents, without a file: workers check one key for all."""

    def __init__(self, _: Path) -> None:
        pass

    def key(self, instance: str) -> str:
        """Return the key of an instance."""
        return key_of(instance)


def tiers_of(system: System, park_ram_mb: int, freeze: str) -> dict[Tier, str]:
    """Return the tiers of the machine of the calling agent; `freeze` is the freezer's own reason."""
    sleep = "" if system.here().sleeps else "no engine here can sleep"
    return {Tier.SLEEP: sleep, Tier.FREEZE: freeze} if park_ram_mb else {}


def devices_of(machine: Machine) -> tuple[Device, ...]:
    """Return a machine's devices as its agent sees them."""
    return tuple(Device(id=id, name=id, kind="gpu", total_mb=mb) for id, mb in machine.devices.items())


class SimulatedAgent(loop.Agent):
    """The agent of one machine. `on_decision` is called after every decision."""

    def __init__(self, settings: Settings, own: Registry, on_decision: Callable[["SimulatedAgent"], None]) -> None:
        self._on_decision = on_decision
        super().__init__(settings, AgentToken(), own)

    def _wake(self) -> None:
        super()._wake()
        self._on_decision(self)


class SimulatedRouter:
    """One router worker without its HTTP server, keys, limits and metrics."""

    def __init__(
        self, id: str, place: str, catalogue: Path, transport: Transport, session: Session, own: Registry
    ) -> None:
        self.id, self.place = id, place
        token = Token()
        self.faults, self._registry = faults.Faults(), own
        self.live_catalogue = LiveCatalogue(catalogue)
        self.view = FleetView(own, self.id)
        self.live_catalogue.on_change = self.view.wake
        in_flight = InFlight(self.id)
        agents = Agents(token)

        def keys_of(instance: Instance) -> list[str]:
            return token.worker_keys(self.view.key_hosts(instance), instance.id)

        agents._http = httpx.AsyncClient(
            verify=False,
            transport=transport,
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(10.0, connect=5.0),
        )
        self._decision_log = DecisionLog(self.id)
        self._probe = Probe(keys_of)
        self._probe._http = session  # type: ignore[assignment]
        proposer = Proposer(self.view, agents, in_flight, self._decision_log)
        self._activator = Activator(self.view, own, proposer, in_flight, self.live_catalogue, self._probe)
        self._deaths = Deaths(self.view, self._probe, own, self._decision_log, self.id)
        self._reporter = Reporter(own, self.view, in_flight, self._deaths.open_requests, self.live_catalogue)
        self.operations = Operations(
            own, self.view, self.live_catalogue, self._activator, agents, start_history.History(own)
        )
        self._sweeper = Sweeper(own, self.view, self.live_catalogue, agents, self._activator, self.faults)
        self.exchanges = Exchanges(
            self.view,
            self.live_catalogue,
            Admission(self.view, self._activator, in_flight),
            upstream.Upstream(keys_of, self.view.unsure),
            self._deaths,
            RequestRecords([self._deaths.open_requests.finished, self._decision_log.note_requests]),
            PassThroughTracing(),
            Substitutes(start_history.History(own)),
            AdapterLoads(self.view, agents),
            ContextRestores(self.view, agents, token),
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "SimulatedRouter":
        with contextlib.suppress(RecordUnavailable):
            await self.view.refresh()
            await self._reporter.report()
        work: dict[str, Callable[[], Awaitable[None]]] = {
            "record": self.view.follow,
            "report": self._reporter.run,
            "sweep": self._sweeper.run,
            "silent hosts": partial(probe_silent_hosts, self.view, self._probe),
            "decisions": self._write_decisions,
        }
        self._tasks = [asyncio.create_task(self.faults.run(name, task)) for name, task in work.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel_tasks(self._tasks)
        await self._activator.close()
        await self.exchanges.adapters.close()
        await self._deaths.close()
        with contextlib.suppress(RecordUnavailable):
            await self._reporter.sign_off()

    async def _write_decisions(self) -> None:
        while True:
            with contextlib.suppress(RecordUnavailable):
                if decisions := self._decision_log.take():
                    await self._registry.log_decisions(decisions)
            await asyncio.sleep(COUNT_S)

    def apply_catalogue(self, catalogue: Catalogue) -> None:
        """Serve another catalogue from now on, as after an edit of its file."""
        self.live_catalogue._apply(self.live_catalogue._derive(catalogue))


def agent_settings(machine: Machine, stop_grace_s: float) -> Settings:
    """Return the settings of a machine's agent."""
    own = AgentSettings(
        name=machine.name,
        listen="0.0.0.0:13131",
        address=f"http://{machine.name}:13131",
        worker_host=machine.name,
        worker_ports=f"{machine.ports[0]}-{machine.ports[-1]}",
        state_dir=f"/simulated/{machine.name}",
        log_dir="/simulated/log",
        cache_dir="/simulated/cache",
        stop_grace_s=stop_grace_s,
        health_s=5.0,
        start_silence_s=8.0,
        start_ceiling_s=40.0,
        park_ram_mb=machine.park_ram_mb,
    )
    return Settings(agent=own, token_file="/simulated/token")


@contextlib.contextmanager
def substitutions(
    system: System, client_at: Callable[[str], Client], session_at: Callable[[str], Session]
) -> Iterator[None]:
    """Put the simulated world under the product's classes."""

    def place() -> str:
        return PROCESS.get().name.partition(" ")[2]

    def client(url: str, timeout_s: float, generation: Generation) -> Any:
        return client_at(place())

    class HostDevices:
        Devices = staticmethod(lambda _: Devices(system.here()))
        discover = staticmethod(lambda _: devices_of(system.here()))

    class StateFile:
        read_all = staticmethod(lambda _: system.here().disk)
        Writer = staticmethod(lambda _: StateWriter(system.here()))

    class InstalledEngines:
        discover = staticmethod(lambda _: ENGINES)

    parts: list[tuple[Any, str, Any]] = [
        (record_connection, "async_client", client),
        (agents_module, "trust", lambda _: False),
        (worker_http, "session", lambda **_: session_at(place())),
        (upstream, "WorkerConnections", lambda **_: Connections(session_at(place()))),
        (process_id, "boot_id", system.boot_id),
        (process_id, "is_alive", system.is_alive),
        (process_id, "started_at", system.started_at),
        (process_id, "is_uninterruptible", system.is_uninterruptible),
        (loop, "boot_id", system.boot_id),
        (loop, "devices", HostDevices),
        (loop, "engines", InstalledEngines),
        (loop, "state_file", StateFile),
        (loop, "home", lambda _folder, boot: boot),
        (loop, "listener", system),
        (monitor, "process", system),
        (monitor, "log_files", system),
        (supervisor, "process", system),
        (supervisor, "opens", system.opens),
        (supervisor, "termination", system),
        (supervisor, "cgroup", system),
        (remains, "process", system),
        (remains, "cgroup", system),
        (orphans, "process", system),
        (orphans, "cgroup", system),
        (remains, "hardening", system),
        (supervisor, "hardening", system),
        (supervisor, "log_files", system),
        (supervisor, "launch", launch),
        (supervisor, "LogFollower", partial(LogFollower, system)),
        (supervisor, "LauncherPool", NoLauncher),
        (supervisor, "Fetches", partial(Fetches, system)),
        (supervisor, "find_user", lambda _: None),
        (supervisor, "ControlKeys", ControlKeys),
        (tiers, "process", system),
        (tiers, "MOVE_S", 10.0),  # like the bounds of `agent_settings`: a run lasts a minute
        (monitor, "host_tiers", lambda _settings, ram_mb, _engines, _devices, freeze: tiers_of(system, ram_mb, freeze)),
        (supervisor, "Freezer", partial(checkpoint.Freezer, limits=driver.LIMITS, device=Path("/"))),
        (checkpoint, "_DriverProcess", driver.on(system)),
        (checkpoint, "process", system),
        (upgrades, "QUIET_S", 2.0),
        (upgrades, "STEADY_S", 4.0),
        (upgrades, "LONG_IDLE_S", 6.0),
        (upgrades, "UNMEASURED_S", 5.0),
        (disk, "looks", Looks),
        (disk, "weights", system.weights),
        (shutil, "rmtree", lambda *_args, **_kwargs: None),
        (activity, "connections", lambda port: len(w.open) if (w := system.here().at(port)) else 0),
        (ports, "bindable", system.bindable),
    ]
    quiet = structlog.get_config()
    structlog.configure(wrapper_class=_Silent)
    try:
        with replaced(parts):
            yield
    finally:
        structlog.configure(**quiet)


class _Silent(structlog.BoundLoggerBase):
    """A logger that writes nothing."""

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    debug = info = warning = error = exception = _nothing
