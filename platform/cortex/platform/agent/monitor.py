"""The host monitor: reads the devices, checks the health of ready workers, measures their memory.

It decides nothing: it passes its readings to the scheduler, and writes measurements for the next start to the ledger.
It also reads the models' profiles from their weights, for clients that need them before any instance runs.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import psutil
import structlog
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import LIVE, PARKED, State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform import clock
from cortex.platform.blocking_calls import NoAnswer
from cortex.platform.host.devices import Devices, Reading, with_foreign_memory
from cortex.platform.host.nvml import MIB
from cortex.platform.host.tiers import host_tiers
from cortex.platform.record import Device, Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.events import Event, FellBackToCpu, HostRead, LedgerRead, MemoryRead
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.settings import Settings
from cortex.platform.weights import disk
from cortex.platform.weights.model_facts import PROBE_S, ModelFacts
from cortex.platform.workers import cgroup, log_files, process
from cortex.platform.workers.supervisor import Supervisor

log = structlog.get_logger()

SETTLED_S = 5.0
"""A worker must appear on its GPU within this time after it is ready."""
STUDY_S = 60.0
"""Interval of reading model profiles: weights may change without a change of the catalogue."""
FACTS_S, FACTS_AT_A_TIME = PROBE_S + 10.0, 4
"""Timeout of reading a model profile, with a trial of its template; profiles read at a time."""
TRIM_S = 60.0
"""Timeout of trimming logs: one that grew too large is copied."""
LAST_USE_S = 30.0
"""An instance's last use may reach the record this long after its end."""


