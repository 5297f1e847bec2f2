"""Frozen workers from a request to the next agent: real agents, routers and workers, and a driver of the tests."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance, Tier
from tests.support import cuda_double
from tests.support.catalogues import fake
from tests.support.cuda_double import Card
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import eventually, own_redis

pytestmark = [
    pytest.mark.xdist_group("frozen"),
    pytest.mark.skipif(cuda_double.COMPILER is None, reason="needs a C compiler for the driver's double"),
]

MODELS = fake("f", "--memory-mb=18000", "--asleep-mb=1400", vram_mb=18_000, park="freeze", idle_after_s=600)
GPU = json.dumps([{"name": "pretended", "vram_mb": 24_576}])


@pytest.fixture
def card(tmp_path: Path) -> Card:
    (tmp_path / "cuda").mkdir()
    return Card(tmp_path / "cuda", "")


@pytest.fixture
def fleet(tmp_path: Path, card: Card) -> Iterator[Fleet]:
    agent = {
        "CORTEX_AGENT__DEVICES": GPU,
        "CORTEX_AGENT__PARK_RAM_MB": "100000",
        "CORTEX_AGENT__STOP_GRACE_S": "1",
        **cuda_double.environment(card.folder),
    }
    with own_redis(tmp_path) as url, Fleet(tmp_path, url, MODELS, {"a": agent}) as running:
        yield running


def instance(fleet: Fleet) -> Instance | None:
    """Return the instance in the record; None also while the record of a killed agent has expired."""
    host = fleet.records().get("a")
    return next(iter(host.instances), None) if host else None


def is_in(fleet: Fleet, state: State) -> bool:
    current = instance(fleet)
    return current is not None and current.state is state


def freeze(fleet: Fleet) -> int:
    """Serve a request, and have the worker parked. Return its pid."""
    assert fleet.chat("f").status_code == 200
    park(fleet)
    current = instance(fleet)
    assert current
    return current.pid


def park(fleet: Fleet) -> None:
    address = fleet.records()["a"].address
    headers = {"Authorization": f"Bearer {TOKEN}"}
    body = {"function": "f", "park": True}
    httpx.post(f"{address}/functions/cool", json=body, headers=headers, trust_env=False).raise_for_status()


def test_a_request_for_a_frozen_worker_restores_it(fleet: Fleet) -> None:
    pid = freeze(fleet)
    eventually(lambda: is_in(fleet, State.FROZEN), within_s=60, what="the worker to be frozen")

    answer = fleet.chat("f")

    assert answer.status_code == 200
    current = instance(fleet)
    assert current
    assert (current.pid, current.path, fleet.spawned()) == (pid, "freeze", 1)


@pytest.mark.long
def test_the_next_agent_restores_a_worker_that_an_earlier_one_froze(fleet: Fleet) -> None:
    pid = freeze(fleet)
    eventually(lambda: is_in(fleet, State.FROZEN), within_s=60, what="the worker to be frozen")

    fleet.kill("a")
    fleet.start_agent("a")

    assert fleet.chat("f").status_code == 200
    current = instance(fleet)
    assert current
    assert (current.pid, fleet.spawned()) == (pid, 1)


@pytest.mark.long
def test_a_freeze_ends_although_its_agent_is_killed(fleet: Fleet, card: Card) -> None:
    card.fault("checkpoint", "wait")
    pid = freeze(fleet)
    eventually(
        lambda: any(c.startswith("checkpoint") for c in card.calls()), within_s=60, what="the checkpoint to begin"
    )

    fleet.kill("a")
    card.go()
    fleet.start_agent("a")
    eventually(lambda: is_in(fleet, State.FROZEN), within_s=60, what="the next agent to have it frozen")

    assert fleet.chat("f").status_code == 200
    current = instance(fleet)
    assert current
    assert (current.pid, fleet.spawned()) == (pid, 1)


@pytest.mark.long
def test_a_restore_ends_although_its_agent_is_killed(fleet: Fleet, card: Card) -> None:
    pid = freeze(fleet)
    eventually(lambda: is_in(fleet, State.FROZEN), within_s=60, what="the worker to be frozen")
    card.fault("restore", "wait")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(fleet.chat, "f")
        eventually(lambda: any(c.startswith("restore") for c in card.calls()), within_s=60, what="the restore to begin")

        fleet.kill("a")
        card.go()
        fleet.start_agent("a")

        assert answer.result(60).status_code == 200
    current = instance(fleet)
    assert current
    assert (current.pid, fleet.spawned()) == (pid, 1)


@pytest.mark.parametrize("fault", ["fail", pytest.param("801", marks=pytest.mark.long)])
def test_a_worker_whose_freeze_fails_stops_and_is_not_frozen_again(fleet: Fleet, card: Card, fault: str) -> None:
    card.fault("checkpoint", fault)
    pid = freeze(fleet)
    eventually(lambda: instance(fleet) is None, within_s=60, what="the worker to end")

    answer = fleet.chat("f")

    assert answer.status_code == 200
    assert not psutil.pid_exists(pid)
    (reasons,) = fleet.records()["a"].unparkable.values()
    assert "cuCheckpointProcessCheckpoint" in reasons[Tier.FREEZE]
    park(fleet)
    eventually(lambda: instance(fleet) is None, within_s=60, what="the next worker to stop instead")
    assert [c.split()[0] for c in card.calls()].count("checkpoint") == 1


@pytest.mark.long
def test_a_frozen_worker_leaves_nothing_when_it_is_cooled(fleet: Fleet) -> None:
    freeze(fleet)
    eventually(lambda: is_in(fleet, State.FROZEN), within_s=60, what="the worker to be frozen")

    assert fleet.cli("fn", "cool", "f").returncode == 0

    eventually(lambda: instance(fleet) is None, within_s=60, what="the worker to end")
    assert fleet.workers() == []


@pytest.mark.long
def test_a_frozen_worker_that_is_killed_from_outside_leaves_the_record_without_a_request(fleet: Fleet) -> None:
    pid = freeze(fleet)
    eventually(lambda: is_in(fleet, State.FROZEN), within_s=60, what="the worker to be frozen")

    psutil.Process(pid).send_signal(signal.SIGKILL)
    eventually(lambda: instance(fleet) is None, within_s=60, what="the agent to notice")

    answer = fleet.chat("f")
    assert (answer.status_code, answer.headers["x-cortex-start"]) == (200, "cold")
