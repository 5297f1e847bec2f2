"""`just simulate --hosts 1000 --functions 10000 --rate 500`: a real registry, view and activator against a real Redis.

No virtual time: what is measured is the cost of a large record. Agents are values: they write their host's record and
accept, so the figures are those of one router and of Redis.
"""

import asyncio
import gc
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.catalogue import Catalogue
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform import clock
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Device, HostRecord, Instance
from cortex.platform.record_codec import Beat
from cortex.platform.record_codec import beat as heartbeat
from cortex.platform.registry import Registry
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents
from cortex.router.activation.probe import Pulse
from cortex.router.activation.proposer import Proposer
from cortex.router.app import COLLECT_AFTER
from cortex.router.errors import RequestError
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.model_listing import ModelListing
from cortex.router.overview.functions import function_views
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.routes import long_lists
from tests.support.stack import own_redis
from tests.support.stalls import held

READY_PER_HOST, WEIGHTS_PER_HOST = 4, 20
GPU_MB, FUNCTION_MB = 80_000, 6000
LASTS_S = 5.0
CHANGES, READS = 200, 5
TTL_S = 600.0


class Scale(Struct, kw_only=True):
    """The figures. Milliseconds are of CPU time unless they say otherwise."""

    hosts: int
    functions: int
    rate: float
    snapshot_mb: float = 0.0
    """Of all hosts' records in Redis."""
    first_read_ms: float = 0.0
    read_ms: float = 0.0
    """Of the whole record when nothing has changed."""
    read_wall_ms: float = 0.0
    beats_ms: float = 0.0
    """Of the whole record after a heartbeat of every host."""
    change_ms: float = 0.0
    """For a router to read and apply one host's new record."""
    beat_ms: float = 0.0
    """For a router to apply one host's heartbeat, which is in the bell's message."""
    listing_ms: float = 0.0
    """Of `/v1/models`, encoded."""
    one_ms: float = 0.0
    """Of `/v1/models/{id}`, encoded."""
    overview_ms: float = 0.0
    """Of `/admin/functions`, encoded."""
    stall_ms: float = 0.0
    """The longest time for which the two held the router's loop, without other processes' time."""
    cold_per_s: float = 0.0
    """Functions started through claims."""
    start_ms: float = 0.0
    """Of the router's CPU for each."""
    start_wall_ms: dict[str, float] = {}
    refused: int = 0
    peak_mb: int = 0

    def text(self) -> str:
        """Return it for people."""
        late = ", ".join(f"{name} {value:.0f} ms" for name, value in self.start_wall_ms.items())
        each = f"{self.start_ms:.1f} ms of CPU each; {late}"
        return "\n".join(
            [
                f"{self.hosts} hosts, {self.functions} functions, {self.rate:g} cold requests a second",
                f"  the record               {self.snapshot_mb:8.1f} MB in Redis; this process {self.peak_mb} MB",
                f"  read, first              {self.first_read_ms:8.1f} ms of CPU",
                f"  read, nothing changed    {self.read_ms:8.1f} ms of CPU, {self.read_wall_ms:.1f} ms",
                f"  read, all heartbeats     {self.beats_ms:8.1f} ms of CPU",
                f"  one host changed         {self.change_ms:8.2f} ms of CPU",
                f"  one heartbeat            {self.beat_ms:8.3f} ms of CPU",
                f"  /v1/models               {self.listing_ms:8.1f} ms of CPU",
                f"  /admin/functions         {self.overview_ms:8.1f} ms of CPU",
                f"  longest hold of the loop {self.stall_ms:8.1f} ms, by these two",
                f"  /v1/models/{{id}}          {self.one_ms:8.2f} ms of CPU",
                f"  cold starts by claims    {self.cold_per_s:8.1f} a second, {each}",
                f"  refused                  {self.refused:8}",
            ]
        )


def measure(hosts: int, functions: int, rate: float) -> Scale:
    """Fill a Redis of its own with a fleet, and measure."""
    with TemporaryDirectory(prefix="cortex-scale-") as folder, own_redis(Path(folder)) as url:
        return asyncio.run(_measure(url, Scale(hosts=hosts, functions=functions, rate=rate)))


