"""Looks after what runs: reads the devices, checks ready workers' health, learns what they really take.

It decides nothing. What it sees is told to the scheduler; what is worth knowing for the next start goes into the
ledger. What the weights here say about their models is told too, for clients that ask before anything runs.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from cortex.functions.capabilities import Known
from cortex.functions.lifecycle import LIVE, State
from cortex.functions.spec import Engine, Function
from cortex.platform.host.devices import Devices, Reading, accounted
from cortex.platform.record import Device, Instance
from cortex.platform.registry import RecordAway, Registry
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.settings import Settings
from cortex.platform.weights import store as weights
from cortex.platform.weights.model_facts import ModelFacts
from cortex.platform.workers import log_files, process
from cortex.platform.workers.supervisor import Supervisor, Tell

log = structlog.get_logger()

SETTLED_S = 5.0
"""How long after it is ready a worker must show up on its GPU."""


STUDY_S = 60.0
"""How often the weights are looked at again: they may come and go without the catalogue changing."""


class Caretaker:
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
        """Go round for ever."""
        while True:
            await self.measure()
            with contextlib.suppress(RecordAway):
                self._ledger = await self._registry.ledger()
                known = ledger.for_host(self._ledger, self._scheduler.record().devices)
                self._tell(lambda s, _, known=known: s.learned(known))  # type: ignore[misc]
            ready = [i for i in self._scheduler.record().instances if i.state is State.READY]
            self._supervisor.forget_misses({i.id for i in ready})
            await asyncio.gather(*(self._supervisor.check(i) for i in ready))
            held = await self._held(ready)
            for instance in ready:
                await self._learn(instance, held.get(instance.id))
            running = frozenset(i.function for i in self._scheduler.record().instances if i.state in LIVE)
            if running - self._running:  # weights that were fetched for it are new here
                self.curious.set()
            self._running = running
            await asyncio.to_thread(log_files.trim, Path(self._settings.agent.log_dir))
            await asyncio.sleep(self._settings.agent.health_s)

    async def study(self) -> None:
        """Learn what the weights on this host say, whenever there may be news, for ever."""
        while True:
            functions = self._scheduler.catalogue().values()
            found = await asyncio.to_thread(self._studied, list(functions))
            if found != self._scheduler.record().models:
                self._tell(lambda s, _, found=found: s.studied(found))  # type: ignore[misc]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STUDY_S):
                    await self.curious.wait()
            self.curious.clear()

    def _studied(self, functions: Iterable[Function]) -> dict[str, Known]:
        cache = Path(self._settings.agent.cache_dir)
        found: dict[str, Known] = {}
        for function in functions:
            with contextlib.suppress(weights.WeightsUnavailable, OSError):
                here = weights.find(function, cache)
                known = self._facts.of(function, here.path) if here else None
                if known is not None:
                    found[function.id] = known
        return found

    def _pids(self) -> dict[str, int]:
        return {i.id: i.pid for i in self._scheduler.record().instances if i.pid}

    async def _held(self, ready: list[Instance]) -> Mapping[str, int]:
        """Return by instance the GPU memory its processes hold, in MiB, as far as NVML tells."""
        if not self.reading.held and not any(_on_gpu(i) for i in ready):
            return {}
        families = await asyncio.to_thread(process.families, self._pids())
        held: dict[str, int] = {}
        present = set()
        for one in self.reading.held:
            if holder := families.get(one.pid):
                present.add(holder)
                held[holder] = held.get(holder, 0) + (one.memory_mb or 0)
        for instance in ready:
            self._tell_if_misplaced(instance, present)
        return held

    def _tell_if_misplaced(self, instance: Instance, present: set[str]) -> None:
        """A worker that should be on a GPU and is not computes on the CPU in silence: it must not go on."""
        sure = not self.reading.problem and not self.reading.unlisted.intersection(instance.devices)
        settled = time.time() - instance.ready > SETTLED_S
        function = self._scheduler.function_of(instance.id)
        pretends = function is None or function.engine is Engine.FAKE
        if sure and settled and not pretends and _on_gpu(instance) and instance.id not in present:
            self._tell(lambda s, now: s.misplaced(instance.id, now))

    async def _learn(self, instance: Instance, held_mb: int | None) -> None:
        """Write down what an instance took, when that says something new."""
        function = self._scheduler.function_of(instance.id)
        if function is None:
            return
        used_mb = held_mb or await self._supervisor.used_mb(instance, function.engine)
        device = _first_device(instance, self._scheduler.record().devices)
        if device is None:
            return
        field = ledger.key(instance.revision, device)
        known, entry = self._ledger.get(field), None
        if used_mb:
            self._tell(lambda s, _: s.used(instance.id, used_mb))
            entry = ledger.with_memory(known, used_mb, time.time())
        if instance.phases and (known is None or known.started_at < instance.ready):
            start_s = instance.ready - instance.started
            entry = ledger.with_start(entry or known, start_s, instance.phases, instance.ready, time.time())
        if entry is not None:
            self._ledger[field] = entry
            with contextlib.suppress(RecordAway):
                await self._registry.learn(field, entry)


def _on_gpu(instance: Instance) -> bool:
    """Whether it is on a GPU that NVML knows; a declared one may be anything."""
    return any(d.startswith("GPU-") for d in instance.devices)


def _first_device(instance: Instance, devices: tuple[Device, ...]) -> Device | None:
    return next((d for d in devices if d.id in instance.devices), None)