class HostMonitor:
    """Monitors one host."""

    def __init__(
        self,
        settings: Settings,
        devices: Devices,
        supervisor: Supervisor,
        registry: Registry,
        scheduler: Scheduler,
        tell: Callable[[Event], None],
    ) -> None:
        self._settings, self._devices, self._supervisor = settings, devices, supervisor
        self._registry, self._scheduler, self._tell = registry, scheduler, tell
        self._ledger: dict[str, ledger.Entry] = {}
        self._problem = ""
        self._facts = ModelFacts()
        self._running: frozenset[str] = frozenset()
        self._starts: set[str] = set()
        """Instances whose starts are in the ledger, or were until an operator deleted the entry."""
        self._unserved: dict[str, _Unserved] = {}
        """Instances whose readings do not count yet."""
        self._park_ram_mb = settings.agent.park_ram_mb
        self.profiles_due = asyncio.Event()
        """Set when model profiles may have changed."""
        self.reading = Reading(devices=())

    async def measure(self) -> None:
        """Read the devices, and report the memory of instances and of foreign processes."""
        reading = await self._devices.read()
        ours = await asyncio.to_thread(process.families, self._pids())
        record = self._scheduler.record()
        by_id = {i.id: i for i in record.instances}
        instances = {pid: by_id[i] for pid, i in ours.items() if i in by_id}
        devices = with_foreign_memory(reading, instances, record.devices)
        foreign = [h for h in reading.held if h.pid not in instances]
        problem = "" if reading.absent else reading.problem
        if devices:
            self._tell(HostRead(devices=devices, foreign=tuple(foreign), problem=problem))
        if reading.problem != self._problem and not reading.absent:
            log.warning("devices_unreadable", why=reading.problem) if reading.problem else log.info("devices_read")
        self._problem = reading.problem
        self.reading = reading

    async def read_tiers(self) -> None:
        """Report the tiers that instances can go to on this host."""
        record, freeze = self._scheduler.record(), ""
        if any(d.kind == "gpu" for d in record.devices):
            freeze = await self._supervisor.freeze_problem()
        if self._park_ram_mb is None:  # RAM that instances of an earlier agent hold is not free, but part of the budget
            self._park_ram_mb = (_available_mb() + sum(i.ram_mb for i in record.instances)) // 2
        tiers = host_tiers(self._settings.agent, self._park_ram_mb, record.engines, record.devices, freeze)
        if (tiers, self._park_ram_mb) != (record.tiers, record.park_ram_mb):
            self._tell(HostRead(tiers=tiers, park_ram_mb=self._park_ram_mb))

    async def run(self) -> None:
        """Check everything, again and again, with a pause of `health_s`."""
        while True:
            await self.check_once()
            await asyncio.sleep(self._settings.agent.health_s)

    async def check_once(self) -> None:
        """Check the devices, the ledger, every ready or parked instance and the logs, each on its own.

        Raises ExceptionGroup at the end, with all errors.
        """
        errors: list[Exception] = []
        instances = self._scheduler.record().instances
        ready, parked = [i for i in instances if i.state is State.READY], [i for i in instances if i.state in PARKED]
        self._supervisor.health.forget_misses({i.id for i in ready})
        await self._each(errors, self.measure(), self.read_tiers(), self._read_ledger(), self._report_silent_paths())
        await self._each(errors, *(self._supervisor.health.check(i) for i in ready))
        await self._each(errors, *(self._supervisor.check_parked(i) for i in parked))
        ready = [i for i in self._scheduler.record().instances if i.state is State.READY]
        await self._each(errors, self._learn_all(ready), self._learn_tiers())
        self._starts &= {i.id for i in self._scheduler.record().instances}
        running = frozenset(i.function for i in self._scheduler.record().instances if i.state in LIVE)
        if running - self._running:  # weights that were fetched for it are new here
            self.profiles_due.set()
        self._running = running
        await self._each(errors, self._trim_logs())
        if errors:
            raise ExceptionGroup("a round of checks failed", errors)

    @staticmethod
    async def _each(errors: list[Exception], *works: Awaitable[None]) -> None:
        """Await all, and collect their exceptions."""
        results = await asyncio.gather(*works, return_exceptions=True)
        errors += [r for r in results if isinstance(r, Exception)]

    async def _read_ledger(self) -> None:
        """Read the ledger again: other agents and operators change it."""
        with contextlib.suppress(RecordUnavailable):
            self._ledger = await self._registry.ledger()
            self._report_ledger()

    def _report_ledger(self) -> None:
        entries = ledger.for_host(self._ledger, self._scheduler.record().devices)
        self._tell(LedgerRead(entries))

    async def _report_silent_paths(self) -> None:
        """Report the paths that do not answer, and the functions that cannot start because of that."""
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
            self._tell(HostRead(silent=silent, unreadable=unreadable))

    async def _trim_logs(self) -> None:
        folder = Path(self._settings.agent.log_dir)
        with contextlib.suppress(NoAnswer):  # it is among the silent paths
            await self._supervisor.looks.look(str(folder), "trim", partial(log_files.trim, folder), within_s=TRIM_S)

    async def read_profiles(self) -> None:
        """Read the model profiles of the weights on this host, again and again."""
        while True:
            await self.read_profiles_once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STUDY_S):
                    await self.profiles_due.wait()

    async def read_profiles_once(self) -> None:
        """Read the model profile of each function whose weights are on this host."""
        self.profiles_due.clear()
        cache, looks = Path(self._settings.agent.cache_dir), self._supervisor.looks

        async def facts_of(function: Function) -> ModelProfile | None:
            here = await disk.weights(looks, function, cache)
            if here is None or not here.path:
                return None
            facts = partial(self._facts.of, function, here.path)
            place, question = function.chat_template or here.path, msgspec.json.encode(function)
            return await looks.look(place, "facts", facts, question=question, within_s=FACTS_S)

        functions = list(self._scheduler.catalogue().values())
        profiles = await disk.of_each(functions, facts_of, at_a_time=FACTS_AT_A_TIME)
        if profiles != self._scheduler.record().models:
            self._tell(HostRead(models=profiles))

    def _pids(self) -> dict[str, int]:
        return {i.id: i.pid for i in self._scheduler.record().instances if i.pid}

    async def _gpu_memory(self, ready: list[Instance]) -> Mapping[str, int]:
        """Return the GPU memory of each instance's processes in MiB, where NVML reports it."""
        if not self.reading.held and not any(_on_gpu(i) for i in ready):
            return {}
        families = await asyncio.to_thread(process.families, self._pids())
        held: dict[str, int] = {}
        present, unmeasured = set(), set()
        for usage in self.reading.held:
            if holder := families.get(usage.pid):
                present.add(holder)
                held[holder] = held.get(holder, 0) + (usage.memory_mb or 0)
                if usage.memory_mb is None:
                    unmeasured.add(holder)
        for instance in ready:
            self._report_cpu_fallback(instance, present)
        return {i: mb for i, mb in held.items() if i not in unmeasured}

    def _report_cpu_fallback(self, instance: Instance, present: set[str]) -> None:
        """Report a worker that belongs on a GPU and has no process there: it computes on the CPU."""
        sure = not self.reading.problem and not self.reading.unlisted.intersection(instance.devices)
        settled = clock.now() - instance.ready > SETTLED_S
        function = self._scheduler.function_of(instance.id)
        pretends = function is None or function.engine is Engine.FAKE
        if sure and settled and not pretends and _on_gpu(instance) and instance.id not in present:
            self._tell(FellBackToCpu(instance.id))

    async def _learn_all(self, ready: list[Instance]) -> None:
        """Measure the instances one after the other, since several may share an entry."""
        held = await self._gpu_memory(ready)
        errors: list[Exception] = []
        for instance in ready:
            await self._each(errors, self._learn(instance, held.get(instance.id)))
        for instance_id in list(self._unserved):
            await self._each(errors, self._learn_service(instance_id))
        if errors:
            raise ExceptionGroup("measuring instances failed", errors)

    async def _learn_tiers(self) -> None:
        """Record what parking and returning took and left."""
        for instance in self._scheduler.record().instances:
            device = _first_device(instance, self._scheduler.record().devices)
            if device is not None and (instance.state in PARKED or _has_returned(instance)):
                field = ledger.key(instance.revision, device)
                earlier = self._ledger.get(field)
                if (entry := ledger.with_tiers(earlier, instance, clock.now())) is not None:
                    await self._write(field, replace(entry, function=instance.function), earlier)

    async def _learn(self, instance: Instance, held_mb: int | None) -> None:
        """Record the memory and the start of an instance, when they change its entry."""
        function = self._scheduler.function_of(instance.id)
        device = _first_device(instance, self._scheduler.record().devices)
        if function is None or device is None or _has_returned(instance):  # only a start is measured
            return
        field, now = ledger.key(instance.revision, device), clock.now()
        used_mb = await self._used_mb(instance, function, device, held_mb)
        earlier, entry = self._ledger.get(field), None
        if used_mb:
            self._tell(MemoryRead(instance.id, used_mb))
            served = self._has_served(instance)
            entry = ledger.with_memory(
                earlier,
                used_mb,
                now,
                start=instance.ready,
                instance=instance.id,
                served=served,
                cache_mb=instance.cache_mb,
                fast=instance.start_mode is StartMode.FAST,
            )
            self._unserved.pop(instance.id, None)
            if not served:
                self._unserved[instance.id] = _Unserved(field, instance.ready, now)
        if earlier is not None and earlier.started_at >= instance.ready:
            self._starts.add(instance.id)
        if instance.phases and instance.id not in self._starts:
            start_s = instance.ready - instance.started
            entry = ledger.with_start(entry or earlier, start_s, instance.phases, instance.ready, now)
            version = self._scheduler.record().engines.get(function.engine, "")
            entry = ledger.with_mode(entry, instance.start_mode, start_s, version)
        new = entry is not None and await self._write(field, replace(entry, function=function.id), earlier)
        if entry is not None and new and entry.started_at >= instance.ready:
            self._starts.add(instance.id)

    async def _used_mb(self, instance: Instance, function: Function, device: Device, held_mb: int | None) -> int | None:
        """Return the memory of an instance on its devices; None where nothing measures that.

        RAM is the measure for a CPU, and none for a GPU.
        """
        if held_mb or (device.kind != "cpu" and function.engine is not Engine.FAKE):
            return held_mb
        return await self._supervisor.used_mb(instance, function.engine)

    def _has_served(self, instance: Instance) -> bool:
        """Whether an instance has served long enough for its memory to include what serving takes."""
        return self._scheduler.last_used(instance.id) - instance.ready >= ledger.SERVED_S

    async def _learn_service(self, instance_id: str) -> None:
        """Let the reading of an instance that ended count, if it served at all."""
        unserved, now = self._unserved[instance_id], clock.now()
        if any(i.id == instance_id for i in self._scheduler.record().instances):
            self._unserved[instance_id] = replace(unserved, seen=now)
            return
        earlier, used = self._ledger.get(unserved.field), self._scheduler.last_used(instance_id)
        if earlier is not None and used > unserved.ready:
            await self._write(unserved.field, ledger.with_service(earlier, instance_id, now), earlier)
        if used > unserved.ready or now - unserved.seen > LAST_USE_S:
            del self._unserved[instance_id]

    async def _write(self, field: str, entry: ledger.Entry, earlier: ledger.Entry | None) -> bool:
        """Write an entry, unless an operator deleted it, or another agent created it, since it was read."""
        with contextlib.suppress(RecordUnavailable):
            if await self._registry.learn(field, entry, new=earlier is None):
                self._ledger[field] = entry
                self._report_ledger()
                return True
        return False

    def forget(self, function: str) -> None:
        """Drop the measurements of a function. The router deletes its entries in the record."""
        declared = self._scheduler.declaration(function)
        revisions = {i.revision for i in self._scheduler.record().instances if i.function == function}
        dropped = ledger.about(self._ledger, function, revisions | ({revision(declared)} if declared else set()))
        self._ledger = {f: e for f, e in self._ledger.items() if f not in dropped}
        self._report_ledger()


class _Unserved(msgspec.Struct, frozen=True):
    """An instance whose reading does not count yet: its entry, when it was ready, when it last existed."""

    field: str
    ready: float
    seen: float


def _has_returned(instance: Instance) -> bool:
    """Whether a ready instance was parked before."""
    return instance.state is State.READY and ledger.returned_from(instance) is not None


def _available_mb() -> int:
    """Return the RAM that is free, and that the limits of the agent's control groups leave."""
    free_mb, limit_mb = psutil.virtual_memory().available // MIB, cgroup.free_mb()
    return free_mb if limit_mb is None else min(free_mb, limit_mb)


def _on_gpu(instance: Instance) -> bool:
    """Whether it is on a GPU of NVML; a declared device may be anything."""
    return any(d.startswith("GPU-") for d in instance.devices)


def _first_device(instance: Instance, devices: tuple[Device, ...]) -> Device | None:
    return next((d for d in devices if d.id in instance.devices), None)
