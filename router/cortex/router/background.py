"""A router worker's work beside requests: its report, the sweep, its counters, and the probes of silent hosts.

Each loop runs until cancelled, under `Faults.run`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence

import structlog
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.platform import clock
from cortex.platform.agent_messages import Neighbours
from cortex.platform.faults import Faults
from cortex.platform.in_flight import InFlight
from cortex.platform.record import HostRecord, Instance, used_instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import systemd
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.activation.probe import Probe, Pulse
from cortex.router.activation.scaling import Cause, Scaling
from cortex.router.decision_log import DecisionLog
from cortex.router.errors import RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.metrics.request_metrics import RequestMetrics
from cortex.router.metrics.worker_counts import CountsFile
from cortex.router.request.open_requests import OpenRequests
from cortex.router.shutdown import stopping

log = structlog.get_logger()

REPORT_S = 1.0
COUNT_S = 1.0
SWEEP_S = 2.0
SWEEP_LEASE_S = 6.0
NEIGHBOURS_S = 60.0
"""Interval at which an agent is sent neighbours that have not changed."""
NEIGHBOURS_WITHIN_S = 2.0
PROBE_S = 2.0
"""Interval between probes of the instances of silent hosts."""
PROBES_AT_ONCE = 32


class Reporter:
    """Writes this worker's report to the record: requests in flight and waiting, drain acknowledgements, last uses."""

    def __init__(
        self,
        registry: Registry,
        view: FleetView,
        in_flight: InFlight,
        open_requests: OpenRequests,
        catalogue: LiveCatalogue,
        tokens: Callable[[], dict[str, int]] = dict,
        unseated: Callable[[Collection[str]], dict[str, int]] = lambda _: {},
    ) -> None:
        """`tokens` returns those of this worker's requests per instance, `unseated` how many of them were sent to given
        instances without a seat."""
        self._registry, self._view, self._in_flight = registry, view, in_flight
        self._open_requests, self._catalogue, self._tokens = open_requests, catalogue, tokens
        self._unseated = unseated

    async def run(self) -> None:
        """Report once a second, and at once if an agent waits for an acknowledgement or for a draining instance's
        last request."""
        reported: tuple[dict[str, int], Sequence[str]] = ({}, ())
        reported_at = 0.0
        while True:
            await self._view.wait_for_change(0.1 if self._draining() else REPORT_S)
            self._catalogue.override(self._view.fleet.overrides)
            if not stopping():  # otherwise systemd watches the next router
                systemd.notify("WATCHDOG=1")
            state = (self._view.epochs(), self._draining())
            if state == reported and time.monotonic() - reported_at < REPORT_S:
                continue
            used = self._in_flight.take_used()
            self._view.note_uses(used)
            try:
                await self.report()
                await self._registry.touch(used)
                reported, reported_at = state, time.monotonic()
            except Exception as error:
                self._in_flight.put_back(used)
                if not isinstance(error, RecordUnavailable):
                    raise
                await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        """Report now. Raises RecordUnavailable."""
        report = self._in_flight.report(self._view.epochs(), clock.now())
        silent = self._open_requests.silences(time.monotonic(), self._view.instances())
        unseated = self._unseated(self._view.instances())
        await self._registry.publish_router(replace(report, silent=silent, tokens=self._tokens(), unseated=unseated))

    async def sign_off(self) -> None:
        """Write the last uses, and remove the report. Raises RecordUnavailable."""
        await self._registry.touch(self._in_flight.take_used())
        await self._registry.remove_router(self._view.router)

    def _draining(self) -> Sequence[str]:
        """Return the draining instances on which this router has requests in flight."""
        return [
            i.id
            for h in self._view.fleet.hosts.values()
            for i in h.instances
            if i.state is State.DRAINING and self._in_flight.on(i.id)
        ]


