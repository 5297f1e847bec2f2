"""A router worker apart from its HTTP routes: it follows the record, reports itself, and sweeps.

It is stateless: all of its state can be restored from the record.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent_messages import Ensure
from cortex.platform.api_keys import Principal
from cortex.platform.cancel import cancelled
from cortex.platform.faults import Faults
from cortex.platform.in_flight import InFlight
from cortex.platform.keys import FleetToken, cache_salt
from cortex.platform.quota import Quota
from cortex.platform.record import Fleet, Instance, Override, shifted_fleet, used_instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.ledger import about
from cortex.platform.serving import systemd
from cortex.platform.settings import Settings
from cortex.router.access.keyring import KeyRing, local_key
from cortex.router.access.rate_limits import RateLimiter
from cortex.router.access.sessions import Sessions
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.activation.scaling import Scaling
from cortex.router.decision_log import DecisionLog
from cortex.router.errors import BadRequest, RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.metrics.request_metrics import RequestMetrics
from cortex.router.metrics.traffic import Traffic
from cortex.router.metrics.worker_counts import CountsFile
from cortex.router.peers import Peers
from cortex.router.request import request_log
from cortex.router.request.deaths import Deaths
from cortex.router.request.intake import Intake
from cortex.router.request.probe import Probe, Pulse
from cortex.router.request.remote_images import RemoteImages
from cortex.router.request.request_record import RequestRecord, RequestRecords
from cortex.router.request.upstream import Upstream
from cortex.router.shutdown import stopping
from cortex.router.start_history import History
from cortex.router.tracing import tracing

log = structlog.get_logger()

REPORT_S = 1.0
COUNT_S = 1.0
SWEEP_S = 2.0
SWEEP_LEASE_S = 6.0
PROBE_S = 2.0
"""Interval between probes of the instances of silent hosts."""
PROBES_AT_ONCE = 32


class Runtime:
    """The components of one router worker and its background tasks. `async with` runs them."""

    def __init__(self, settings: Settings) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.settings = settings
        self.started = int(time.time())
        token = self._token = FleetToken(Path(settings.token_file).expanduser())
        self.registry = Registry.of(settings, token)
        self.keys = KeyRing(self.registry, local_key(settings.local_key_file))
        self.sessions = Sessions(self.registry, self.keys, lambda: token.current)
        self.live_catalogue = LiveCatalogue(
            Path(settings.models_config), pretend=settings.pretend, admits_forbidden=settings.gateway.admit_forbidden
        )
        self.view = FleetView(self.registry, self.id)
        self.live_catalogue.on_change = self.view.wake
        self.in_flight = InFlight(self.id)
        self.history = History(self.registry)
        self.agents = Agents(token, settings.ca_file)
        self.upstream = Upstream(token, self.view.unsure)
        self.images = RemoteImages()
        self.intake = Intake(settings.gateway.max_body_mb * 1024 * 1024)
        self.decision_log = DecisionLog(self.id)
        self.tracing = tracing(settings)
        self.probe = Probe(token)
        self.activator = Activator(
            self.view, self.registry, self.agents, self.in_flight, self.live_catalogue, self.probe, self.decision_log
        )
        self.deaths = Deaths(self.view, self.probe, self.registry, self.decision_log, self.id)
        self._scaling = Scaling()
        self.request_metrics = RequestMetrics(self.view, self.in_flight)
        self.faults = Faults(self.request_metrics.count_fault)
        self.traffic = Traffic()
        self.request_records = RequestRecords(
            [
                self.request_metrics.count,
                self._count_traffic,
                request_log.note,
                self.decision_log.note_request,
                self.tracing.finish,
            ]
        )
        self.rate_limiter = RateLimiter(Quota(self.registry), self.view, self.request_records)
        self.peers = Peers(self.registry, self.view, self)
        self._counts_file = CountsFile(Path(settings.gateway.metrics_dir))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Runtime":
        with contextlib.suppress(RecordUnavailable):
            await self.keys.refresh()
            await self.view.refresh()
            await self._report_now()
        tasks: dict[str, Callable[[], Awaitable[None]]] = {
            "api keys": self.keys.follow,
            "limits": self.rate_limiter.renew,
            "record": self.view.follow,
            "catalogue": self.live_catalogue.follow,
            "report": self._report,
            "sweep": self._sweep,
            "silent hosts": self._probe_silent,
            "counts": self._count,
        }
        self._tasks = [asyncio.create_task(self.faults.run(name, task)) for name, task in tasks.items()]
        systemd.notify("READY=1")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancelled(self._tasks)
        await self.activator.close()
        await self.peers.close()
        await self.deaths.close()
        with contextlib.suppress(RecordUnavailable):
            await self.registry.touch(self.in_flight.take_used())
            await self.registry.remove_router(self.id)
        self._counts_file.write(self.request_metrics.snapshot())
        await self._write_decisions()
        await asyncio.to_thread(self.tracing.close)
        await self.agents.close()
        await self.upstream.close()
        await self.probe.close()
        await self.images.close()
        self.intake.close()
        await self.registry.close()

    def _count_traffic(self, request_record: RequestRecord) -> None:
        self.traffic.add(request_record, time.time())

    def cache_salt(self, function: Function, who: Principal) -> str:
        """Return the salt of a caller's prompts in a worker's prefix cache; empty if all callers share the cache.

        While no key exists, callers cannot be distinguished.
        """
        if function.cache == "shared" or not self.keys.has_keys:
            return ""
        return cache_salt(self._token.current, who.cache_owner)

    # Operator actions.

    def fleet(self) -> Fleet:
        """Return the fleet for display, with this router's current report and wall-clock times."""
        fleet = self.view.fleet
        own = self.in_flight.report(self.view.epochs(), clock.now())
        used = fleet.used | self.in_flight.recent()
        fleet = replace(fleet, routers={**fleet.routers, self.id: own}, used=used)
        ahead_s = round(clock.wall(0.0), 1)
        return shifted_fleet(fleet, ahead_s) if ahead_s else fleet

    async def warm(self, name: str) -> str:
        """Start an instance unless one exists, ignoring back-off; return its id. Raises RequestError."""
        return await self.activator.ensure(lambda: self.live_catalogue.resolve(name), force=True)

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        """Exclude a host from new placements, or include it again. Raises RecordUnavailable."""
        await self.registry.cordon(host, cordoned=cordoned)
        await self.view.refresh()

    async def override(self, function: Function, **changes: int | bool | None) -> Function:
        """Override settings of a function until they are reset. Raises RecordUnavailable, BadRequest."""
        current = self.view.fleet.overrides.get(function.id, Override())
        override = replace(current, **changes)
        declared = self.live_catalogue.declared(function.id) or function
        least = declared.min if override.min is None else override.min
        most = declared.max if override.max is None else override.max
        if least > most or most < 1:
            raise BadRequest(f"'{function.id}' would have min {least} and max {most}; set min <= max and max >= 1")
        await self.registry.override(function.id, override)
        await self.view.refresh()
        self.live_catalogue.override(self.view.fleet.overrides)
        return self.live_catalogue.resolve(function.id).function

    async def drain(self, host: str) -> tuple[list[str], list[str]]:
        """Cordon a host, start its functions on other hosts that have room, and drain its instances.

        Return the moved functions and the draining instances. Raises RecordUnavailable, AgentUnavailable.
        """
        await self.cordon(host, cordoned=True)
        record = self.view.fleet.hosts[host]
        moved = []
        for function_id in sorted({i.function for i in record.instances if i.state is State.READY}):
            function = self.live_catalogue.catalogue.functions.get(function_id)
            if function is not None and await self._move(function, host):
                moved.append(function_id)
        return moved, list(await self.agents.drain(record))

    async def _move(self, function: Function, source: str) -> bool:
        """Start a function on another host and wait until it is ready there. False if no host accepts it."""
        try:
            accepted = await self.activator.propose(Ensure(function))
        except RequestError:
            return False
        deadline = time.monotonic() + function.start_timeout_s
        while time.monotonic() < deadline:
            entry = self.view.instance(accepted.instance)
            if entry is not None and entry[1].state is State.READY:
                return entry[0].name != source
            if self.view.failure(accepted.instance) is not None:
                return False
            await self.view.changed(1.0)
        return False

    async def cool(self, function: str, *, at_once: bool) -> tuple[list[str], list[str]]:
        """Drain a function's instances. Return their ids, and the hosts whose agent did not answer."""
        draining: list[str] = []
        away: list[str] = []
        for host in self.view.fleet.records():
            if any(i.function == function for i in host.instances):
                try:
                    draining += await self.agents.cool(host, function, at_once=at_once)
                except AgentUnavailable:
                    away.append(host.name)
        return draining, away

    async def forget(self, target: Target) -> tuple[int, list[str]]:
        """Delete a function's measurements, for all revisions, and its failures with their back-off.

        Return the number of deleted entries, and the hosts that did not answer. Raises RecordUnavailable.
        """
        function, hosts = target.function.id, list(self.view.fleet.hosts.values())
        revisions = {i.revision for h in hosts for i in h.instances if i.function == function} | {target.revision}
        entries = about(await self.registry.ledger(), function, revisions)
        await self.registry.unlearn(entries)
        self.history.invalidate()
        away = []
        for host in hosts:
            try:
                await self.agents.forget(host, function)
            except AgentUnavailable:
                away.append(host.name)
        return len(entries), away

    # Background tasks.

    async def _report_now(self) -> None:
        report = self.in_flight.report(self.view.epochs(), clock.now())
        silent = self.deaths.aboard.silences(time.monotonic(), self.view.instances())
        await self.registry.publish_router(replace(report, silent=silent))

    async def _report(self) -> None:
        """Report once a second, and at once if an agent waits for an acknowledgement or for a draining instance's
        last request."""
        reported: tuple[dict[str, int], Sequence[str]] = ({}, ())
        reported_at = 0.0
        while True:
            await self.view.changed(0.1 if self._draining() else REPORT_S)
            self.live_catalogue.override(self.view.fleet.overrides)
            if not stopping():  # otherwise systemd watches the next router
                systemd.notify("WATCHDOG=1")
            state = (self.view.epochs(), self._draining())
            if state == reported and time.monotonic() - reported_at < REPORT_S:
                continue
            used = self.in_flight.take_used()
            self.view.note_used(used)
            try:
                await self._report_now()
                await self.registry.touch(used)
                reported, reported_at = state, time.monotonic()
            except Exception as error:
                self.in_flight.put_back(used)
                if not isinstance(error, RecordUnavailable):
                    raise
                await asyncio.sleep(REPORT_S)

    async def _count(self) -> None:
        """Write the counters to this worker's file, and the decisions to the record."""
        while True:
            self._counts_file.write(self.request_metrics.snapshot())
            await self._write_decisions()
            await asyncio.sleep(COUNT_S)

    async def _write_decisions(self) -> None:
        """Write the buffered decisions. They are lost while the record is unavailable."""
        with contextlib.suppress(RecordUnavailable):
            if decisions := self.decision_log.take():
                await self.registry.decided(decisions)

    def _draining(self) -> Sequence[str]:
        """Return the draining instances on which this router has requests in flight."""
        return [
            i.id
            for h in self.view.fleet.hosts.values()
            for i in h.instances
            if i.state is State.DRAINING and self.in_flight.on(i.id)
        ]

    async def _sweep(self) -> None:
        """With the sweep lease: send agents the catalogue, scale up, and delete stale entries."""
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(RecordUnavailable):
                if not stopping() and await self.registry.lease_sweep(self.id, SWEEP_LEASE_S):
                    for step in (self._send_catalogue, self._scale, self._delete_stale_uses):
                        with self.faults.guard("sweep"), contextlib.suppress(RecordUnavailable):
                            await step()

    async def _send_catalogue(self) -> None:
        """Send the catalogue to every agent with another one, unless it is empty by accident."""
        if not self.live_catalogue.is_deliberate:
            return
        for host in list(self.view.fleet.hosts.values()):
            if host.catalogue != self.live_catalogue.digest:
                try:
                    await self.agents.send_catalogue(host, self.live_catalogue.catalogue, self.live_catalogue.digest)
                except AgentUnavailable as error:
                    log.warning("agent_away", host=host.name, why=str(error))

    async def _probe_silent(self) -> None:
        """Probe the instances of silent hosts; they receive requests only while they answer."""
        while True:
            await asyncio.sleep(PROBE_S)
            at_once = asyncio.Semaphore(PROBES_AT_ONCE)
            await asyncio.gather(*(self._probe(i, at_once) for i in self.view.silent_instances()))

    async def _probe(self, instance: Instance, at_once: asyncio.Semaphore) -> None:
        async with at_once:
            pulse = await self.probe.pulse(instance)
        match pulse:
            case Pulse.WELL:
                self.view.trust(instance.id)
            case Pulse.GONE:
                self.view.drop(instance.id)
            case Pulse.SILENT:
                self.view.miss(instance.id)

    async def _scale(self) -> None:
        functions = self.live_catalogue.catalogue.functions
        for addition in self._scaling.wanted(functions.values(), self.view.fleet, clock.now()):
            try:
                await self.activator.add(self.live_catalogue.resolve(addition.function), minimum=addition.promised)
            except RequestError as error:
                log.warning("not_scaled", function=addition.function, why=error.message)

    async def _delete_stale_uses(self) -> None:
        present = {used_instance(i.id) for h in self.view.fleet.hosts.values() for i in h.instances}
        old = clock.now() - 3600
        await self.registry.forget_used(
            m for m, at in self.view.fleet.used.items() if m.startswith("i:") and m not in present and at < old
        )
