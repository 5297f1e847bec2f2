"""An agent with a wrong clock, a broken log, a full disk or reused pids loses nothing and harms no other process."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance
from tests.support import skewed
from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import CORTEX, eventually, free_port, own_redis

pytestmark = pytest.mark.xdist_group("agents")

DEVICE = json.dumps([{"name": "pretend 24 GB", "vram_mb": 24576}])
MODELS = "\n".join(
    [
        fake("fake/one", vram_mb=20_000, idle_after_s=600),
        fake("fake/two", vram_mb=20_000, idle_after_s=600),
        fake("fake/long", "--tps", "20", "--tokens", "80", vram_mb=1000, idle_after_s=600),
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def common(folder: Path) -> Iterator[Fleet]:
    more = {"CORTEX_AGENT__DEVICES": DEVICE, **skewed.env(folder)}
    with own_redis(folder) as url, Fleet(folder, url, MODELS, {"a": more}) as running:
        yield running


@pytest.fixture
def fleet(common: Fleet, folder: Path) -> Iterator[Fleet]:
    """The fleet at rest, by the machine's clock, and so again after the test."""
    yield common
    skewed.step(folder, 0)
    common.rest()


def cold(fleet: Fleet) -> bool:
    record = fleet.records().get("a")
    return record is not None and not record.instances and not fleet.workers()


def adopted(fleet: Fleet, epoch: int) -> Instance | None:
    """Return the instance of a new agent's record; None while there is none of a higher epoch."""
    record = fleet.records().get("a")
    return next((i for i in record.instances if i.epoch > epoch), None) if record else None


def answers(fleet: Fleet) -> bool:
    """Whether the agent answers: without it, what is warm is served all the same."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{fleet._agent_env['a']['CORTEX_AGENT__LISTEN']}/health", trust_env=False).is_success
    return False


def cool(fleet: Fleet, function: str) -> None:
    answer = fleet.http.post(f"/admin/functions/{function}/cool", params={"now": 1})
    assert answer.status_code == 200, answer.text


@pytest.mark.long
@pytest.mark.parametrize("step_s", [3.0, -86_400.0])
def test_after_a_step_of_the_wall_clock_a_worker_is_stopped_and_its_device_freed(
    fleet: Fleet, folder: Path, step_s: float
) -> None:
    assert fleet.chat("fake/one").status_code == 200

    skewed.step(folder, step_s)
    cool(fleet, "fake/one")

    eventually(lambda: cold(fleet), what="the worker to be gone")
    assert fleet.chat("fake/two").status_code == 200


@pytest.mark.long
def test_after_a_step_of_the_wall_clock_a_worker_is_adopted(fleet: Fleet, folder: Path) -> None:
    assert fleet.chat("fake/one").status_code == 200
    (before,) = fleet.records()["a"].instances

    fleet.kill("a")
    skewed.step(folder, 86_400.0)
    fleet.start_agent("a")
    after = eventually(lambda: adopted(fleet, before.epoch), what="the worker to be adopted")
    assert after

    assert (after.id, after.pid, after.state) == (before.id, before.pid, State.READY)
    assert after.ready == pytest.approx(before.ready)


@pytest.mark.long
def test_a_process_with_the_pid_of_a_worker_from_before_a_reboot_is_left_alone(fleet: Fleet, folder: Path) -> None:
    assert fleet.chat("fake/one").status_code == 200
    fleet.kill("a")
    for worker in fleet.workers():
        worker.kill()
        worker.wait(10)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    path = folder / "state-a" / "a.json"
    state = json.loads(path.read_text())
    state["boot"] = state["workers"][0]["instance"]["boot"] = "the-boot-before"
    state["workers"][0]["instance"]["pid"] = stranger.pid
    path.write_text(json.dumps(state))

    fleet.start_agent("a")
    eventually(lambda: json.loads(path.read_text())["workers"] == [], what="the worker to be given up")

    assert stranger.poll() is None
    stranger.kill()
    stranger.wait(10)


@pytest.mark.long
def test_a_second_agent_on_one_state_directory_ends_and_changes_nothing(fleet: Fleet) -> None:
    assert fleet.chat("fake/one").status_code == 200
    before = {w.pid for w in fleet.workers()}
    env = {**fleet._agent_env["a"], "CORTEX_AGENT__NAME": "b", "CORTEX_AGENT__LISTEN": f"127.0.0.1:{free_port()}"}

    second = subprocess.run([*CORTEX, "agent"], env=env, capture_output=True, text=True, timeout=60, check=False)

    assert second.returncode == 1
    assert f"another agent ('a', pid {fleet.processes['a'].pid}) runs with the state directory" in second.stderr
    assert {w.pid for w in fleet.workers()} == before


@pytest.mark.long
def test_a_renamed_host_adopts_its_workers(fleet: Fleet) -> None:
    assert fleet.chat("fake/one").status_code == 200
    before = {w.pid for w in fleet.workers()}

    fleet.kill("a")
    fleet._agent_env["b"] = {**fleet._agent_env.pop("a"), "CORTEX_AGENT__NAME": "b"}
    fleet.start_agent("b")
    eventually(lambda: fleet.records().get("b"), what="the host under its new name")

    assert {w.pid for w in fleet.workers()} == before
    assert [i.state for i in fleet.records()["b"].instances] == [State.READY]
    assert fleet.chat("fake/one").headers["x-cortex-start"] == "hot"
    fleet.kill("b")
    fleet._agent_env["a"] = {**fleet._agent_env.pop("b"), "CORTEX_AGENT__NAME": "a"}
    fleet.start_agent("a")
    eventually(
        lambda: [i["host"] for i in fleet.function("fake/one")["instances"]] == ["a"],
        within_s=30,
        what="the router to know the host by its old name alone",
    )


@pytest.mark.long
def test_decisions_take_effect_while_the_log_cannot_be_written(fleet: Fleet) -> None:
    reading, writing = os.pipe()
    fleet.kill("a")
    fleet.processes["a"] = subprocess.Popen(
        [*CORTEX, "agent"], env=fleet._agent_env["a"], stdout=writing, stderr=writing, start_new_session=True
    )
    os.close(writing)
    assert fleet.chat("fake/one").status_code == 200
    eventually(lambda: answers(fleet), what="the agent")

    os.close(reading)
    cool(fleet, "fake/one")
    eventually(lambda: cold(fleet), what="the worker to be gone")

    assert fleet.chat("fake/two").status_code == 200


@pytest.mark.long
def test_a_request_unknown_to_routers_delays_a_drain(fleet: Fleet) -> None:
    """A stream that no report mentions, as of a router that is cut off from Redis, goes to the worker directly."""
    assert fleet.cli("fn", "warm", "fake/long", "--wait").returncode == 0
    (instance,) = fleet.records()["a"].instances
    ended: list[str] = []

    def stream() -> None:
        body = {"model": "fake/long", "messages": [{"role": "user", "content": "x"}], "stream": True}
        headers = {"authorization": f"Bearer {fleet.worker_key(instance.id)}"}
        url = f"{instance.url}/v1/chat/completions"
        with fleet.http.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
            begun.set()
            ended.append([line for line in answer.iter_lines() if line][-1])

    begun = threading.Event()
    asking = threading.Thread(target=stream)
    asking.start()
    begun.wait(30)
    fleet.http.post("/admin/functions/fake/long/cool").raise_for_status()
    asking.join(60)
    eventually(lambda: cold(fleet), what="the worker to be gone")

    assert ended == ["data: [DONE]"]