class Sweeper:
    """With the sweep lease: sends agents the catalogue, scales up, and deletes stale entries."""

    def __init__(
        self,
        registry: Registry,
        view: FleetView,
        catalogue: LiveCatalogue,
        agents: Agents,
        activator: Activator,
        faults: Faults,
    ) -> None:
        self._registry, self._view, self._catalogue = registry, view, catalogue
        self._agents, self._activator, self._faults = agents, activator, faults
        self._scaling = Scaling()
        self._neighbours_sent: dict[str, tuple[Neighbours, float]] = {}
        """By host, the neighbours that it was sent, and when."""

    async def run(self) -> None:
        """Sweep every `SWEEP_S`."""
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(RecordUnavailable):
                if not stopping() and await self._registry.lease_sweep(self._view.router, SWEEP_LEASE_S):
                    await self.sweep()

    async def sweep(self) -> None:
        """Do each step once; one that fails does not stop the others."""
        for step in (self.send_catalogue, self.send_neighbours, self._scale, self._delete_stale_uses):
            with self._faults.guard("sweep"), contextlib.suppress(RecordUnavailable):
                await step()

    async def send_catalogue(self) -> None:
        """Send the catalogue to every agent with another one, unless it is empty by accident."""
        if not self._catalogue.is_deliberate:
            return
        for host in list(self._view.fleet.hosts.values()):
            if host.catalogue != self._catalogue.digest:
                try:
                    await self._agents.send_catalogue(host, self._catalogue.hosted, self._catalogue.digest)
                except AgentUnavailable as error:
                    log.warning("agent_away", host=host.name, why=str(error))

    async def send_neighbours(self) -> None:
        """Tell every agent its neighbours, again when they change and after a while: it may have lost its file."""
        hosts, now = list(self._view.fleet.hosts.values()), time.monotonic()
        if len(hosts) < 2 and not self._neighbours_sent:
            return

        async def send(host: HostRecord) -> None:
            neighbours = self._agents.neighbours_of(host, hosts)
            sent, at = self._neighbours_sent.get(host.name, (Neighbours(), 0.0))
            if sent == neighbours and (not neighbours.hosts or now - at < NEIGHBOURS_S):
                return
            with contextlib.suppress(AgentUnavailable, TimeoutError):  # one that is away is logged with the catalogue
                async with asyncio.timeout(NEIGHBOURS_WITHIN_S):
                    await self._agents.send_neighbours(host, neighbours)
                self._neighbours_sent[host.name] = (neighbours, now)

        present = {h.name for h in hosts}
        self._neighbours_sent = {h: sent for h, sent in self._neighbours_sent.items() if h in present}
        await asyncio.gather(*(send(h) for h in hosts))

    async def _scale(self) -> None:
        functions = self._catalogue.hosted.functions
        for addition in self._scaling.wanted(functions.values(), self._view.fleet, clock.now()):
            try:
                await self._activator.add(
                    self._catalogue.resolve(addition.function),
                    evict=addition.cause is Cause.MINIMUM,
                    for_request=addition.cause is Cause.LOAD,
                )
            except RequestError as error:
                log.warning("not_scaled", function=addition.function, why=error.message)

    async def _delete_stale_uses(self) -> None:
        present = {used_instance(i.id) for h in self._view.fleet.hosts.values() for i in h.instances}
        old = clock.now() - 3600
        await self._registry.forget_used(
            m for m, at in self._view.fleet.used.items() if m.startswith("i:") and m not in present and at < old
        )


class Counting:
    """Writes the counters to this worker's file, and the decisions to the record."""

    def __init__(
        self, registry: Registry, counts_file: CountsFile, request_metrics: RequestMetrics, decision_log: DecisionLog
    ) -> None:
        self._registry, self._counts_file = registry, counts_file
        self._request_metrics, self._decision_log = request_metrics, decision_log

    async def run(self) -> None:
        """Write every `COUNT_S`."""
        while True:
            await self.write()
            await asyncio.sleep(COUNT_S)

    async def write(self) -> None:
        """Write now. Decisions are lost while the record is unavailable."""
        self._counts_file.write(self._request_metrics.snapshot())
        with contextlib.suppress(RecordUnavailable):
            if decisions := self._decision_log.take():
                await self._registry.log_decisions(decisions)


async def probe_silent_hosts(view: FleetView, probe: Probe) -> None:
    """Probe the instances of silent hosts every `PROBE_S`; they receive requests only while they answer."""
    at_once = asyncio.Semaphore(PROBES_AT_ONCE)

    async def one(instance: Instance) -> None:
        async with at_once:
            pulse = await probe.pulse(instance)
        match pulse:
            case Pulse.WELL:
                view.trust(instance.id)
            case Pulse.GONE:
                view.drop(instance.id)
            case Pulse.SILENT:
                view.miss(instance.id)

    while True:
        await asyncio.sleep(PROBE_S)
        await asyncio.gather(*(one(i) for i in view.silent_instances()))