async def _measure(url: str, scale: Scale) -> Scale:
    random = Random(1)
    catalogue = {f"org/model-{n}": _function(n) for n in range(scale.functions)}
    names = list(catalogue)
    records = {h.name: h for h in (_host(n, names, catalogue, random) for n in range(scale.hosts))}
    registry = Registry(url, timeout_s=30.0)
    for record in records.values():
        await registry.publish_host(record, TTL_S)
    scale.snapshot_mb = round(sum(len(msgspec.json.encode(r)) for r in records.values()) / 1e6, 2)
    gc.freeze()  # as a router does: it collects garbage less often
    gc.set_threshold(COLLECT_AFTER, 10, 10)
    view = FleetView(registry, "router-1")
    scale.first_read_ms, _ = await _cost(view.refresh)
    reads = [await _cost(view.refresh) for _ in range(READS)]
    scale.read_ms, scale.read_wall_ms = (round(statistics.median(of), 2) for of in zip(*reads, strict=True))
    scale.beats_ms = await _beats(registry, view, records)
    scale.change_ms = await _changes(registry, view, records)
    scale.beat_ms = await _heartbeats(registry, view, records)
    await _list(scale, catalogue, view)
    await _start(scale, catalogue, registry, view, records)
    scale.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    await registry.close()
    return scale


def _function(number: int) -> Function:
    return Function(id=f"org/model-{number}", engine=Engine.FAKE, vram_mb=FUNCTION_MB)


def _host(number: int, names: list[str], catalogue: dict[str, Function], random: Random) -> HostRecord:
    name = f"host-{number:04}"
    devices = tuple(Device(id=f"{name}-GPU-{n}", name="80 GB", kind="gpu", total_mb=GPU_MB) for n in range(2))
    instances = tuple(
        Instance(
            id=f"{number:08x}{n:08x}",
            function=(chosen := random.choice(names)),
            revision=revision(catalogue[chosen]),
            state=State.READY,
            since=1.0,
            created=1.0,
            ready=1.0,
            devices=(devices[n % 2].id,),
            memory_mb=FUNCTION_MB,
            url=f"http://10.0.0.1:{20_000 + n}",
            phases={"placing": 0.01, "starting": 1.5, "loading": 31.5, "compiling": 11.2},
        )
        for n in range(READY_PER_HOST)
    )
    return HostRecord(
        name=name,
        address=f"http://{name}:13131",
        at=clock.now(),
        agent=f"{number:016x}",
        home=f"home-{number}",
        sequence=1,
        change=f"{number:016x}.1",
        engines={"fake": "1"},
        devices=devices,
        instances=instances,
        weights={f: 12_000 for f in random.sample(names, min(WEIGHTS_PER_HOST, len(names)))},
    )


async def _cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and wall time of a call in milliseconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    await work()  # type: ignore[misc]
    return round((time.process_time() - cpu) * 1000, 2), round((time.perf_counter() - wall) * 1000, 2)


def _beat(record: HostRecord) -> HostRecord:
    return replace(record, at=clock.now(), sequence=record.sequence + 1)


def _again(record: HostRecord) -> HostRecord:
    return replace(_beat(record), change=f"{record.agent}.{record.sequence + 1}")


async def _beats(registry: Registry, view: FleetView, records: dict[str, HostRecord]) -> float:
    for name, record in records.items():
        records[name] = _beat(record)
        await registry.publish_host(records[name], TTL_S)
    return (await _cost(view.refresh))[0]


