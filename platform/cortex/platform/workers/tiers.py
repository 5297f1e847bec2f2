"""Moves a worker's memory off its devices and back: the effects `Park` and `Wake`.

Each ends in one event. The scheduler stops a worker that was left half-way; it never serves.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import structlog
from msgspec.structs import replace

from cortex.functions.servers import server_of
from cortex.functions.spec import Engine, Function
from cortex.platform.record import Held, HostRecord, Instance, ProcessId, Tier
from cortex.platform.scheduling import events
from cortex.platform.scheduling.effects import Park, Wake
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.workers import process
from cortex.platform.workers.checkpoint import FreezeFailed, Freezer, Recovery
from cortex.platform.workers.checkpoint_driver import FreezeProblem
from cortex.platform.workers.control_keys import ControlKeys
from cortex.platform.workers.probe import Probe
from cortex.platform.workers.sleep_mode import SleepFailed, SleepMode

log = structlog.get_logger()

MOVE_S, SLOWEST_MB_S = 60.0, 500.0
"""Time limit of a call that moves memory: this, and the time for the weights at this speed. The scheduler gives up a
worker that was measured sooner (`move_limit_s`)."""
PROOF_S = 30.0
"""Time limit of the first request after a return."""

HolderReading = Callable[[], Awaitable[Sequence[Held] | None]]
"""Returns who holds device memory, by a fresh reading; None: it cannot be read."""


class Tiers:
    """Parks and wakes the workers of one host."""

    def __init__(
        self,
        probe: Probe,
        control: ControlKeys,
        freezer: Freezer,
        holders: HolderReading,
        record: Callable[[], HostRecord],
        scratch: Callable[[str], Path],
        tell: Callable[[Event], None],
    ) -> None:
        self._probe, self._sleep_mode, self._freezer = probe, SleepMode(control), freezer
        self._holders, self._record, self._scratch, self._tell = holders, record, scratch, tell
        self._locked: set[str] = set()
        """The instances whose processes the driver may have locked: a freeze or a restore has begun."""

    def may_be_locked(self, instance: Instance) -> bool:
        """Whether the driver may have locked a worker's processes, so that they handle no signal but KILL."""
        return instance.id in self._locked or instance.parked is Tier.FREEZE

    def forget(self, instance: str) -> None:
        """Forget a worker that has ended."""
        self._locked.discard(instance)
        self._freezer.forget(instance)

    async def park(self, effect: Park) -> None:
        """Move an idle worker's memory to RAM: put it to sleep, freeze it, or do both in this order."""
        instance, function = effect.instance, effect.function
        if instance.parked is None and Tier.FREEZE in instance.tiers:
            await self._store_canary(instance, function)
        began, ram_mb, device_mb = time.monotonic(), instance.ram_mb, 0
        try:
            if instance.parked is None and (effect.tier is Tier.SLEEP or instance.sleeps):
                ram_mb = await self._sleep(instance, function)
            if effect.tier is Tier.FREEZE:
                moved_mb = await self._freeze(instance, function)
                # What a sleep took that nothing measures is not 0: the record keeps what it has reserved.
                ram_mb = ram_mb + moved_mb if ram_mb or not instance.sleeps else 0
                device_mb = -(-moved_mb // max(1, len(instance.devices))) if instance.sleeps else 0
        except SleepFailed as error:
            self._tell(events.ParkFailed(instance.id, effect.tier, str(error)))
            return
        except FreezeFailed as error:
            self._tell(events.ParkFailed(instance.id, Tier.FREEZE, self._for_these_builds(error, function)))
            return
        took_s = time.monotonic() - began
        if effect.tier is not Tier.FREEZE:
            device_mb = instance.parked_mb if instance.ram_mb else await self._device_mb(instance, function)
        log.info("worker_parked", function=function.id, instance=instance.id, tier=str(effect.tier), s=round(took_s, 3))
        self._tell(events.Parked(instance.id, effect.tier, device_mb, ram_mb, round(took_s, 3)))

    async def wake(self, effect: Wake) -> None:
        """Move a parked worker's memory back, and prove that it serves."""
        instance, function = effect.instance, effect.function
        try:
            if effect.tier is Tier.FREEZE:
                self._locked.add(instance.id)
                await self._freezer.restore(_leader(instance), instance.id)
                self._locked.discard(instance.id)
            # It slept before it was frozen, if its engine can.
            if effect.tier is Tier.SLEEP or (instance.sleeps and await self._sleep_mode.is_sleeping(instance)):
                await self._sleep_mode.wake(instance, self._within_s(function))
            if effect.tier is Tier.FREEZE:
                await self._compare_canary(instance, function)
            else:
                await self._prove(instance, function)
        except (SleepFailed, FreezeFailed) as error:
            self._tell(events.StartFailed(instance.id, f"it did not return from {effect.tier}: {error}"))
            return
        log.info("worker_returned", function=function.id, instance=instance.id, tier=str(effect.tier))
        self._tell(events.Answered(instance.id))

    async def examine(self, worker: SavedWorker) -> tuple[SavedWorker, bool | None]:
        """Return an earlier agent's worker with the tier that it is in, and whether it is parked; None: it does not
        answer, was left half-way, or computes something else than before it was frozen."""
        instance = worker.instance
        if Tier.FREEZE in (instance.parked, instance.parks_to) and instance.process is not None:
            self._locked.add(instance.id)
            recovered = await self._freezer.recover(instance.process, instance.id)
            if recovered.state is Recovery.FROZEN:
                return replace(worker, instance=replace(instance, parked=Tier.FREEZE)), True
            if recovered.state is Recovery.BROKEN:
                log.warning(
                    "worker_not_recovered", function=instance.function, instance=instance.id, why=recovered.text
                )
                return worker, None
            self._locked.discard(instance.id)
        asleep = await self._sleep_mode.is_sleeping(instance) if instance.sleeps else False
        if asleep:
            return replace(worker, instance=replace(instance, parked=Tier.SLEEP)), True
        if asleep is False and instance.parks_to is Tier.FREEZE and self._canary(instance).exists():
            with contextlib.suppress(FreezeFailed):
                await self._compare_canary(instance, worker.function)
                return worker, False
            return worker, None
        return worker, asleep

    async def _sleep(self, instance: Instance, function: Function) -> int:
        """Put an engine to sleep. Return the RAM that it holds then. Raises SleepFailed.

        It pins RAM at its first sleep and keeps it, so only then it is measured, which takes as long as a sleep.
        """
        if instance.ram_mb:
            await self._sleep_mode.sleep(instance, self._within_s(function))
            return instance.ram_mb
        resident_mb = await asyncio.to_thread(process.resident_mb, instance.pid) or 0
        await self._sleep_mode.sleep(instance, self._within_s(function))
        grown_mb = (await asyncio.to_thread(process.resident_mb, instance.pid) or 0) - resident_mb
        # The kernel may not count memory that the driver has pinned as resident.
        return max(instance.ram_mb, grown_mb, self._weights_mb(function))

    async def _freeze(self, instance: Instance, function: Function) -> int:
        """Freeze a worker. Return the RAM that its device memory takes. Raises FreezeFailed."""
        if not self._canary(instance).exists():
            raise FreezeFailed(FreezeProblem.CANARY, "it did not answer its canary, so its return could not be proved")
        self._locked.add(instance.id)
        try:
            return await self._freezer.freeze(_leader(instance), instance.id, partial(self._used, instance, function))
        except FreezeFailed as error:
            if error.runs:
                self._locked.discard(instance.id)
            raise

    async def _store_canary(self, instance: Instance, function: Function) -> None:
        """Store what the worker computes before it is first parked; nothing, if it does not answer."""
        path = self._canary(instance)
        if not path.exists() and (digest := await self._probe.canary(instance, server_of(function, instance.server))):
            process.write_private(path, digest.encode())

    async def _compare_canary(self, instance: Instance, function: Function) -> None:
        """Raise FreezeFailed if a worker does not compute the same as before it was first parked."""
        digest = await self._probe.canary(instance, server_of(function, instance.server))
        if not digest:
            raise FreezeFailed(FreezeProblem.CANARY, "it does not answer its canary after the restore")
        if digest != self._canary(instance).read_text():
            raise FreezeFailed(FreezeProblem.CANARY, "its first tokens differ from those before it was frozen")

    def _canary(self, instance: Instance) -> Path:
        """Return the path of the digest, in the worker's temporary directory: it lasts as long as the worker."""
        return self._scratch(instance.id).with_name("canary")

    async def _used(self, instance: Instance, function: Function) -> Mapping[int, int] | None:
        """Return the device memory by process; None if it cannot be read. Unknown memory counts as 1 MiB."""
        if function.engine is Engine.FAKE:
            mb = await asyncio.to_thread(process.number_in, self._scratch(instance.id))
            return None if mb is None else {instance.pid: mb}
        holders = await self._holders()
        if holders is None:
            return None
        used: dict[int, int] = {}
        for held in holders:
            used[held.pid] = used.get(held.pid, 0) + (1 if held.memory_mb is None else held.memory_mb)
        return used

    def _for_these_builds(self, failure: FreezeFailed, function: Function) -> str:
        """Return the reason of a failure with the builds for which it holds."""
        engine = self._record().engines.get(function.engine, "")
        driver = f"driver {self._freezer.version}" if self._freezer.version else ""
        builds = ", ".join(filter(None, (driver, f"{function.engine} {engine}".strip())))
        return f"{failure} ({builds})"

    async def _prove(self, instance: Instance, function: Function) -> None:
        """Send the request of one token. Raises SleepFailed."""
        status = await self._probe.status(instance, server_of(function, instance.server).dialects, PROOF_S)
        if status is None:
            raise SleepFailed(f"it did not answer a request of one token within {PROOF_S:.0f} s")
        if not status or status >= 500:
            raise SleepFailed(f"it answered {status or 'nothing'} to a request of one token")

    async def _device_mb(self, instance: Instance, function: Function) -> int:
        """Return the memory that a worker still holds on each of its devices; the estimate where nothing measures."""
        if function.engine is Engine.FAKE:
            total_mb = await asyncio.to_thread(process.number_in, self._scratch(instance.id)) or 0
            return -(-total_mb // max(1, len(instance.devices)))
        holders = await self._holders()
        if holders is None:
            return instance.parked_mb
        family = await asyncio.to_thread(process.families, {instance.id: instance.pid})
        on_each = dict.fromkeys(instance.devices, 0)
        for held in holders:
            if held.pid in family and held.device in on_each:
                on_each[held.device] += held.memory_mb or 0
        return max(on_each.values(), default=0) or instance.parked_mb  # a sleeper holds at least its context

    def _weights_mb(self, function: Function) -> int:
        return self._record().weights.get(function.id, 0)

    def _within_s(self, function: Function) -> float:
        return MOVE_S + self._weights_mb(function) / SLOWEST_MB_S


def _leader(instance: Instance) -> ProcessId:
    """Return the process of a worker. Raises FreezeFailed."""
    if instance.process is None:
        raise FreezeFailed(FreezeProblem.GONE, "it has no process")
    return instance.process
