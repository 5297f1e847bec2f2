"""Parking to the frozen tier and returns from it, with a fake engine, its sleep mode and a driver of the tests."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function
from cortex.platform import worker_http
from cortex.platform.keys import HostToken
from cortex.platform.process import process_id
from cortex.platform.process.environment import MARKER
from cortex.platform.record import Held, HostRecord, Instance, Tier
from cortex.platform.scheduling.effects import Park, Wake
from cortex.platform.scheduling.events import Answered, Event, Parked, ParkFailed, StartFailed
from cortex.platform.scheduling.saved_state import LocalWeights, SavedWorker
from cortex.platform.workers.checkpoint import Freezer
from cortex.platform.workers.control_keys import ControlKeys
from cortex.platform.workers.probe import Probe
from cortex.platform.workers.tiers import Tiers
from tests.support import cuda_double
from tests.support.cuda_double import Card
from tests.support.factories import an_instance
from tests.support.until import until

pytestmark = pytest.mark.skipif(cuda_double.COMPILER is None, reason="needs a C compiler for the driver's double")

F = Function(id="f", engine=Engine.FAKE, vram_mb=1000)
MEMORY_MB, ASLEEP_MB, WEIGHTS_MB = 1000, 200, 300


class Worker:
    """A fake engine, and the part of its agent that moves its memory."""

    def __init__(self, folder: Path, card: Card) -> None:
        (folder / "token").write_text("a-token-of-this-test")
        self.card, self.token, self.events = card, HostToken.of_fleet(folder / "token", "a"), list[Event]()
        self.control, self.probe, self.freezer = ControlKeys(folder / "state"), Probe(self.token), Freezer()
        self._folder = folder
        self.weights = {"f": WEIGHTS_MB}
        self.tiers = self.next_agent()

    def next_agent(self) -> Tiers:
        """Return what an agent started later has."""
        record = HostRecord(name="a", address="http://x", engines={"fake": "1.0"}, weights=self.weights)
        return Tiers(
            self.probe, self.control, self.freezer, self.no_holders, lambda: record, self.scratch, self.events.append
        )

    async def no_holders(self) -> tuple[Held, ...]:
        return ()

    def scratch(self, instance: str) -> Path:
        return self._folder / "scratch"

    async def start(self, *options: str, sleeps: bool = True) -> Instance:
        """Start the engine, and wait until it is ready."""
        id_, log = secrets.token_hex(8), (self._folder / "log").open("wb")
        env = {
            **os.environ,
            MARKER: id_,
            "CORTEX_WORKER_KEY": self.token.worker_key(id_),
            "CORTEX_CONTROL_KEY": self.control.key(id_),
            "CORTEX_FAKE_MEMORY_FILE": str(self.scratch(id_)),
        }
        memory = (f"--memory-mb={MEMORY_MB}", f"--asleep-mb={ASLEEP_MB}")
        command = (sys.executable, "-m", "cortex.platform.fake_engine", "--model=f", "--port=0", *memory, *options)
        self.child = subprocess.Popen(command, env=env, stderr=log, start_new_session=True)  # noqa: ASYNC220
        log.close()
        process = process_id.identify(self.child.pid)
        assert process
        async with asyncio.timeout(20):
            text = await until(lambda: (self._folder / "log").read_text().partition("Listening on ")[2])
            instance = an_instance(
                id_,
                function="f",
                memory_mb=MEMORY_MB,
                state=State.PARKING,
                pid=process.pid,
                boot=process.boot,
                process_ticks=process.ticks,
                url=text.split()[0],
                server="fake",
                health_path="/health",
                tiers=(Tier.SLEEP, Tier.FREEZE) if sleeps else (Tier.FREEZE,),
                sleeps=sleeps,
                parks_to=Tier.FREEZE,
            )
            while await self.probe.served_models(instance) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return instance

    async def script(self, instance: Instance, **changes: object) -> None:
        """Change the engine's script."""
        headers = worker_http.headers(self.token.worker_key(instance.id))
        async with (
            worker_http.session() as http,
            http.post(f"{instance.url}/fake", json=changes, headers=headers) as answer,
        ):
            assert answer.status == 200

    async def park(self, instance: Instance, tier: Tier = Tier.FREEZE) -> Event:
        await self.tiers.park(Park(instance, F, tier))
        return self.events.pop()

    async def wake(self, instance: Instance) -> Event:
        await self.tiers.wake(Wake(instance, F, Tier.FREEZE))
        return self.events.pop()

    def memory_mb(self) -> int:
        return int(self.scratch("").read_text())

    async def close(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(10)
        self.freezer.close()
        await self.probe.close()


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    for name, value in cuda_double.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    yield Card(tmp_path, "")


@pytest.fixture
async def worker(tmp_path: Path, card: Card) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, card)
    yield worker
    await worker.close()


async def test_a_frozen_worker_holds_no_device_memory_and_returns(worker: Worker) -> None:
    instance = await worker.start()

    parked = await worker.park(instance)

    assert isinstance(parked, Parked)
    assert (parked.tier, parked.device_mb) == (Tier.FREEZE, ASLEEP_MB)
    assert parked.ram_mb >= WEIGHTS_MB + ASLEEP_MB
    assert worker.memory_mb() == 0
    assert await worker.wake(instance) == Answered(instance.id)
    assert worker.memory_mb() == MEMORY_MB