async def _changes(registry: Registry, view: FleetView, records: dict[str, HostRecord]) -> float:
    spent = []
    for name in [*list(records)[:CHANGES], *list(records)[:CHANGES]]:  # the first time corrects the clocks' difference
        records[name] = _again(records[name])
        await registry.publish_host(records[name], TTL_S)

        async def hear(name: str = name) -> None:
            view.apply_host(name, await registry.host(name, clock.now()))

        spent.append((await _cost(hear))[0])
    return round(statistics.median(spent[len(spent) // 2 :]), 3)


async def _heartbeats(registry: Registry, view: FleetView, records: dict[str, HostRecord]) -> float:
    """Have the router hear a heartbeat of each host that it has read."""
    messages = []
    for name in list(records)[:CHANGES]:
        record = records[name] = _beat(records[name])
        messages.append(Beat(record.sequence, record.at, record.change, name).message())

    async def hear() -> None:
        for message in messages:
            beat = heartbeat(message.removeprefix("beat:"))
            assert beat is not None
            record = registry.after(beat, clock.now())
            assert record is not None
            view.apply_host(beat.host, record)

    return round((await _cost(hear))[0] / len(messages), 3)


async def _list(scale: Scale, catalogue: dict[str, Function], view: FleetView) -> None:
    declared = Catalogue(functions=catalogue, aliases={})
    revisions = {f: revision(function) for f, function in catalogue.items()}
    random, listing = Random(2), ModelListing(0)

    async def models() -> None:
        async for _ in long_lists.slices("data", listing.every(catalogue.items(), view.fleet)):
            pass

    async def overview() -> None:
        snapshot = FleetSnapshot(catalogue=declared, revisions=revisions, fleet=view.fleet, now=clock.now())
        async for _ in long_lists.slices("functions", function_views(snapshot, Index(snapshot))):
            pass

    async def one() -> None:
        function = random.choice(list(catalogue.values()))
        listing.one(function.id, function, view.fleet, None)

    scale.one_ms = round(statistics.median([(await _cost(one))[0] for _ in range(READS)]), 2)
    for _ in range(2):  # the first time computes what follows from the catalogue alone
        async with held(own=True) as longest:
            scale.listing_ms, _wall = await _cost(models)
            scale.overview_ms, _wall = await _cost(overview)
        scale.stall_ms = round(longest() * 1000, 1)


async def _start(
    scale: Scale, catalogue: dict[str, Function], registry: Registry, view: FleetView, records: dict[str, HostRecord]
) -> None:
    """Offer cold functions at the rate for `LASTS_S`, each its own claim."""
    running = {i.function for h in records.values() for i in h.instances}
    cold = [f for f in catalogue.values() if f.id not in running][: round(scale.rate * LASTS_S)]
    agents = _ValueAgents(registry, records)
    in_flight = InFlight("router-1")
    activator = Activator(view, registry, Proposer(view, agents, in_flight), in_flight, _Declared(), _Well())
    waited: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()

    async def one(number: int, function: Function) -> None:
        due = number / scale.rate
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        target = Target(function, revision(function))
        try:
            await activator.ensure(lambda: target)
            waited.append((time.perf_counter() - began - due) * 1000)
        except RequestError:
            scale.refused += 1

    tasks = [asyncio.create_task(one(n, f)) for n, f in enumerate(cold)]
    _, late = await asyncio.wait(tasks, timeout=3 * LASTS_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    lasted_s = time.perf_counter() - began
    scale.cold_per_s = round(len(waited) / lasted_s, 1)
    scale.start_ms = round((time.process_time() - cpu) * 1000 / max(1, len(waited)), 2)
    scale.refused += len(late)
    if waited:
        ordered = sorted(waited)
        scale.start_wall_ms = {
            "median": round(statistics.median(ordered), 1),
            "p95": round(ordered[int(len(ordered) * 0.95)], 1),
            "longest": round(ordered[-1], 1),
        }


class _ValueAgents(Agents):
    """Agents that accept, and whose record shows it before they answer."""

    def __init__(self, registry: Registry, records: dict[str, HostRecord]) -> None:
        self._registry, self._records, self._number = registry, records, 0

    async def ensure(self, host: HostRecord, request: Ensure) -> Accepted | Rejected:
        """Accept."""
        self._number += 1
        record, function = self._records[host.name], request.function
        instance = Instance(
            id=f"{self._number:016x}", function=function.id, revision=revision(function), state=State.STARTING,
            since=1.0, created=1.0, devices=(record.devices[0].id,), memory_mb=1,
        )  # fmt: skip
        record = self._records[host.name] = _again(replace(record, instances=(*record.instances, instance)))
        await self._registry.publish_host(record, TTL_S)
        return Accepted(instance.id, State.STARTING)


class _Declared:
    digest = ""

    def get(self, name: str) -> Target | None:
        return None

    async def change(self, timeout_s: float, *others: object) -> None:
        pass


class _Well:
    async def pulse(self, instance: Instance) -> Pulse:
        return Pulse.WELL
