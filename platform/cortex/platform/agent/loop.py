"""The agent: owns a host. One loop, one writer.

Every event goes to the scheduler at once, on this loop's thread; its effects go to the supervisor; changes are
published. The record is written before a router's `ensure` is answered, so the next holder of the claim sees the new
start; a start that cannot be recorded is withdrawn.

No exception loses a decision or ends a loop: each effect is performed separately, each loop is restarted.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path

import structlog
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.names import slug
from cortex.functions.spec import Function
from cortex.platform import clock
from cortex.platform.agent import policy, state_file
from cortex.platform.agent.adoption import adopt
from cortex.platform.agent.counts import AgentCounts
from cortex.platform.agent.device_meter import DeviceMeter
from cortex.platform.agent.host_name import home, name_taken
from cortex.platform.agent.monitor import HostMonitor
from cortex.platform.agent.publisher import HostPublisher
from cortex.platform.agent.stock import Stock
from cortex.platform.agent_messages import (
    DECIDE_S,
    Accepted,
    AdapterState,
    Ensure,
    EnsureAdapter,
    PlacementPlan,
    Rejected,
)
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.cancel import cancel_tasks
from cortex.platform.faults import Faults
from cortex.platform.fleet import Fleet
from cortex.platform.host import devices, engines
from cortex.platform.in_flight import InFlight
from cortex.platform.keys import HostToken
from cortex.platform.process.process_id import boot_id
from cortex.platform.record import Held, HostRecord, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import AdapterAnswer, Answer, Decision, Effect, Ending
from cortex.platform.scheduling.event_log import EventLog
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import AgentState
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.scheduling.state import Rules
from cortex.platform.serving import address, listener, systemd
from cortex.platform.settings import Settings
from cortex.platform.weights.store import WeightsUnavailable
from cortex.platform.workers.checkpoint_driver import driver_version
from cortex.platform.workers.supervisor import Supervisor

log = structlog.get_logger()

TICK_S = 0.5
OTHERS_S, OTHERS_MOST_S = 0.01, 5.0
"""How old the records of hosts may be when this agent decides: this for each host of the fleet, and the maximum. Every
agent reads all of them. Its own is among them, so the maximum is also the time in which it is written twice."""
STOP_ALL_S = 8.0
OLD_REQUESTS_S = 2.0
"""How long after a stall a request for a start counts as one from before it."""
ENDED_WITHIN_S = 2.0
"""How long a killed worker may stay ready: its exit is noticed at once."""
LISTEN_S = 10.0
UNRECORDED = "this host cannot write to the record in Redis, so no router would find an instance here"
EPOCHS_AHEAD = 1_000_000
"""Distance of a new agent's epochs from the last saved one: the earlier agent may have raised it since."""


