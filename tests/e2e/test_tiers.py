"""Sleeping workers from a request to the next agent: real agents, routers and processes of the fake engine on one
declared device, which has room for one worker.
"""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance, Tier
from tests.e2e.workers import GPU_HOST
from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

pytestmark = GPU_HOST

MEMORY_MB, ASLEEP_MB = 18_000, 1_400
SLEEPER = (f"--memory-mb={MEMORY_MB}", f"--asleep-mb={ASLEEP_MB}")
KEYS = {"vram_mb": MEMORY_MB, "idle_after_s": 600}
MODELS = "\n".join(
    [
        fake("f", *SLEEPER, **KEYS),
        fake("g", *SLEEPER, **KEYS),
        fake("idle", *SLEEPER, **KEYS | {"idle_after_s": 1}),
        fake("held", *SLEEPER, "--sleep-s=1000", **KEYS),
        fake("sleep-refused", *SLEEPER, "--on-sleep=refuse", **KEYS),
        fake("sleep-kills", *SLEEPER, "--on-sleep=crash", **KEYS),
        fake("wake-refused", *SLEEPER, "--on-wake=refuse", **KEYS),
        fake("wake-kills", *SLEEPER, "--on-wake=crash", **KEYS),
        fake("stops", *SLEEPER, **KEYS, park="stop"),
    ]
)
LITTLE_RAM = {
    "CORTEX_AGENT__DEVICES": json.dumps([{"name": "pretended", "vram_mb": 24_576}]),
    "CORTEX_AGENT__PARK_RAM_MB": str(MEMORY_MB + 1000),
    "CORTEX_AGENT__STOP_GRACE_S": "1",
}


@pytest.fixture(scope="module")
def running(gpu_host: Fleet) -> Fleet:
    """The fleet of every test but one."""
    gpu_host.serve(MODELS)
    return gpu_host


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    """A fleet without instances."""
    yield running
    running.rest()


