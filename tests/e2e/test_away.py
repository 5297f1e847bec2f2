"""Agents, Redis and entries of the catalogue that go away under a router: what is warm is served, nothing is started
twice, and waiting requests get an answer."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests.support.catalogues import aliases, fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

pytestmark = [pytest.mark.xdist_group("away"), pytest.mark.long]

BEAT = {"CORTEX_AGENT__HEARTBEAT_S": "0.7", "CORTEX_AGENT__DEVICES": '[{"name": "pretend", "vram_mb": 24000}]'}
SMALL = {"vram_mb": 1000, "idle_after_s": 600}
OTHERS = fake("warm", **SMALL) + fake("other", **SMALL) + fake("poisoned", **SMALL)


def catalogue(waited: str = "", names: dict[str, str] | None = None) -> str:
    return OTHERS + waited + (aliases(names) if names else "")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("away")
    own_way = folder / "a.sock"  # so that `a` alone can be cut off from Redis
    own_way.symlink_to("r.sock")
    cut_off = {"CORTEX_REDIS_URL": f"unix://{own_way}"}
    with own_redis(folder) as url, Fleet(folder, url, catalogue(), {"a": {**BEAT, **cut_off}, "b": BEAT}) as running:
        yield running


@pytest.fixture(autouse=True)
def as_at_first(fleet: Fleet) -> Iterator[None]:
    yield
    for name in ("a", "b"):
        if fleet.processes[name].poll() is not None:
            fleet.start_agent(name)
    eventually(lambda: set(fleet.records()) == {"a", "b"}, within_s=20, what="both hosts to report")
    fleet.models.write_text(catalogue())
    eventually(lambda: declared(fleet) == {"warm", "other", "poisoned"}, what="the first catalogue to be declared")
    fleet.rest()


def declared(fleet: Fleet) -> set[str]:
    return {str(e["id"]) for e in fleet.http.get("/v1/models").json()["data"]}


def health(fleet: Fleet) -> dict[str, Any]:
    answer: dict[str, Any] = fleet.http.get("/health").json()
    return answer


def host_of(fleet: Fleet, function: str) -> str:
    (instance,) = fleet.function(function)["instances"]
    return str(instance["host"])


def loaded(fleet: Fleet, function: str) -> bool:
    listed = fleet.http.get("/v1/models").json()["data"]
    return bool(next(e for e in listed if e["id"] == function)["loaded"])


def kill_workers(fleet: Fleet) -> None:
    for worker in fleet.workers():
        worker.kill()
        psutil.wait_procs([worker], timeout=5)


def test_a_warm_function_is_served_while_its_agent_is_dead_and_after_its_return(fleet: Fleet) -> None:
    instance = fleet.chat("warm").headers["x-cortex-instance"]
    host = host_of(fleet, "warm")
    fleet.kill(host)

    eventually(lambda: host in health(fleet)["silent"], what="the host to be silent")
    answers = [fleet.chat("warm") for _ in range(3)]
    elsewhere = fleet.chat("other")
    degraded = health(fleet)
    listed = fleet.cli("host", "ls").stdout
    functions = fleet.cli("fn", "ls").stdout
    diagnosis = fleet.cli("doctor").stdout
    is_loaded = loaded(fleet, "warm")
    fleet.start_agent(host)
    eventually(lambda: not health(fleet)["silent"], what="the host to report")
    again = fleet.chat("warm")

    assert [(a.status_code, a.headers["x-cortex-instance"]) for a in [*answers, again]] == [(200, instance)] * 4
    assert (elsewhere.status_code, host_of(fleet, "other") != host) == (200, True)
    assert (degraded["status"], degraded["nodes"], degraded["silent"][host]["serving"]) == (
        "degraded",
        {"healthy": 1, "total": 2},
        1,
    )
    assert "silent for" in listed
    assert f"warm: {host} has been silent for" in functions
    assert f"host {host}: has not reported for" in diagnosis
    assert is_loaded
    assert fleet.spawned() == len({instance, elsewhere.headers["x-cortex-instance"]})


def test_a_function_starts_elsewhere_when_its_silent_host_stops_answering(fleet: Fleet) -> None:
    instance = fleet.chat("warm").headers["x-cortex-instance"]
    host = host_of(fleet, "warm")
    fleet.kill(host)
    eventually(lambda: host in health(fleet)["silent"], what="the host to be silent")
    kill_workers(fleet)

    answer = fleet.chat("warm")
    eventually(lambda: health(fleet)["silent"][host]["serving"] == 0, what="the dead worker to be forgotten")

    assert (answer.status_code, answer.headers["x-cortex-instance"] != instance) == (200, True)
    assert host_of(fleet, "warm") != host


def test_an_emptied_redis_does_not_interrupt_warm_functions(fleet: Fleet) -> None:
    instance = fleet.chat("warm").headers["x-cortex-instance"]
    before = fleet.spawned()

    with redis.Redis.from_url(fleet.redis_url) as record:
        record.flushall()
    answers = []
    until = time.monotonic() + 4
    while time.monotonic() < until:
        answers.append(fleet.chat("warm"))

    assert {(a.status_code, a.headers.get("x-cortex-instance")) for a in answers} == {(200, instance)}
    assert fleet.spawned() == before
    eventually(lambda: health(fleet)["status"] == "ok", what="everything to be well again")


def test_a_warm_function_is_served_while_its_agent_cannot_reach_redis(fleet: Fleet) -> None:
    fleet.http.post("/admin/hosts/b/cordon").raise_for_status()
    instance = fleet.chat("warm").headers["x-cortex-instance"]
    before = fleet.spawned()
    fleet.http.post("/admin/hosts/b/uncordon").raise_for_status()
    own_way = fleet.folder / "a.sock"

    own_way.unlink()
    try:
        with redis.Redis.from_url(fleet.redis_url) as record:
            for kind in ("normal", "pubsub"):  # every other process connects again
                record.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        eventually(lambda: "a" in health(fleet)["silent"], what="the host to be silent")
        answers = [fleet.chat("warm") for _ in range(3)]
    finally:
        own_way.symlink_to("r.sock")
    eventually(lambda: not health(fleet)["silent"], what="the host to report")

    assert [(a.status_code, a.headers["x-cortex-instance"]) for a in answers] == [(200, instance)] * 3
    assert fleet.chat("warm").headers["x-cortex-instance"] == instance
    assert fleet.spawned() == before


def test_with_a_read_only_redis_warm_functions_are_served(fleet: Fleet) -> None:
    instance = fleet.chat("warm").headers["x-cortex-instance"]

    with redis.Redis.from_url(fleet.redis_url) as record:
        record.replicaof("127.0.0.1", "1")  # the replica of a master that is not there
        try:
            eventually(lambda: health(fleet)["status"] == "degraded", what="the router to say so")
            warm = [fleet.chat("warm") for _ in range(3)]
            cold = fleet.chat("other")
        finally:
            record.replicaof("NO", "ONE")
    eventually(lambda: health(fleet)["status"] == "ok", within_s=30, what="everything to be well again")

    assert [(a.status_code, a.headers["x-cortex-instance"]) for a in warm] == [(200, instance)] * 3
    assert (cold.status_code, cold.json()["error"]["code"]) == (503, "record_away")
    assert fleet.chat("other").status_code == 200


def test_a_worker_that_closes_connections_gets_no_second_instance(fleet: Fleet) -> None:
    instance = fleet.chat("poisoned").headers["x-cortex-instance"]
    before = fleet.spawned()
    url = fleet.function("poisoned")["instances"][0]["url"]
    key = {"authorization": f"Bearer {fleet.worker_key(instance)}"}

    httpx.post(f"{url}/fake", headers=key, json={"refuse": True}).raise_for_status()
    refused = fleet.chat("poisoned")
    httpx.post(f"{url}/fake", headers=key, json={"refuse": None}).raise_for_status()
    after = fleet.chat("poisoned")

    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "worker_error")
    assert (after.status_code, after.headers["x-cortex-instance"]) == (200, instance)
    assert fleet.spawned() == before


class Waiting:
    """Requests that wait for a start, plain and streaming."""

    def __init__(self, fleet: Fleet, model: str) -> None:
        self._fleet, self._model = fleet, model
        self.plain: httpx.Response
        self.streamed: list[str] = []
        self.begun = threading.Event()
        """Set when the stream has begun: with a keep-alive."""
        self._threads = [threading.Thread(target=t) for t in (self._ask, self._stream)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        self.plain = self._fleet.chat(self._model)

    def _stream(self) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        with self._fleet.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                self.begun.set()
                self.streamed += [line] if line.startswith("data: ") else []

    def joined(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a request still waits"

    @property
    def error(self) -> dict[str, Any]:
        """The error a stream ended with."""
        answer: dict[str, Any] = json.loads(self.streamed[-1].removeprefix("data: ")).get("error", {})
        return answer


def loads(name: str, seconds: float, *args: str, host: str = "a") -> str:
    return fake(name, "--load-s", str(seconds), *args, **SMALL, pinned_on=[host])


@pytest.fixture
def starting(fleet: Fleet) -> Callable[..., Waiting]:
    """Declare something slow to load, ask for it, and give what waits once its worker starts."""

    def begun(name: str, text: str) -> Waiting:
        fleet.models.write_text(text)
        eventually(lambda: name in declared(fleet), what="the name to be declared")
        waiting = Waiting(fleet, name)
        eventually(lambda: fleet.function(name)["waiting"] == 2, what="both to wait")
        assert waiting.begun.wait(10)
        eventually(
            lambda: any(i["state"] == "starting" for i in fleet.function(name)["instances"]), what="a worker to start"
        )
        return waiting

    return begun


def test_a_waiting_request_is_served_by_the_edited_entry(fleet: Fleet, starting: Callable[..., Waiting]) -> None:
    waiting = starting("slow", catalogue(loads("slow", 30)))

    fleet.models.write_text(catalogue(loads("slow", 0.2, "--answer", "edited")))
    waiting.joined(15)

    assert (waiting.plain.status_code, waiting.plain.json()["choices"][0]["message"]["content"]) == (200, "edited")
    assert waiting.streamed[-1] == "data: [DONE]"
    eventually(lambda: len(fleet.workers()) == 1, what="the start of the old entry to be over")


def test_a_waiting_request_for_a_removed_function_is_refused_at_once(
    fleet: Fleet, starting: Callable[..., Waiting]
) -> None:
    waiting = starting("slow", catalogue(loads("slow", 30)))

    fleet.models.write_text(catalogue())
    waiting.joined(6)

    assert (waiting.plain.status_code, waiting.plain.json()["error"]["code"]) == (404, "model_not_found")
    assert waiting.error["code"] == "model_not_found"
    eventually(lambda: not fleet.workers(), what="nothing to be started for a name that is gone")


def test_a_waiting_request_for_a_moved_alias_is_served_by_its_new_target(
    fleet: Fleet, starting: Callable[..., Waiting]
) -> None:
    both = loads("slow", 30) + loads("quick", 0.2, "--answer", "moved", host="b")  # a device starts one at a time
    waiting = starting("nick", catalogue(both, {"nick": "slow"}))

    fleet.models.write_text(catalogue(both, {"nick": "quick"}))
    waiting.joined(15)

    assert (waiting.plain.status_code, waiting.plain.json()["choices"][0]["message"]["content"]) == (200, "moved")
    assert waiting.plain.headers["x-cortex-function"] == "quick"
    assert waiting.streamed[-1] == "data: [DONE]"


def test_warm_waits_for_the_edited_entry(fleet: Fleet) -> None:
    fleet.models.write_text(catalogue(loads("slow", 30)))
    eventually(lambda: "slow" in declared(fleet), what="the name to be declared")
    eventually(lambda: fleet.cli("fn", "warm", "slow", "--plan").returncode == 0, what="its host to have the catalogue")
    matches = []
    warming = threading.Thread(target=lambda: matches.append(fleet.cli("fn", "warm", "slow", "--wait")))
    warming.start()
    eventually(
        lambda: any(i["state"] == "starting" for i in fleet.function("slow")["instances"]), what="a worker to start"
    )

    fleet.models.write_text(catalogue(loads("slow", 0.2)))
    warming.join(20)

    assert [(f.returncode, f.stdout, f.stderr) for f in matches] == [(0, "slow: ready\n", "")]


def test_a_drained_host_that_ends_is_removed_and_not_silent(fleet: Fleet) -> None:
    fleet.kill("a")
    last = fleet.records()["a"].at
    fleet._agent_env["a"]["CORTEX_AGENT__KEEP_WORKERS"] = "false"
    fleet.start_agent("a")
    eventually(
        lambda: any(h.at > last for n, h in fleet.records().items() if n == "a"), what="its next agent to report"
    )
    try:
        fleet.kill("a", signal.SIGTERM)
        eventually(lambda: health(fleet)["nodes"]["healthy"] == 1, what="one host to be left")

        assert health(fleet)["silent"] == {}
    finally:
        del fleet._agent_env["a"]["CORTEX_AGENT__KEEP_WORKERS"]