class Agent:
    """One host's agent. `async with` runs it; `ensure()` and `cool()` are what its API calls."""

    def __init__(self, settings: Settings, token: HostToken, registry: Registry) -> None:
        self._token = token
        self._state_path = Path(settings.agent.state_dir) / f"{slug(settings.host_name)}.json"
        self._earlier = state_file.read_all(self._state_path)
        if self._earlier.origin and self._earlier.boot == boot_id():
            clock.resume(self._earlier.origin)
        host_engines = engines.discover(settings.agent.engines)
        self._builds = {**host_engines.builds, "driver": driver_version()}
        self._earlier = self._earlier.with_builds(self._builds)
        host = _first_record(settings, host_engines, self._earlier)
        self.settings = settings
        self._engines = host_engines
        self.scheduler = Scheduler(host, _rules(settings))
        self.event_log = EventLog(self.scheduler.state, clock.now(), secrets.token_bytes(32))
        counts = AgentCounts(settings.host_name)
        self.faults = Faults(counts.fault)
        self.supervisor = Supervisor(
            settings,
            token,
            host_engines,
            self.tell,
            self._holders,
            self.scheduler.record,
            self.faults,
            lambda: self.scheduler.state.reports.fleet,
        )
        self._in_flight = InFlight(f"agent:{settings.host_name}")
        self._registry = registry
        self._devices = devices.Devices(settings.agent)
        self._monitor = HostMonitor(settings, self._devices, self.supervisor, registry, self.scheduler, self.tell)
        self.stock = Stock(settings, self.supervisor, self.scheduler, self.tell, self._monitor.profiles_due)
        self._device_meter, self._metered = DeviceMeter(), self._monitor.reading
        self.publisher = HostPublisher(registry, self._own_record, counts, settings.agent.heartbeat_s)
        self._writer = state_file.Writer(self._state_path)
        self._adopted = False
        self._saved: tuple[object, ...] | None = None
        self._alive_at, self._stalled_at = float("inf"), float("-inf")
        """When this loop last ran, and when it last resumed after a stall."""
        self._rung = asyncio.Event()
        self._next: asyncio.Future[None] | None = None
        self._seen = host.epoch
        self._fleet: Fleet | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Agent":
        loop = asyncio.get_running_loop()
        workers = self._earlier.workers
        for name in {w.instance.key_host for w in workers} - {"", self.settings.host_name}:
            self._token.accept_former(name)
        await adopt(workers, self.supervisor, self.tell)
        self._adopted = True
        self._save()
        await self.supervisor.clear_orphans({w.instance.id for w in workers})
        await self.supervisor.contexts.start({w.instance.id for w in workers})
        with self.faults.guard("health"):
            await self._monitor.measure()
            await self._monitor.read_tiers()
        self.supervisor.keep_launcher()
        loops = {
            "heartbeat": self._beat,
            "tick": self._tick,
            "listen": self._listen,
            "health": self._monitor.run,
            "models": self._monitor.read_profiles,
            "weights": self.stock.run,
            "contexts": self.supervisor.contexts.run,
            "stalls": self._notice_stalls,
        }
        self._tasks = [loop.create_task(self.faults.run(work, run), name=work) for work, run in loops.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        systemd.notify("STOPPING=1")
        if not self.settings.agent.keep_workers:
            await self._stop_all()
        await cancel_tasks(self._tasks)
        await self.supervisor.close()
        await self._devices.close()
        await asyncio.to_thread(self._writer.close)
        if not self.settings.agent.keep_workers:
            with contextlib.suppress(RecordUnavailable):
                await self._registry.remove_host(self.settings.host_name, self.scheduler.record().home)

    # Requests.

    async def ensure(self, request: Ensure, *, unrecorded: bool = False) -> Accepted | Rejected:
        """Ensure that an instance of a function is ready or on its way up; return once the record has it. Instances in
        `failed` are ended first, if their engine has failed.

        Rejected without a start when the decision is so late that the caller has given up, and when the record cannot
        be written, unless `unrecorded`: for a caller that will use the instance through this agent.
        """
        function, arrived = request.function, time.monotonic()
        if arrived - self._alive_at > DECIDE_S or arrived - self._stalled_at < OLD_REQUESTS_S:
            return await self._not_now(function, "the agent was stopped for a while: this request may be an old one")
        if why := self._why_unrecorded(unrecorded):
            return Rejected(why, When.LATER)
        if lacking := policy.refusal(function, self.settings.agent) or self._engines.lacks(function):
            return Rejected(lacking, When.NEVER)
        try:
            local_weights = await self.stock.weights_of(function)
        except NoAnswer as error:
            return await self._not_now(function, str(error))
        except WeightsUnavailable as error:
            return Rejected(str(error), When.NEVER)
        await self._end_failed(request.failed)
        if time.monotonic() - arrived > DECIDE_S:
            return await self._not_now(function, f"the agent needed more than {DECIDE_S:g} s to decide")
        instance = secrets.token_hex(8)
        effects = self._handle(events.EnsureRequest(request, local_weights, instance))
        await self.publisher.publish()
        answer = next(e.answer for e in effects if isinstance(e, Answer))
        is_new = isinstance(answer, Accepted) and answer.instance == instance
        if is_new and (why := self._why_unrecorded(unrecorded)):  # the agent knows it only now that it wrote
            self.tell(events.StartWithdrawn(instance))
            return Rejected(why, When.LATER)
        return answer

    async def ensure_adapter(self, request: EnsureAdapter) -> AdapterState:
        """Ensure that a variant's adapter is loaded, or being loaded, into an instance; return once the record has
        it."""
        effects = self._handle(events.AdapterRequest(request))
        await self.publisher.publish()
        return next(e.answer for e in effects if isinstance(e, AdapterAnswer))

    def _why_unrecorded(self, unrecorded: bool) -> str:
        """Return why a start here is not in the record, where no router would find it and the next would start another
        elsewhere; "" if it is, or if only Redis is away and the caller needs no record."""
        if (holder := self.publisher.name_holder) is not None:
            return name_taken(holder)
        return UNRECORDED if self.publisher.record_away and not unrecorded else ""

    async def _end_failed(self, failed: Collection[str]) -> None:
        """End those of these ready instances whose engine has failed, and wait until they are no longer ready."""
        ended = [i.id for i in self._ready() if i.id in failed and await self.supervisor.health.end_if_failed(i)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDED_WITHIN_S):
                while any(i.id in ended for i in self._ready()):  # noqa: ASYNC110 (the scheduler has no event for it)
                    await asyncio.sleep(0.01)

    def _ready(self) -> list[Instance]:
        return [i for i in self.scheduler.record().instances if i.state is State.READY]

    async def plan(self, function: Function) -> PlacementPlan | Rejected:
        """Return what `ensure` would do, without doing it."""
        if lacking := policy.refusal(function, self.settings.agent) or self._engines.lacks(function):
            return Rejected(lacking, When.NEVER)
        try:
            local_weights = await self.stock.weights_of(function)
        except NoAnswer as error:
            return Rejected(str(error), When.LATER)
        except WeightsUnavailable as error:
            return Rejected(str(error), When.NEVER)
        return self.scheduler.plan(function, local_weights, clock.now())

    async def _not_now(self, function: Function, reason: str) -> Rejected:
        """Reject a start, and log the decision."""
        self.publisher.note(Decision(DecisionKind.REFUSED, function.id, "", reason), self._fleet)
        await self.publisher.publish()
        return Rejected(reason, When.LATER)

    async def drain(self) -> list[str]:
        """Drain this host; the caller cordons it in the record. Return the ids of the instances that end."""
        return await self._end(events.DrainRequest())

    async def cool(self, function: str, *, at_once: bool = False, park: bool = False) -> list[str]:
        """End the instances of a function, or park them. Return their ids."""
        return await self._end(events.CoolRequest(function, at_once, park))

    async def _end(self, event: events.DrainRequest | events.CoolRequest) -> list[str]:
        effects = self._handle(event)
        await self.publisher.publish()
        return [i for e in effects if isinstance(e, Ending) for i in e.instances]

    async def forget(self, function: str) -> None:
        """Drop a function's measurements, and its failures with their back-off."""
        self._monitor.forget(function)
        self.tell(events.FailuresCleared(function))
        await self.publisher.publish()

    async def apply_catalogue(self, catalogue: Catalogue, digest: str) -> None:
        """Apply a new catalogue."""
        self.tell(events.CatalogueChanged(catalogue.functions, digest))
        self._monitor.profiles_due.set()
        self.stock.due.set()
        await self.publisher.publish()

    def record(self) -> HostRecord:
        """Return the host's current record."""
        return replace(self._own_record(), at=clock.now())

    def _own_record(self) -> HostRecord:
        record, use = self.scheduler.record(), self._device_meter.use
        return replace(record, device_use=use) if use else record

    def instance(self, instance: str) -> Instance | None:
        """Return one of the host's instances."""
        return next((i for i in self.scheduler.record().instances if i.id == instance), None)

    def reading(self) -> devices.Reading:
        """Return the last reading of the host's devices."""
        return self._monitor.reading

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait for the next event on this host, at most `timeout_s`."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._next,), timeout=timeout_s)

    # Requests through the agent itself. To the scheduler it is one more router.

    def ready(self, function: str) -> tuple[Instance, Function] | None:
        """Return the function's ready instance that has the fewest requests from here, and its spec."""
        ready = [
            (self._in_flight.on(i.id), i.id, i, spec)
            for i in self.scheduler.record().instances
            if i.function == function and i.state is State.READY and (spec := self.scheduler.function_of(i.id))
        ]
        return min(ready)[2:] if ready else None

    @contextlib.contextmanager
    def track(self, instance: Instance) -> Iterator[None]:
        """Count a request as in flight on an instance."""
        try:
            seating = self.supervisor.contexts.seating
            with self._in_flight.track(instance.function, instance.id), seating.unknown_slots(instance.id):
                yield
        finally:
            if self._draining():
                self._rung.set()

    # The loop.

    def tell(self, event: Event) -> None:
        """Pass an event to the scheduler, and perform its effects."""
        self._handle(event)

    def _handle(self, event: Event) -> list[Effect]:
        """Pass an event to the scheduler; perform and return its effects. One that raises half-way loses none."""
        now = clock.now()
        try:
            effects = self.scheduler.handle(event, now)
        except Exception as error:
            self._perform(event, self.scheduler.take_effects(), now, type(error).__name__)
            raise
        self._perform(event, effects, now)
        return effects

    def _perform(self, event: Event, effects: list[Effect], now: float, raised: str = "") -> None:
        with self.faults.guard("event log"):
            self.event_log.add(event, effects, now, raised)
        for effect in effects:
            with self.faults.guard("effect"):
                self.supervisor.perform(effect)
            if isinstance(effect, Decision):
                with self.faults.guard("decision"):
                    self.publisher.note(effect, self._fleet)
        with self.faults.guard("save"):
            self._save()
        with self.faults.guard("wake"):
            self._wake()

    def _wake(self) -> None:
        """Wake the loops and callers that a decision concerns."""
        self.publisher.look()
        if self.scheduler.record().epoch > self._seen:
            self._rung.set()
        self.stock.look()
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def _save(self) -> None:
        """Write the state file when workers were added, removed or changed.

        Not before all workers of an earlier agent are adopted: a file with half of them would orphan the rest.
        """
        if not self._adopted:
            return
        state = self.scheduler.saved_state()
        workers = ((w.instance.id, w.instance.state, w.instance.pid, w.instance.adapters) for w in state.workers)
        marks = (*workers, *state.failures, state.unparkable, state.tricks_off)
        if marks != self._saved:
            self._writer.put(replace(state, builds=self._builds, boot=boot_id(), origin=clock.origin()))
            self._saved = marks

    def _problems(self) -> list[str]:
        """Return the problems of this host, except those of its devices."""
        work = [f"its background work '{f.work}' raised {f.kind} ({f.count} times)" for f in self.faults.recent()]
        return [*filter(None, [self._writer.problem()]), *work]

    async def _holders(self) -> tuple[Held, ...] | None:
        """Return the processes on the devices, by a fresh reading; None: they cannot be read."""
        await self._monitor.measure()
        reading = self._monitor.reading
        return None if reading.problem else reading.held

    async def _beat(self) -> None:
        """Publish on every change, and once per heartbeat; first once routers can reach this agent."""
        await listener.accepts(*address.split(self.settings.agent.listen), within_s=LISTEN_S)
        await self.publisher.publish()
        systemd.notify("READY=1")
        while True:
            systemd.notify("WATCHDOG=1")
            try:
                async with asyncio.timeout(self.settings.agent.heartbeat_s):
                    await self.publisher.changed.wait()
            except TimeoutError:
                self.publisher.beat()
            await self.publisher.publish()

    async def _tick(self) -> None:
        """Read the routers' reports, and reconcile."""
        while True:
            fleet = self._fleet = await self._read()
            if fleet is not None:
                self.publisher.counts.count_regrets(fleet, clock.now())
                self._meter_devices(fleet)
            self.tell(events.Reported(fleet))
            problems = tuple(self._problems())
            if problems != self.scheduler.record().problems:
                self.tell(events.HostRead(problems=problems))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._rung.wait()
            self._rung.clear()

    def _meter_devices(self, fleet: Fleet) -> None:
        """Take a sample if there is a new reading of the devices."""
        if self._monitor.reading is not self._metered:
            self._metered = self._monitor.reading
            instances = self.scheduler.record().instances
            self._device_meter.sample(self._metered.devices, instances, fleet.routers, clock.now())

    async def _read(self) -> Fleet | None:
        """Return the routers' reports, and the requests through this agent."""
        used = self._in_flight.take_used()
        self._seen = self.scheduler.record().epoch
        try:
            await self._registry.touch(used)
            hosts = len(self._fleet.hosts) if self._fleet else 0
            most_s = min(OTHERS_MOST_S, 2 * self.settings.agent.heartbeat_s)
            fleet = await self._registry.fleet(clock.now(), min(OTHERS_S * hosts, most_s))
        except RecordUnavailable:
            self._in_flight.put_back(used)
            return None
        # `ready()` reads the scheduler itself: it does not choose an instance that is draining.
        own = self._in_flight.report({self.settings.host_name: self.scheduler.record().epoch}, clock.now())
        return replace(fleet, routers={**fleet.routers, own.id: replace(own, unseated={})})

    async def _notice_stalls(self) -> None:
        """Detect that this process was stopped: requests in its sockets are old, and their callers have left."""
        while True:
            now = time.monotonic()
            if now - self._alive_at > DECIDE_S:
                self._stalled_at = now
            self._alive_at = now
            await asyncio.sleep(TICK_S)

    async def _listen(self) -> None:
        """Reconcile at once when a router's new report may complete a drain, or an operator cordons this host or opens
        it again."""
        own_cordon = f"cordon:{self.settings.host_name}"
        while True:
            try:
                async for changed in self._registry.bell():
                    if changed == own_cordon or (changed.startswith("router:") and self._draining()):
                        self._rung.set()
            except RecordUnavailable:
                await asyncio.sleep(TICK_S)

    def _draining(self) -> bool:
        return any(i.reason for i in self.scheduler.record().instances)

    async def _stop_all(self) -> None:
        self.tell(events.ShutdownRequest())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_ALL_S):
                while self.scheduler.record().instances:
                    self.publisher.changed.clear()
                    await self.publisher.changed.wait()


