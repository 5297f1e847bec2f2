"""Looks after what runs: reads the devices, checks ready workers' health, learns what they really take.

It decides nothing. What it sees is told to the scheduler; what is worth knowing for the next start goes into the
ledger. What the weights here say about their models is told too, for clients that ask before anything runs.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import LIVE, State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform import clock
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.host.devices import Devices, Reading, accounted
from cortex.platform.record import Device, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.weights.model_facts import PROBE_S, ModelFacts
from cortex.platform.workers import log_files, process
from cortex.platform.workers.supervisor import Supervisor, Tell

log = structlog.get_logger()

SETTLED_S = 5.0
"""How long after it is ready a worker must show up on its GPU."""
STUDY_S = 60.0
"""How often the weights are looked at again: they may come and go without the catalogue changing."""
FACTS_S, FACTS_AT_A_TIME = PROBE_S + 10.0, 4
"""How long a look at what weights say of their model may take, with a trial of their template."""
TRIM_S = 60.0
"""How long cutting logs may take: one that grew too large is copied."""
LAST_USE_S = 30.0
"""How long after an instance has ended its last use may still come into the record."""


class HostMonitor:
    """The eyes of one agent."""

    def __init__(
        self,
        settings: Settings,
        devices: Devices,
        supervisor: Supervisor,
        registry: Registry,
        scheduler: Scheduler,
        tell: Tell,
    ) -> None:
        self._settings, self._devices, self._supervisor = settings, devices, supervisor
        self._registry, self._scheduler, self._tell = registry, scheduler, tell
        self._ledger: dict[str, ledger.Entry] = {}
        self._problem = ""
        self._facts = ModelFacts()
        self._running: frozenset[str] = frozenset()
        self._starts: set[str] = set()
        """Instances whose starts are in the ledger, or were until an operator had it forgotten."""
        self._unserved: dict[str, _Unserved] = {}
        """Instances whose readings do not count yet."""
        self.curious = asyncio.Event()
        """Set when there is something new to study."""
        self.reading = Reading(devices=())

    async def measure(self) -> None:
        """Read the devices and tell what they hold, ours and foreign."""
        reading = await self._devices.read()
        ours = await asyncio.to_thread(process.families, self._pids())
        record = self._scheduler.record()
        by_id = {i.id: i for i in record.instances}
        known = {pid: by_id[i] for pid, i in ours.items() if i in by_id}
        found = accounted(reading, known, record.devices)
        foreign = [h for h in reading.held if h.pid not in known]
        problem = "" if reading.absent else reading.problem
        if found:
            self._tell(lambda s, _: s.measured(found, foreign, problem))
        if reading.problem != self._problem and not reading.absent:
            log.warning("devices_unread", why=reading.problem) if reading.problem else log.info("devices_read")
        self._problem = reading.problem
        self.reading = reading

    async def look_after(self) -> None:
        """Go round, with a pause between rounds."""
        while True:
            await self.look_once()
            await asyncio.sleep(self._settings.agent.health_s)

    async def look_once(self) -> None:
        """Go round once: the devices, the ledger, every ready instance, the logs, each on its own.

        Raises ExceptionGroup at the end, with what went wrong on the way.
        """
        errors: list[Exception] = []
        ready = [i for i in self._scheduler.record().instances if i.state is State.READY]
        self._supervisor.forget_misses({i.id for i in ready})
        await self._each(errors, self.measure(), self._recall(), self._tell_silent())
        await self._each(errors, *(self._supervisor.check(i) for i in ready))
        ready = [i for i in self._scheduler.record().instances if i.state is State.READY]
        await self._each(errors, self._learn_all(ready))
        self._starts &= {i.id for i in self._scheduler.record().instances}
        running = frozenset(i.function for i in self._scheduler.record().instances if i.state in LIVE)
        if running - self._running:  # weights that were fetched for it are new here
            self.curious.set()
        self._running = running
        await self._each(errors, self._trim_logs())
        if errors:
            raise ExceptionGroup("a round of looking after the instances", errors)

    @staticmethod
    async def _each(errors: list[Exception], *works: Awaitable[None]) -> None:
        """Await all, and note what any of them raises."""
        results = await asyncio.gather(*works, return_exceptions=True)
        errors += [r for r in results if isinstance(r, Exception)]

    async def _recall(self) -> None:
        """Read the ledger again: what other agents learned, and what an operator had forgotten."""
        with contextlib.suppress(RecordUnavailable):
            self._ledger = await self._registry.ledger()
            self._tell_known()

    def _tell_known(self) -> None:
        known = ledger.for_host(self._ledger, self._scheduler.record().devices)
        self._tell(lambda s, _: s.set_ledger(known))

    async def _tell_silent(self) -> None:
        """Tell which paths do not answer, and which functions cannot be started for that."""
        looks, cache = self._supervisor.looks, Path(self._settings.agent.cache_dir)
        silent, record = looks.silent(), self._scheduler.record()
        functions = self._scheduler.catalogue().values() if silent else ()
        refusals = {f.id: looks.refusal(disk.place_of(f, cache)) for f in functions}
        unreadable = {f: str(refusal) for f, refusal in refusals.items() if refusal is not None}
        for path in silent.keys() - record.silent.keys():
            log.warning("path_does_not_answer", path=path)
        for path in record.silent.keys() - silent.keys():
            log.info("path_answers_again", path=path)
        if (silent, unreadable) != (record.silent, record.unreadable):
            self._tell(lambda s, _: s.set_silent_paths(silent, unreadable))

    async def _trim_logs(self) -> None:
        folder = Path(self._settings.agent.log_dir)
        with contextlib.suppress(NoAnswer):  # it is among the silent paths
            await self._supervisor.looks.look(str(folder), "trim", partial(log_files.trim, folder), within_s=TRIM_S)

    async def study(self) -> None:
        """Learn what the weights on this host say."""
        while True:
            await self.study_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STUDY_S):
                    await self.curious.wait()

    async def study_once(self) -> None:
        """Learn what the weights on this host say about each function, each on its own."""
        self.curious.clear()
        cache, looks = Path(self._settings.agent.cache_dir), self._supervisor.looks

        async def facts_of(function: Function) -> ModelProfile | None:
            here = await disk.weights(looks, function, cache)
            if here is None or not here.path:
                return None
            facts = partial(self._facts.of, function, here.path)
            place, question = function.chat_template or here.path, msgspec.json.encode(function)
            return await looks.look(place, "facts", facts, question=question, within_s=FACTS_S)

        functions = list(self._scheduler.catalogue().values())
        found = await disk.of_each(functions, facts_of, at_a_time=FACTS_AT_A_TIME)
        if found != self._scheduler.record().models:
            self._tell(lambda s, _: s.set_models(found))

    def _pids(self) -> dict[str, int]:
        return {i.id: i.pid for i in self._scheduler.record().instances if i.pid}

    async def _held(self, ready: list[Instance]) -> Mapping[str, int]:
        """Return by instance the GPU memory its processes hold, in MiB, as far as NVML tells."""
        if not self.reading.held and not any(_on_gpu(i) for i in ready):
            return {}
        families = await asyncio.to_thread(process.families, self._pids())
        held: dict[str, int] = {}
        present, unmeasured = set(), set()
        for one in self.reading.held:
            if holder := families.get(one.pid):
                present.add(holder)
                held[holder] = held.get(holder, 0) + (one.memory_mb or 0)
                if one.memory_mb is None:
                    unmeasured.add(holder)
        for instance in ready:
            self._tell_if_misplaced(instance, present)
        return {i: mb for i, mb in held.items() if i not in unmeasured}

    def _tell_if_misplaced(self, instance: Instance, present: set[str]) -> None:
        """A worker that should be on a GPU and is not computes on the CPU in silence: it must not go on."""
        sure = not self.reading.problem and not self.reading.unlisted.intersection(instance.devices)
        settled = clock.now() - instance.ready > SETTLED_S
        function = self._scheduler.function_of(instance.id)
        pretends = function is None or function.engine is Engine.FAKE
        if sure and settled and not pretends and _on_gpu(instance) and instance.id not in present:
            self._tell(lambda s, now: s.fell_back_to_cpu(instance.id, now))

    async def _learn_all(self, ready: list[Instance]) -> None:
        """Learn from each instance in turn, since several may share an entry."""
        held = await self._held(ready)
        errors: list[Exception] = []
        for instance in ready:
            await self._each(errors, self._learn(instance, held.get(instance.id)))
        for instance_id in list(self._unserved):
            await self._each(errors, self._learn_service(instance_id))
        if errors:
            raise ExceptionGroup("learning what instances take", errors)

    async def _learn(self, instance: Instance, held_mb: int | None) -> None:
        """Write down what an instance took, when that says something new."""
        function = self._scheduler.function_of(instance.id)
        device = _first_device(instance, self._scheduler.record().devices)
        if function is None or device is None:
            return
        field, now = ledger.key(instance.revision, device), clock.now()
        used_mb = await self._used_mb(instance, function, device, held_mb)
        known, entry = self._ledger.get(field), None
        if used_mb:
            self._tell(lambda s, _: s.used(instance.id, used_mb))
            served = self._served(instance)
            entry = ledger.with_memory(known, used_mb, now, start=instance.ready, instance=instance.id, served=served)
            self._unserved.pop(instance.id, None)
            if not served:
                self._unserved[instance.id] = _Unserved(field, instance.ready, now)
        if known is not None and known.started_at >= instance.ready:
            self._starts.add(instance.id)
        if instance.phases and instance.id not in self._starts:
            start_s = instance.ready - instance.started
            entry = ledger.with_start(entry or known, start_s, instance.phases, instance.ready, now)
        new = entry is not None and await self._write(field, replace(entry, function=function.id), known)
        if entry is not None and new and entry.started_at >= instance.ready:
            self._starts.add(instance.id)

    async def _used_mb(self, instance: Instance, function: Function, device: Device, held_mb: int | None) -> int | None:
        """Return the memory an instance holds on its devices; None where nothing measures that.

        RAM says what an instance takes of a CPU. Of a GPU it says nothing.
        """
        if held_mb or (device.kind != "cpu" and function.engine is not Engine.FAKE):
            return held_mb
        return await self._supervisor.used_mb(instance, function.engine)

    def _served(self, instance: Instance) -> bool:
        """Whether an instance has served for so long that its memory has grown to what serving takes."""
        return self._scheduler.last_used(instance.id) - instance.ready >= ledger.SERVED_S

    async def _learn_service(self, instance_id: str) -> None:
        """Once an instance has ended, what it took counts if it served at all."""
        unserved, now = self._unserved[instance_id], clock.now()
        if any(i.id == instance_id for i in self._scheduler.record().instances):
            self._unserved[instance_id] = replace(unserved, seen=now)
            return
        known, used = self._ledger.get(unserved.field), self._scheduler.last_used(instance_id)
        if known is not None and used > unserved.ready:
            await self._write(unserved.field, ledger.with_service(known, instance_id, now), known)
        if used > unserved.ready or now - unserved.seen > LAST_USE_S:
            del self._unserved[instance_id]

    async def _write(self, field: str, entry: ledger.Entry, known: ledger.Entry | None) -> bool:
        """Write an entry, unless it has been forgotten, or begun by another agent, since it was read."""
        with contextlib.suppress(RecordUnavailable):
            if await self._registry.learn(field, entry, new=known is None):
                self._ledger[field] = entry
                self._tell_known()
                return True
        return False

    def forget(self, function: str) -> None:
        """Drop what is learned of a function. Its entries in the record are for the router to delete."""
        declared = self._scheduler.declared(function)
        of = {i.revision for i in self._scheduler.record().instances if i.function == function}
        gone = ledger.about(self._ledger, function, of | ({revision(declared)} if declared else set()))
        self._ledger = {f: e for f, e in self._ledger.items() if f not in gone}
        self._tell_known()


class _Unserved(msgspec.Struct, frozen=True):
    """An instance whose reading does not count yet: its entry, when it was ready, when it was last there."""

    field: str
    ready: float
    seen: float


def _on_gpu(instance: Instance) -> bool:
    """Whether it is on a GPU that NVML knows; a declared one may be anything."""
    return any(d.startswith("GPU-") for d in instance.devices)


def _first_device(instance: Instance, devices: tuple[Device, ...]) -> Device | None:
    return next((d for d in devices if d.id in instance.devices), None)