async def test_what_a_sleep_took_that_nothing_measures_is_not_reported_as_the_frozen_part_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.platform.workers.process.resident_mb", lambda _: 100)
    worker.weights.clear()

    parked = await worker.park(await worker.start())

    assert isinstance(parked, Parked)
    assert (parked.device_mb, parked.ram_mb) == (ASLEEP_MB, 0)


async def test_an_engine_without_sleep_mode_is_frozen_with_all_its_memory(worker: Worker) -> None:
    instance = await worker.start("--on-sleep=refuse", "--on-wake=refuse", sleeps=False)

    parked = await worker.park(instance)

    assert isinstance(parked, Parked)
    assert (parked.device_mb, parked.ram_mb) == (0, MEMORY_MB)
    assert await worker.wake(instance) == Answered(instance.id)


async def test_a_sleeping_worker_is_frozen_later_by_the_canary_from_before_its_sleep(worker: Worker) -> None:
    instance = await worker.start()
    asleep = await worker.park(instance, Tier.SLEEP)
    assert isinstance(asleep, Parked)

    parked = await worker.park(replace(instance, parked=Tier.SLEEP, ram_mb=asleep.ram_mb))

    assert isinstance(parked, Parked)
    assert parked.ram_mb == asleep.ram_mb + ASLEEP_MB
    assert await worker.wake(instance) == Answered(instance.id)


async def test_a_worker_that_computes_differently_after_its_return_does_not_serve(worker: Worker) -> None:
    instance = await worker.start("--on-wake=garble")
    await worker.park(instance)

    reason = "it did not return from freeze: its first tokens differ from those before it was frozen"
    assert await worker.wake(instance) == StartFailed(instance.id, reason)


async def test_a_worker_that_does_not_answer_after_its_return_does_not_serve(worker: Worker) -> None:
    instance = await worker.start(sleeps=False)
    await worker.script(instance, fail_status=500, fail_every=2)
    await worker.park(instance)

    failed = await worker.wake(instance)

    assert failed == StartFailed(
        instance.id, "it did not return from freeze: it does not answer its canary after the restore"
    )


async def test_a_worker_without_a_canary_is_not_frozen(worker: Worker) -> None:
    instance = await worker.start("--fail-status=500")

    failed = await worker.park(instance)

    assert isinstance(failed, ParkFailed)
    assert "did not answer its canary" in failed.reason
    assert worker.card.calls() == []


async def test_the_reason_of_a_failure_names_the_builds_for_which_it_holds(worker: Worker) -> None:
    instance = await worker.start()
    worker.card.fault("checkpoint", "801")
    worker.freezer.version = "580.159.04"

    reason = "cuCheckpointProcessCheckpoint: CUDA error 801 (driver 580.159.04, fake 1.0)"
    assert await worker.park(instance) == ParkFailed(instance.id, Tier.FREEZE, reason)


async def test_a_restore_that_fails_is_a_failed_start(worker: Worker) -> None:
    instance = await worker.start()
    await worker.park(instance)
    worker.card.fault("restore", "999")

    assert await worker.wake(instance) == StartFailed(
        instance.id, "it did not return from freeze: cuCheckpointProcessRestore: CUDA error 999"
    )


# The next agent.


def saved(instance: Instance) -> SavedWorker:
    return SavedWorker(instance=instance, function=F, weights=LocalWeights("", 0))


async def test_the_next_agent_takes_a_frozen_worker_over_as_frozen(worker: Worker) -> None:
    instance = await worker.start()
    await worker.park(instance)

    adopted, asleep = await worker.next_agent().examine(saved(instance))

    assert (adopted.instance.parked, asleep) == (Tier.FREEZE, True)


async def test_the_next_agent_takes_a_restored_worker_that_still_sleeps_over_as_asleep(worker: Worker) -> None:
    instance = await worker.start()
    await worker.park(instance)
    assert instance.process
    await worker.freezer.restore(instance.process, instance.id)

    adopted, asleep = await worker.next_agent().examine(saved(replace(instance, parked=Tier.FREEZE)))

    assert (adopted.instance.parked, asleep) == (Tier.SLEEP, True)


@pytest.mark.parametrize(("answer", "asleep"), [(None, False), ("other", None)])
async def test_the_next_agent_compares_the_canary_of_a_restored_worker(
    answer: str | None, asleep: bool | None, worker: Worker
) -> None:
    instance = await worker.start(sleeps=False)
    await worker.park(instance)
    assert instance.process
    await worker.freezer.restore(instance.process, instance.id)
    if answer is not None:
        await worker.script(instance, answer=answer)

    assert (await worker.next_agent().examine(saved(instance)))[1] is asleep


async def test_the_next_agent_does_not_take_over_a_worker_whose_checkpoint_failed(worker: Worker) -> None:
    instance = await worker.start()
    worker.card.fault("checkpoint", "fail")
    await worker.park(instance)

    assert (await worker.next_agent().examine(saved(instance)))[1] is None
