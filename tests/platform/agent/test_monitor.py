"""What an agent learns of its instances: measured where the device tells, counted once they served, and forgotten
when an operator says so. Redis, the scheduler and the ledger are real."""

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.agent.monitor import HostMonitor
from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.host.devices import Reading
from cortex.platform.record import Device, Held, Instance, Tier, used_instance
from cortex.platform.registry import Registry
from cortex.platform.scheduling import ledger
from cortex.platform.scheduling.admission import need_of
from cortex.platform.scheduling.events import Event
from cortex.platform.scheduling.ledger import SERVED_S, Entry
from cortex.platform.scheduling.saved_state import LocalWeights, SavedWorker
from cortex.platform.settings import Settings
from cortex.platform.workers import process
from tests.support.factories import a_device, a_fleet, a_function, a_host, a_report, an_instance
from tests.support.scheduling import RULES, SchedulerDriver
from tests.support.stack import own_redis

READY, PID, DECLARED = 1000.0, 4711, 8000
CPU, DECLARED_GPU = a_device("cpu", 32_000, kind="cpu"), a_device("gpu-0", 24_000)
NVIDIA = a_device("GPU-1", 24_000)
F = a_function("f", engine=Engine.COMMAND, command=("serve",), vram_mb=DECLARED)


class Workers:
    """A supervisor whose workers hold what the test says, of RAM."""

    def __init__(self) -> None:
        self.looks = BlockingCalls(0.2)
        self.ram_mb: dict[str, int] = {}
        self.sick: set[str] = set()
        self.checked: list[str] = []
        self.health = self

    def forget_misses(self, present: Any) -> None:
        pass

    async def check(self, instance: Instance) -> None:
        self.checked.append(instance.id)
        if instance.id in self.sick:
            raise RuntimeError(f"{instance.id} cannot be checked")

    async def check_parked(self, instance: Instance) -> None:
        self.checked.append(f"parked {instance.id}")

    async def freeze_problem(self) -> str:
        return "there is no driver"

    async def used_mb(self, instance: Instance, engine: str) -> int | None:
        if instance.id in self.sick:
            raise RuntimeError(f"{instance.id} cannot be measured")
        return self.ram_mb.get(instance.id)


class Hardware:
    """Devices of which NVML tells what the test says."""

    def __init__(self, device: Device) -> None:
        self.reading = Reading(devices=(device,), unlisted=frozenset({device.id}))

    async def read(self) -> Reading:
        return self.reading


class Scene:
    """An agent's monitor on a host with one device."""

    def __init__(self, registry: Registry, device: Device, folder: Path) -> None:
        own = replace(Settings().agent, log_dir=str(folder / "logs"), cache_dir=str(folder / "cache"), health_s=0.1)
        self.registry, self.device = registry, device
        self.workers, self.hardware = Workers(), Hardware(device)
        self.scheduler = SchedulerDriver(a_host(devices=(device,)), RULES)
        self.receive()
        settings: Any = replace(Settings(), agent=own)
        hardware: Any = self.hardware
        workers: Any = self.workers
        self.monitor = HostMonitor(settings, hardware, workers, registry, self.scheduler.scheduler, self.tell)

    def tell(self, event: Event) -> None:
        self.scheduler.handle(event, READY)

    def receive(self, **used: float) -> None:
        """Have the record say when instances were last used."""
        uses = {used_instance(i): at for i, at in used.items()}
        self.scheduler.reported(a_fleet(a_report(), used=uses), READY)

    def serves(self, *names: str, function: Function = F, ram_mb: int = 0, **more: Any) -> None:
        """Have instances serve since READY."""
        for name in names:
            instance = an_instance(
                name, function=function.id, ready=READY, revision=revision(function), devices=(self.device.id,),
                pid=PID, started=READY - 5.0, phases={"starting": 5.0}, **more,
            )  # fmt: skip
            worker = SavedWorker(instance, function, LocalWeights("/w", 10))
            self.scheduler.adopt(worker, READY, alive=True, healthy=True)
            self.workers.ram_mb[name] = ram_mb

    def ends(self, name: str) -> None:
        """Have an instance end."""
        self.scheduler.exited(name, "exited with code 0", (), READY)
        self.scheduler.reclaimed(name, READY)

    async def entry(self, function: Function = F) -> Entry | None:
        return (await self.registry.ledger()).get(ledger.key(revision(function), self.device))

    async def placed(self, function: Function = F) -> tuple[int, str]:
        """Return by what memory another instance would be started, and where that number is from."""
        await self.monitor.check_once()
        wanted = need_of(self.scheduler.scheduler.state, function, None)
        return wanted.memory_mb, wanted.memory_from

    async def used_mb(self, name: str = "one") -> int | None:
        await self.monitor.check_once()
        return next(i.used_mb for i in self.scheduler.record().instances if i.id == name)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("r")) as url:
        yield url