@pytest.fixture
def little_ram(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose host has RAM for one sleeper."""
    with own_redis(tmp_path) as url, Fleet(tmp_path, url, MODELS, {"a": LITTLE_RAM}) as running:
        yield running


def instances(fleet: Fleet, function: str) -> list[Instance]:
    return [i for i in fleet.records()["a"].instances if i.function == function]


def until(fleet: Fleet, function: str, state: State) -> Instance:
    """Wait until the only instance of a function is in a state."""

    def matches() -> list[Instance]:
        current = instances(fleet, function)
        return current if [i.state for i in current] == [state] else []

    return eventually(matches, within_s=30, what=f"{function} to be {state}")[0]


def until_gone(fleet: Fleet, function: str) -> None:
    eventually(lambda: not instances(fleet, function), within_s=30, what=f"{function} to be gone")


def served(fleet: Fleet, function: str) -> tuple[str, int]:
    """Send a request. Return what it had to wait for, and the pid of the worker."""
    answer = fleet.chat(function)
    assert answer.status_code == 200, answer.text
    (instance,) = (i for i in instances(fleet, function) if i.id == answer.headers["x-cortex-instance"])
    return answer.headers["x-cortex-start"], instance.pid


def park(fleet: Fleet, function: str) -> None:
    done = fleet.cli("fn", "cool", function, "--park")
    assert done.returncode == 0, done.stdout + done.stderr


def begin_to_park(fleet: Fleet, function: str) -> None:
    """Have an instance parked, without waiting for the end."""
    fleet.http.post(f"/admin/functions/{function}/cool", params={"park": "1"}).raise_for_status()


def script(fleet: Fleet, instance: Instance, **changes: object) -> None:
    httpx.post(f"{instance.url}/fake", json=changes, headers=key(fleet, instance), trust_env=False).raise_for_status()


def report(fleet: Fleet, instance: Instance) -> dict[str, Any]:
    answer = httpx.get(f"{instance.url}/fake", headers=key(fleet, instance), trust_env=False)
    return dict(answer.json())


def key(fleet: Fleet, instance: Instance) -> dict[str, str]:
    return {"Authorization": f"Bearer {fleet.worker_key(instance.id)}"}


@pytest.mark.long
def test_functions_that_do_not_fit_together_swap_by_sleep(fleet: Fleet) -> None:
    before = fleet.spawned()
    first = {name: served(fleet, name) for name in ("f", "g")}
    second = {name: served(fleet, name) for name in ("f", "g")}

    assert [start for start, _ in first.values()] == ["cold", "cold"]
    assert second == {name: ("sleep", pid) for name, (_, pid) in first.items()}
    assert fleet.spawned() - before == 2
    (asleep,) = instances(fleet, "f")
    assert (asleep.state, asleep.held_mb) == (State.SLEEPING, ASLEEP_MB)


def test_an_idle_worker_sleeps_until_a_request_wakes_it(fleet: Fleet) -> None:
    _, pid = served(fleet, "idle")
    asleep = until(fleet, "idle", State.SLEEPING)

    again = served(fleet, "idle")

    assert (asleep.pid, asleep.parked) == (pid, Tier.SLEEP)
    assert again == ("sleep", pid)


@pytest.mark.long
def test_the_command_line_parks_shows_and_stops(fleet: Fleet) -> None:
    served(fleet, "f")
    park(fleet, "f")
    listed, shown = fleet.cli("fn", "ls"), fleet.cli("fn", "show", "f")
    host, device = fleet.cli("host", "show", "a"), fleet.cli("gpu", "ls")
    metrics = fleet.cli("why", "f").stdout
    both = fleet.cli("fn", "cool", "f", "--park", "--now")
    stopped = fleet.cli("fn", "cool", "f")

    assert "sleeping" in listed.stdout
    assert f"f: sleeping on a: {ASLEEP_MB} MiB on each device" in listed.stdout
    assert f"{ASLEEP_MB} (sleeping)" in shown.stdout
    assert "/100000 MiB of RAM; sleep: possible" in host.stdout
    assert f"held by f {ASLEEP_MB} (sleeping)" in device.stdout
    assert f"to sleep: {ASLEEP_MB:,} MiB stay" in metrics
    assert (both.returncode, "Use one of them" in both.stderr) == (2, True)
    assert (stopped.returncode, stopped.stdout) == (0, "f: cold\n")
    assert instances(fleet, "f") == []


def test_a_request_during_the_parking_is_answered_after_it(fleet: Fleet) -> None:
    _, pid = served(fleet, "held")
    begin_to_park(fleet, "held")
    parking = until(fleet, "held", State.PARKING)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(served, fleet, "held")
        eventually(lambda: fleet.function("held")["waiting"], what="the request to wait")
        script(fleet, parking, sleep_s=0)

        assert answer.result(60) == ("sleep", pid)


@pytest.mark.parametrize("function", ["sleep-refused", "sleep-kills"])
@pytest.mark.long
def test_a_worker_that_cannot_sleep_stops_and_is_not_parked_again(fleet: Fleet, function: str) -> None:
    _, pid = served(fleet, function)
    park(fleet, function)
    until_gone(fleet, function)

    start, other = served(fleet, function)
    reasons = fleet.records()["a"].unparkable[instances(fleet, function)[0].revision]
    again = fleet.cli("fn", "cool", function, "--park")

    assert (start, other != pid) == ("cold", True)
    assert list(reasons) == [Tier.SLEEP]
    assert again.stdout == f"{function}: cold\nstopped instead of parked: by sleep on a: {reasons[Tier.SLEEP]}\n"
    assert instances(fleet, function) == []
    assert "not parked" not in fleet.cli("fn", "show", "f").stdout
    assert f"by sleep on a: {reasons[Tier.SLEEP]}" in fleet.cli("fn", "show", function).stdout


@pytest.mark.long
def test_a_victim_that_hangs_when_it_is_to_sleep_holds_another_up_for_seconds(fleet: Fleet) -> None:
    """It slept before, so what that took is known: it is stopped after a few seconds more, not after a minute."""
    _, pid = served(fleet, "f")
    park(fleet, "f")
    assert served(fleet, "f") == ("sleep", pid)
    script(fleet, *instances(fleet, "f"), on_sleep="hang")
    eventually(lambda: instances(fleet, "f")[0].return_s.get(Tier.SLEEP), within_s=30, what="its sleep to be measured")
    (hung,) = instances(fleet, "f")
    began = time.monotonic()

    start, _ = served(fleet, "g")

    assert (start, time.monotonic() - began < 30) == ("cold", True)
    until_gone(fleet, "f")
    assert not psutil.pid_exists(pid)
    assert hung.revision not in fleet.records()["a"].unparkable, "only this worker hung"


@pytest.mark.parametrize("function", ["wake-refused", "wake-kills"])
def test_a_request_whose_worker_does_not_wake_is_answered_by_a_new_one(fleet: Fleet, function: str) -> None:
    _, pid = served(fleet, function)
    park(fleet, function)

    start, other = served(fleet, function)

    assert (start, other != pid) == ("cold", True)
    assert not psutil.pid_exists(pid)
    assert list(fleet.records()["a"].unparkable[instances(fleet, function)[0].revision]) == [Tier.SLEEP]


def test_the_next_agent_wakes_a_worker_that_an_earlier_one_put_to_sleep(fleet: Fleet) -> None:
    before = fleet.spawned()
    _, pid = served(fleet, "f")
    park(fleet, "f")
    fleet.kill("a")
    fleet.start_agent("a")

    assert served(fleet, "f") == ("sleep", pid)
    assert fleet.spawned() - before == 1


@pytest.mark.long
@pytest.mark.parametrize("ends", [True, False])
def test_an_agent_killed_while_it_parks_leaves_a_worker_that_sleeps_or_is_stopped(fleet: Fleet, ends: bool) -> None:
    _, pid = served(fleet, "held")
    begin_to_park(fleet, "held")
    parking = until(fleet, "held", State.PARKING)
    eventually(lambda: report(fleet, parking)["moving"], what="the engine to fall asleep")

    fleet.kill("a")
    if ends:
        script(fleet, parking, sleep_s=0)
    fleet.start_agent("a")

    start, other = served(fleet, "held")
    assert (start, other == pid) == (("sleep", True) if ends else ("cold", False))
    assert [p.pid for p in fleet.workers()] == [other]


def test_a_sleeper_that_is_killed_is_replaced_by_the_next_request(fleet: Fleet) -> None:
    _, pid = served(fleet, "f")
    park(fleet, "f")

    psutil.Process(pid).send_signal(signal.SIGKILL)
    until_gone(fleet, "f")

    start, other = served(fleet, "f")
    assert (start, other != pid) == ("cold", True)


@pytest.mark.long
def test_without_ram_for_two_the_sleeper_used_longest_ago_stops(little_ram: Fleet) -> None:
    served(little_ram, "f")
    served(little_ram, "g")
    until(little_ram, "f", State.SLEEPING)

    park(little_ram, "g")

    until(little_ram, "g", State.SLEEPING)
    until_gone(little_ram, "f")
    assert served(little_ram, "g")[0] == "sleep"


def test_a_function_with_park_stop_stops(fleet: Fleet) -> None:
    served(fleet, "stops")

    done = fleet.cli("fn", "cool", "stops", "--park")

    assert done.stdout == 'stops: cold\nstopped instead of parked: its `park` is "stop"\n'
    assert instances(fleet, "stops") == []


def test_no_router_opens_the_paths_of_a_worker_that_move_its_memory(fleet: Fleet) -> None:
    served(fleet, "f")
    (instance,) = instances(fleet, "f")

    statuses = [
        httpx.request(method, f"{instance.url}{path}", headers=key(fleet, instance), trust_env=False).status_code
        for method, path in (("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping"))
    ]

    assert statuses == [401, 401, 401]