def _first_record(settings: Settings, host_engines: engines.Engines, earlier: AgentState) -> HostRecord:
    """Return what a host publishes when its agent starts."""
    own = settings.agent
    return HostRecord(
        name=settings.host_name,
        address=own.address or f"{_scheme(settings)}://{address.join(*address.split(own.listen))}",
        version=version("cortex"),
        labels=own.labels,
        engines=host_engines.versions,
        servers=host_engines.servers,
        launchers={"vllm": "off"} if "vllm" in host_engines.tools and not own.launcher else {},
        devices=devices.discover(own),
        failures=earlier.failures,
        unparkable=earlier.unparkable,
        tricks_off=earlier.tricks_off,
        # Epochs rise over restarts, or a router would acknowledge drains that it has not seen.
        epoch=max(int(clock.now() * 1000), earlier.epoch + EPOCHS_AHEAD),
        agent=secrets.token_hex(8),
        home=home(Path(own.state_dir), boot_id()),
        started=clock.now(),
    )


def _rules(settings: Settings) -> Rules:
    """Return the scheduler's rules from the settings."""
    return Rules(
        strategy=settings.eviction.strategy,
        stop_grace_s=settings.agent.stop_grace_s,
        drain_grace_s=settings.agent.drain_grace_s,
        start_silence_s=settings.agent.start_silence_s,
        start_ceiling_s=settings.agent.start_ceiling_s,
        defrag_after_cycles=settings.eviction.defrag_after_cycles,
    )


def _scheme(settings: Settings) -> str:
    return "https" if settings.agent.tls_cert else "http"