@pytest.fixture
async def registry(redis_url: str) -> AsyncIterator[Registry]:
    registry = Registry(redis_url)
    await registry.unlearn(await registry.ledger())
    yield registry
    await registry.close()


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker is one process, PID."""
    monkeypatch.setattr(process, "families", lambda pids: {pid: instance for instance, pid in pids.items()})


async def test_the_memory_of_a_cpu_instance_is_its_ram(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", ram_mb=9000)

    assert await scene.used_mb() == 9000
    assert await scene.placed() == (9000, "measured")


async def test_the_cache_that_a_worker_logged_is_recorded_with_its_memory(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", ram_mb=9000, cache_mb=3000)

    await scene.monitor.check_once()

    entry = await scene.entry()
    assert entry is not None
    assert [(r.memory_mb, r.cache_mb) for r in entry.readings] == [(9000, 3000)]


async def test_without_nvml_a_gpu_instance_is_not_measured_by_its_ram(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, DECLARED_GPU, tmp_path)
    scene.serves("one", ram_mb=9000)

    assert await scene.used_mb() is None
    assert await scene.placed() == (DECLARED, "declared")
    entry = await scene.entry()
    assert entry is not None
    assert (entry.memory_mb, entry.starts) == (0, 1)


@pytest.mark.parametrize(
    ("readings", "used_mb"),
    [
        pytest.param((9000,), 9000, id="all"),
        pytest.param((None,), None, id="listed without its memory, as on WSL"),
        pytest.param((5000, None), None, id="of one process and not of the other"),
        pytest.param((), None, id="not listed, as in a container"),
    ],
)
async def test_gpu_memory_is_recorded_only_if_nvml_reports_every_process(
    registry: Registry, tmp_path: Path, readings: tuple[int | None, ...], used_mb: int | None
) -> None:
    scene = Scene(registry, NVIDIA, tmp_path)
    scene.serves("one", ram_mb=700)
    held = tuple(Held(device=NVIDIA.id, pid=PID, command="python", memory_mb=mb) for mb in readings)
    scene.hardware.reading = Reading(devices=(NVIDIA,), held=held, unlisted=frozenset({NVIDIA.id}))

    assert await scene.used_mb() == used_mb


async def test_the_memory_of_an_idle_worker_does_not_lower_a_declaration(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", ram_mb=700)
    idle = await scene.placed()

    scene.receive(one=READY + 1.0)
    just_used = await scene.placed()
    scene.workers.ram_mb["one"] = 6500
    scene.receive(one=READY + SERVED_S)
    used_for_a_while = await scene.placed()

    assert idle == just_used == (DECLARED, "declared")
    assert used_for_a_while == (6500, "measured")


@pytest.mark.parametrize(("last_use", "placed"), [(READY + 1.0, (700, "measured")), (0.0, (DECLARED, "declared"))])
async def test_the_memory_of_an_ended_worker_counts_if_it_served(
    registry: Registry, tmp_path: Path, last_use: float, placed: tuple[int, str]
) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", ram_mb=700)
    await scene.monitor.check_once()

    scene.ends("one")
    scene.receive(one=last_use)
    await scene.monitor.check_once()
    scene.receive()  # the record drops last uses after a while

    assert await scene.placed() == placed


async def test_a_deleted_ledger_entry_is_not_written_again(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", ram_mb=9000)
    await scene.monitor.check_once()
    before = await scene.placed()
    scene.ends("one")

    await registry.unlearn(await registry.ledger())
    scene.monitor.forget("f")
    at_once = need_of(scene.scheduler.scheduler.state, F, None).memory_mb

    assert before == (9000, "measured")
    assert at_once == DECLARED
    assert await scene.placed() == (DECLARED, "declared")
    assert await registry.ledger() == {}


async def test_a_running_worker_is_measured_again_without_counting_its_start_again(
    registry: Registry, tmp_path: Path
) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", ram_mb=9000)
    await scene.monitor.check_once()
    scene.workers.ram_mb["one"] = 8500

    await registry.unlearn(await registry.ledger())
    scene.monitor.forget("f")
    await scene.monitor.check_once()

    entry = await scene.entry()
    assert entry is not None
    assert (entry.memory_mb, entry.starts, entry.function) == (8500, 0, "f")


async def test_a_ledger_entry_deleted_since_the_read_is_not_written(registry: Registry) -> None:
    assert await registry.learn("r|cpu", Entry(memory_mb=1), new=False) is False
    assert await registry.learn("r|cpu", Entry(memory_mb=2), new=True) is True
    assert await registry.learn("r|cpu", Entry(memory_mb=3), new=True) is False
    assert await registry.learn("r|cpu", Entry(memory_mb=4), new=False) is True

    assert await registry.ledger() == {"r|cpu": Entry(memory_mb=4)}


async def test_an_exception_for_one_instance_does_not_stop_the_round(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("one", "two", "three", ram_mb=9000)
    scene.workers.sick = {"two"}

    with pytest.raises(ExceptionGroup) as caught:
        await scene.monitor.check_once()

    assert "two cannot be measured" in str(caught.value.exceptions) + str(
        [getattr(e, "exceptions", ()) for e in caught.value.exceptions]
    )
    assert scene.workers.checked == ["one", "two", "three"]
    assert {i.id: i.used_mb for i in scene.scheduler.record().instances} == {"one": 9000, "two": None, "three": 9000}


async def test_a_path_that_does_not_answer_is_reported_with_the_functions_that_need_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.platform.blocking_calls.SPARE_S", 0.0)
    scene, back = Scene(registry, CPU, tmp_path), threading.Event()
    stuck = Function(id="stuck", engine=Engine.LLAMACPP, source="/mnt/m.gguf")
    scene.scheduler.apply_catalogue({"stuck": stuck, "f": F}, "digest", READY)
    with pytest.raises(OSError, match="does not answer"):
        await scene.workers.looks.look("/mnt/m.gguf", "stat", back.wait)

    await scene.monitor.check_once()
    silent = scene.scheduler.record()
    back.set()
    while scene.workers.looks.silent():
        for thread in threading.enumerate():
            if thread.name == "look stat":
                thread.join(5)
        await scene.monitor.check_once()
    await scene.monitor.check_once()

    assert list(silent.silent) == ["/mnt/m.gguf"]
    assert silent.unreadable == {"stuck": "/mnt/m.gguf does not answer"}
    assert (scene.scheduler.record().silent, scene.scheduler.record().unreadable) == ({}, {})


async def test_parked_instances_are_checked_on_every_round(registry: Registry, tmp_path: Path) -> None:
    scene = Scene(registry, CPU, tmp_path)
    scene.serves("ready")
    sleeper = an_instance("sleeper", state=State.SLEEPING, parked=Tier.SLEEP, parks_to=Tier.SLEEP, pid=PID)
    worker = SavedWorker(sleeper, F, LocalWeights("/w", 10))
    scene.scheduler.adopt(worker, READY, alive=True, healthy=True, asleep=True)

    await scene.monitor.check_once()

    assert scene.workers.checked == ["ready", "parked sleeper"]
