"""Fast and full starts: real agents, routers and processes of the fake engine on one declared device."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.platform.record import Instance
from tests.e2e.workers import GPU_HOST
from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually

pytestmark = GPU_HOST

KEYS = {"vram_mb": 8000, "idle_after_s": 600}
MODELS = "\n".join(
    [
        fake("fast-first", "--full-load-s=1000", **KEYS),
        fake("restarted", "--full-load-s=1000", **KEYS),
        fake("fast-crashes", "--full-load-s=0", "--crash-in=fast", **KEYS),
        fake("full-crashes", "--full-load-s=0", "--crash-in=full", **KEYS),
        fake("pinned-fast", "--full-load-s=0", **KEYS, start="fast"),
        fake("pinned-full", "--full-load-s=0", **KEYS, start="full"),
        fake("alike", **KEYS),
    ]
)
QUIET_S = 45.0
"""An instance is replaced when it has been idle for 10 s."""


@pytest.fixture(scope="module")
def running(gpu_host: Fleet) -> Fleet:
    gpu_host.serve(MODELS)
    return gpu_host


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    """A fleet without instances: each function is used by one test."""
    yield running
    running.rest()


def instances(fleet: Fleet, function: str) -> list[Instance]:
    host = fleet.records().get("a")  # for a moment after an agent was killed there is none
    return [i for i in host.instances if i.function == function] if host else []


def served(fleet: Fleet, function: str) -> Instance:
    """Send a request; return the instance that answered."""
    answer = fleet.chat(function)
    assert answer.status_code == 200, answer.text
    return next(i for i in instances(fleet, function) if i.id == answer.headers["x-cortex-instance"])


def script(fleet: Fleet, instance: Instance, **changes: object) -> dict[str, Any]:
    """Change the script of a worker; return it."""
    headers = {"Authorization": f"Bearer {fleet.worker_key(instance.id)}"}
    answer = httpx.post(f"{instance.url}/fake", json=changes, headers=headers, trust_env=False)
    return dict(answer.raise_for_status().json()["script"])


def successor(fleet: Fleet, function: str) -> Instance:
    """Wait for the process of the full start that is to replace an instance, and for its port."""

    def loading() -> list[Instance]:
        return [i for i in instances(fleet, function) if i.replaces and i.pid and i.state is State.STARTING]

    instance: Instance = eventually(loading, within_s=QUIET_S, what="a full start")[0]

    def listens() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            return httpx.get(f"{instance.url}/health", trust_env=False).status_code == 503
        return False

    eventually(listens, within_s=30, what="its port")
    return instance


def only_full(fleet: Fleet, function: str) -> bool:
    return [(i.state, i.start_mode) for i in instances(fleet, function)] == [(State.READY, StartMode.FULL)]


class Load:
    """A client that sends one request after the other."""

    def __init__(self, fleet: Fleet, function: str) -> None:
        self._fleet, self._function, self._ends = fleet, function, threading.Event()
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ends.is_set():
            self.statuses.append(self._fleet.chat(self._function).status_code)


def test_a_request_gets_a_fast_start_and_a_full_one_takes_its_place_under_load(fleet: Fleet) -> None:
    first = served(fleet, "fast-first")
    fast = script(fleet, first)
    full = successor(fleet, "fast-first")
    shown = fleet.cli("fn", "show", "fast-first").stdout

    with Load(fleet, "fast-first") as load:
        eventually(lambda: len(load.statuses) > 5, within_s=30, what="requests")
        script(fleet, full, full_load_s=0)
        eventually(lambda: only_full(fleet, "fast-first"), within_s=30, what="the full start alone")
        before = len(load.statuses)
        eventually(lambda: len(load.statuses) > before + 5, within_s=30, what="requests")

    history = fleet.cli("why", "fast-first").stdout
    assert (first.start_mode, first.tricks, fast["enforce_eager"]) == (StartMode.FAST, ("eager",), True)
    assert f"full, to replace {first.id}" in shown
    assert set(load.statuses) == {200}
    assert served(fleet, "fast-first").id == full.id
    assert "fast (eager)" in history
    assert "beside it, in free room" in history


@pytest.mark.long
def test_the_next_agent_goes_on_with_a_full_start(fleet: Fleet) -> None:
    first = served(fleet, "restarted")
    full = successor(fleet, "restarted")

    fleet.kill("a")
    script(fleet, full, full_load_s=0)
    fleet.start_agent("a")

    eventually(lambda: only_full(fleet, "restarted"), within_s=30, what="the full start alone")
    assert served(fleet, "restarted").id == full.id
    assert full.replaces == first.id


def test_a_fast_start_that_crashes_is_repeated_in_full_before_the_request_is_answered(fleet: Fleet) -> None:
    instance = served(fleet, "fast-crashes")

    failed = fleet.records()["a"].tricks_off[instance.revision]
    shown = fleet.cli("fn", "show", "fast-crashes").stdout
    host = fleet.cli("host", "show", "a").stdout
    forgotten = fleet.cli("fn", "forget", "fast-crashes")

    assert (instance.start_mode, instance.tricks) == (StartMode.FULL, ())
    assert list(failed) == ["eager"]
    assert f"without 'eager' on a: {failed['eager']}" in shown
    assert f"started without 'eager': revision {instance.revision}" in host
    assert "failure" not in shown
    assert forgotten.returncode == 0
    eventually(
        lambda: instance.revision not in fleet.records()["a"].tricks_off,
        within_s=10,
        what="the trick to be tried again",
    )


@pytest.mark.long
def test_a_full_start_that_crashes_leaves_the_fast_one(fleet: Fleet) -> None:
    first = served(fleet, "full-crashes")

    eventually(
        lambda: first.revision in fleet.records()["a"].tricks_off, within_s=QUIET_S, what="the full start to crash"
    )
    eventually(lambda: len(instances(fleet, "full-crashes")) == 1, within_s=20, what="it to be gone")

    assert list(fleet.records()["a"].tricks_off[first.revision]) == ["full"]
    assert served(fleet, "full-crashes").id == first.id
    assert [f for f in fleet.records()["a"].failures if f.function == "full-crashes"] == []


@pytest.mark.parametrize(
    ("function", "mode"),
    [("pinned-fast", StartMode.FAST), ("pinned-full", StartMode.FULL), ("alike", None)],
)
def test_a_function_may_say_how_it_is_started(fleet: Fleet, function: str, mode: StartMode | None) -> None:
    assert served(fleet, function).start_mode is mode
