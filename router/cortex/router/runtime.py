"""What a router worker does beside answering requests: follow the record, report itself, sweep.

It is stateless: everything here can be lost at any moment and found again in the record.
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
from cortex.router.metrics.worker_counts import Tally
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
"""Between two looks at the instances of silent hosts."""
PROBES_AT_ONCE = 32


class Runtime:
    """All of one router worker but its HTTP surface. `async with` runs it."""

    def __init__(self, settings: Settings) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.settings = settings
        self.started = int(time.time())
        token = self._token = FleetToken(Path(settings.token_file).expanduser())
        self.registry = Registry.of(settings, token)
        self.keys = KeyRing(self.registry, local_key(settings.local_key_file))
        self.sessions = Sessions(self.registry, self.keys, lambda: token.current)
        self.directory = LiveCatalogue(
            Path(settings.models_config), pretend=settings.pretend, admits_forbidden=settings.gateway.admit_forbidden
        )
        self.view = FleetView(self.registry, self.id)
        self.directory.on_change = self.view.wake
        self.flights = InFlight(self.id)
        self.history = History(self.registry)
        self.agents = Agents(token, settings.ca_file)
        self.upstream = Upstream(token, self.view.unsure)
        self.images = RemoteImages()
        self.intake = Intake(settings.gateway.max_body_mb * 1024 * 1024)
        self.receipts = DecisionLog(self.id)
        self.tracing = tracing(settings)
        self.probe = Probe(token)
        self.activator = Activator(
            self.view, self.registry, self.agents, self.flights, self.directory, self.probe, self.receipts
        )
        self.deaths = Deaths(self.view, self.probe, self.registry, self.receipts, self.id)
        self._scaling = Scaling()
        self.counting = RequestMetrics(self.view, self.flights)
        self.faults = Faults(self.counting.fault)
        self.traffic = Traffic()
        self.journeys = RequestRecords(
            [self.counting.note, self._note_traffic, request_log.note, self.receipts.noted, self.tracing.over]
        )
        self.metering = RateLimiter(Quota(self.registry), self.view, self.journeys)
        self.inquiry = Peers(self.registry, self.view, self)
        self._tally = Tally(Path(settings.gateway.metrics_dir))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Runtime":
        with contextlib.suppress(RecordUnavailable):
            await self.keys.refresh()
            await self.view.refresh()
            await self._report_now()
        work: dict[str, Callable[[], Awaitable[None]]] = {
            "api keys": self.keys.follow,
            "limits": self.metering.renew,
            "record": self.view.follow,
            "catalogue": self.directory.follow,
            "report": self._report,
            "sweep": self._sweep,
            "silent hosts": self._probe_silent,
            "counts": self._count,
        }
        self._tasks = [asyncio.create_task(self.faults.run(name, w)) for name, w in work.items()]
        systemd.notify("READY=1")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancelled(self._tasks)
        await self.activator.close()
        await self.inquiry.close()
        await self.deaths.close()
        with contextlib.suppress(RecordUnavailable):
            await self.registry.touch(self.flights.take_used())
            await self.registry.remove_router(self.id)
        self._tally.write(self.counting.snapshot())
        await self._write_receipts()
        await asyncio.to_thread(self.tracing.close)
        await self.agents.close()
        await self.upstream.close()
        await self.probe.close()
        await self.images.close()
        self.intake.close()
        await self.registry.close()

    def _note_traffic(self, journey: RequestRecord) -> None:
        self.traffic.note(journey, time.time())

    def cache_salt(self, function: Function, who: Principal) -> str:
        """Return the salt of the prompts that a caller may find in a worker's cache; empty: they are all callers'.

        As long as no key was made, no caller can be told from another.
        """
        if function.cache == "shared" or not self.keys.any_made:
            return ""
        return cache_salt(self._token.current, who.cache_owner)

    # What operators ask for.

    def fleet(self) -> Fleet:
        """Return the fleet for people: with this router's own report as of now, and times by the wall clock."""
        fleet = self.view.fleet
        own = self.flights.report(self.view.epochs(), clock.now())
        used = fleet.used | self.flights.recent()
        fleet = replace(fleet, routers={**fleet.routers, self.id: own}, used=used)
        ahead_s = round(clock.wall(0.0), 1)
        return shifted_fleet(fleet, ahead_s) if ahead_s else fleet

    async def warm(self, name: str) -> str:
        """Have an instance started whatever failed before; return its id, or that of one there is.

        Raises Refusal.
        """
        return await self.activator.ensure(lambda: self.directory.find(name), force=True)

    async def cordon(self, host: str, *, cordoned: bool) -> None:
        """Have a host take no new work, or take it again. Raises RecordUnavailable."""
        await self.registry.cordon(host, cordoned=cordoned)
        await self.view.refresh()

    async def override(self, function: Function, **changes: int | bool | None) -> Function:
        """Override settings of a function until they are reset. Raises RecordUnavailable, BadRequest."""
        known = self.view.fleet.overrides.get(function.id, Override())
        wanted = replace(known, **changes)
        declared = self.directory.declared(function.id) or function
        least = declared.min if wanted.min is None else wanted.min
        most = declared.max if wanted.max is None else wanted.max
        if least > most or most < 1:
            raise BadRequest(f"'{function.id}' would have at least {least} and at most {most} instances")
        await self.registry.override(function.id, wanted)
        await self.view.refresh()
        self.directory.override(self.view.fleet.overrides)
        return self.directory.find(function.id).function

    async def drain(self, host: str) -> tuple[list[str], list[str]]:
        """Cordon a host, start elsewhere what it serves where there is room, and let its instances go.

        Return the functions that were moved, and the instances that are going. Raises RecordAway, AgentAway.
        """
        await self.cordon(host, cordoned=True)
        record = self.view.fleet.hosts[host]
        moved = []
        for function_id in sorted({i.function for i in record.instances if i.state is State.READY}):
            function = self.directory.catalogue.functions.get(function_id)
            if function is not None and await self._moved(function, host):
                moved.append(function_id)
        return moved, list(await self.agents.drain(record))

    async def _moved(self, function: Function, away_from: str) -> bool:
        """Start a function on another host and wait until it is ready there. False when nobody takes it."""
        try:
            going = await self.activator.propose(Ensure(function))
        except RequestError:
            return False
        deadline = time.monotonic() + function.start_timeout_s
        while time.monotonic() < deadline:
            placed = self.view.instance(going.instance)
            if placed is not None and placed[1].state is State.READY:
                return placed[0].name != away_from
            if self.view.failure(going.instance) is not None:
                return False
            await self.view.changed(1.0)
        return False

    async def cool(self, function: str, *, at_once: bool) -> tuple[list[str], list[str]]:
        """Let a function's instances go. Return their ids, and the hosts that could not be told."""
        going: list[str] = []
        away: list[str] = []
        for host in self.view.fleet.records():
            if any(i.function == function for i in host.instances):
                try:
                    going += await self.agents.cool(host, function, at_once=at_once)
                except AgentUnavailable:
                    away.append(host.name)
        return going, away

    async def forget(self, target: Target) -> tuple[int, list[str]]:
        """Drop what is learned of a function, of all its revisions, and its failures with their back-off.

        Return how many entries there were, and the hosts that did not answer. Raises RecordAway.
        """
        function, hosts = target.function.id, list(self.view.fleet.hosts.values())
        revisions = {i.revision for h in hosts for i in h.instances if i.function == function} | {target.revision}
        gone = about(await self.registry.ledger(), function, revisions)
        await self.registry.unlearn(gone)
        self.history.invalidate()
        away = []
        for host in hosts:
            try:
                await self.agents.forget(host, function)
            except AgentUnavailable:
                away.append(host.name)
        return len(gone), away

    # In the background.

    async def _report_now(self) -> None:
        report = self.flights.report(self.view.epochs(), clock.now())
        silent = self.deaths.aboard.silences(time.monotonic(), self.view.instances())
        await self.registry.publish_router(replace(report, silent=silent))

    async def _report(self) -> None:
        """Report once a second, and at once when an agent waits for it: for an acknowledgement, for the last
        request to leave a draining instance."""
        told: tuple[dict[str, int], Sequence[str]] = ({}, ())
        reported = 0.0
        while True:
            await self.view.changed(0.1 if self._draining() else REPORT_S)
            self.directory.override(self.view.fleet.overrides)
            if not stopping():  # the next router is who is watched
                systemd.notify("WATCHDOG=1")
            news = (self.view.epochs(), self._draining())
            if news == told and time.monotonic() - reported < REPORT_S:
                continue
            used = self.flights.take_used()
            self.view.note_used(used)
            try:
                await self._report_now()
                await self.registry.touch(used)
                told, reported = news, time.monotonic()
            except Exception as error:
                self.flights.put_back(used)
                if not isinstance(error, RecordUnavailable):
                    raise
                await asyncio.sleep(REPORT_S)

    async def _count(self) -> None:
        """Leave what was counted for whoever serves the metrics."""
        while True:
            self._tally.write(self.counting.snapshot())
            await self._write_receipts()
            await asyncio.sleep(COUNT_S)

    async def _write_receipts(self) -> None:
        """While the record is away they are lost: they are for asking why, not for counting."""
        with contextlib.suppress(RecordUnavailable):
            if receipts := self.receipts.taken():
                await self.registry.decided(receipts)

    def _draining(self) -> Sequence[str]:
        """Return the draining instances on which this router has requests in flight."""
        return [
            i.id
            for h in self.view.fleet.hosts.values()
            for i in h.instances
            if i.state is State.DRAINING and self.flights.on(i.id)
        ]

    async def _sweep(self) -> None:
        """With the sweep lease: tell agents the catalogue, keep minimums warm, scale out, drop what is no more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(RecordUnavailable):
                if not stopping() and await self.registry.lease_sweep(self.id, SWEEP_LEASE_S):
                    for step in (self._tell_catalogue, self._scale, self._forget_gone):
                        with self.faults.guard("sweep"), contextlib.suppress(RecordUnavailable):
                            await step()

    async def _tell_catalogue(self) -> None:
        """Tell every agent that goes by another catalogue; never an empty one that may be an accident."""
        if not self.directory.is_deliberate:
            return
        for host in list(self.view.fleet.hosts.values()):
            if host.catalogue != self.directory.digest:
                try:
                    await self.agents.send_catalogue(host, self.directory.catalogue, self.directory.digest)
                except AgentUnavailable as error:
                    log.warning("agent_away", host=host.name, why=str(error))

    async def _probe_silent(self) -> None:
        """Ask the instances of silent hosts whether they are still there: they are chosen only as long as they are."""
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
        functions = self.directory.catalogue.functions
        for want in self._scaling.wanted(functions.values(), self.view.fleet, clock.now()):
            try:
                await self.activator.add(self.directory.find(want.function), minimum=want.promised)
            except RequestError as refusal:
                log.warning("not_scaled", function=want.function, why=refusal.message)

    async def _forget_gone(self) -> None:
        present = {used_instance(i.id) for h in self.view.fleet.hosts.values() for i in h.instances}
        old = clock.now() - 3600
        await self.registry.forget_used(
            m for m, at in self.view.fleet.used.items() if m.startswith("i:") and m not in present and at < old
        )
