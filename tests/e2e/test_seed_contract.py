"""The agent as gateways and scripts of the Rust system know it: shapes, statuses, words, and its defects undone.

Two real agents on a Redis of their own: one on a CPU, which waits long for requests in flight, and one with
declared GPUs, which hardly waits. Workers are fake engines, and llama.cpp with a tiny model.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import psutil
import pytest
import redis

from cortex.functions import catalogue
from cortex.platform.agent_messages import CatalogueUpdate
from cortex.platform.keys import worker_key
from cortex.platform.record import RouterReport
from tests.e2e.conftest import ALPHA
from tests.support.catalogues import fake, gguf
from tests.support.stack import CORTEX, eventually, free_port, own_redis

pytestmark = [pytest.mark.xdist_group("agents"), pytest.mark.long]

MESSAGES = [{"role": "user", "content": "Hello!"}]
PLAIN: Any = {"trust_env": False, "verify": False}  # no proxy, and no certificates to load for plain HTTP
HELD = "0.001"  # tokens per second: the next one comes when the script changes
GPUS_MB = (24_000, 24_000, 48_000, 1_000)
STATUSES = {"loaded", "loading", "reloading", "recovering", "unloaded"}


class Agent:
    """A running `cortex agent`."""

    stuck: Future[httpx.Response]

    def __init__(self, folder: Path, redis_url: str, name: str, **settings: Any) -> None:
        folder.mkdir()
        self.name, self.folder, self.port = name, folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.redis_url = redis_url
        token_file = Path(redis_url.removeprefix("unix://")).with_name("fleet.token")  # one fleet, one token
        given = {"name": name, "listen": f"127.0.0.1:{self.port}", "keep_workers": False, **settings}
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "PYTHONDONTWRITE"))},
            **{f"CORTEX_AGENT__{key}".upper(): text for key, text in texts.items()},
            "CORTEX_REDIS__URL": redis_url,
            "CORTEX_TOKEN_FILE": str(token_file),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.process = subprocess.Popen(
            [*CORTEX, "agent"], env=env, stderr=(folder / "agent.log").open("wb"), start_new_session=True
        )
        self.stranger = httpx.Client(base_url=self.url, timeout=30, **PLAIN)
        self.first_health: dict[str, Any] = {}
        eventually(self._answers, within_s=30, what="the agent")
        self.token = token_file.read_text().strip()
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30, **PLAIN)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(httpx.HTTPError):
            self.first_health = self.stranger.get("/health").json()
        return bool(self.first_health)

    def end(self) -> None:
        """Stop it, workers and all."""
        self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            if self.process.poll() is None:
                self.process.kill()

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def heed(self, text: str) -> None:
        """Tell it a catalogue, as a router would."""
        read = catalogue.read(text, file="models.toml", folder=str(self.folder))
        answer = self.http.put("/catalogue", content=msgspec.json.encode(CatalogueUpdate(read, "digest")))
        assert answer.status_code == 200, answer.text

    def load(self, model: str, harness: str = "fake", **more: Any) -> httpx.Response:
        return self.http.post("/models/load", json={"model_id": model, "harness": harness, **more})

    def loaded(self, model: str, harness: str = "fake", **more: Any) -> dict[str, Any]:
        """Load a model and return its instance."""
        answer = self.load(model, harness, **more)
        assert (answer.status_code, answer.json()) == (200, {"status": "loaded"})
        return self.instance(model)

    def unload(self, model: str) -> httpx.Response:
        return self.http.post("/models/unload", json={"model_id": model})

    def listed(self, model: str) -> dict[str, Any] | None:
        """Return what `/models` says of a model."""
        found = self.http.get("/models").json()
        assert all(entry["status"] in STATUSES for entry in found)
        return next((entry for entry in found if entry["id"] == model), None)

    def status(self, model: str) -> str | None:
        entry = self.listed(model)
        return entry["status"] if entry else None

    def endpoint(self, model: str) -> httpx.Response:
        return self.http.get(f"/models/{quote(model, safe='')}/endpoint")

    def activation(self) -> dict[str, Any]:
        return dict(self.http.get("/health").json()["activation"])

    def instances(self, model: str) -> list[dict[str, Any]]:
        return [i for i in self.http.get("/instances").json() if i["function"] == model]

    def instance(self, model: str) -> dict[str, Any]:
        (found,) = self.instances(model)
        return found

    def spawned(self, model: str) -> int:
        """Return how many workers of a model were ever started."""
        lines = self.log().splitlines()
        return sum('"worker_spawned"' in line and f'"function": "{model}"' in line for line in lines)

    def chat(self, model: str, **more: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **more})

    def script(self, model: str, **changes: object) -> None:
        """Have a fake worker do as at its start, but for these changes."""
        instance = self.instance(model)
        headers = {"Authorization": f"Bearer {worker_key(self.token, instance['id'])}"}
        assert self.stranger.put(f"{instance['url']}/fake", json=changes, headers=headers).status_code == 200

    def running(self, model: str) -> int:
        """Return how many requests a fake worker is at."""
        metrics = self.stranger.get(f"{self.instance(model)['url']}/metrics").text
        found = re.search(r"^vllm:num_requests_running\S* (\S+)$", metrics, re.M)
        return int(float(found[1])) if found else -1

    def report(self, **values: Any) -> None:
        """Be a router that reports to the record."""
        with redis.Redis.from_url(self.redis_url) as record:
            report = msgspec.json.encode(RouterReport(id="test", **values))
            record.set("cortex:router:test", report, px=60_000)
            record.sadd("cortex:routers", "test")
            record.publish("cortex:changed", "router:test")

    def stop_reporting(self) -> None:
        with redis.Redis.from_url(self.redis_url) as record:
            record.delete("cortex:router:test")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, redis_url: str, weights: Path) -> Iterator[Agent]:
    """An agent on a CPU that waits 20 s for requests in flight."""
    folder = tmp_path_factory.mktemp("agents") / "cpu"
    cpu = [{"name": "some CPU", "vram_mb": 64_000, "kind": "cpu"}]
    running = Agent(folder, redis_url, "cpu", drain_grace_s=20, devices=cpu)
    running.heed(
        "\n".join(
            [
                gguf("tiny/alpha", str(weights / "alpha.gguf")),
                fake("fake/slow", "--load-s", "0.6"),
                fake("fake/crowd", "--load-s", "0.4"),
                fake("fake/left", "--load-s", "0.6"),
                fake("fake/dies", "--crash-on-load", "3", "--crash-message", "no such tokenizer"),
                fake("fake/waited-for", "--tps", HELD, "--tokens", "3"),
                fake("fake/streams", "--tps", HELD, "--tokens", "3"),
                fake("fake/moody"),
                fake("fake/tardy", "--hang", "serving", request_timeout_s=0.3),
                fake("fake/idle", "--tps", HELD, "--tokens", "3", idle_after_s=0.6),
                fake("fake/again"),
                fake("fake/ends", "--crash-after", "1"),
            ]
        )
    )
    yield running
    running.end()


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Agent]:
    """An agent with four declared GPUs that hardly waits for requests in flight; one of them is stuck in a start."""
    folder = tmp_path_factory.mktemp("agents") / "gpus"
    devices = [{"name": f"GPU {size}", "vram_mb": size} for size in GPUS_MB]
    quick = {"drain_grace_s": 0.3, "stop_grace_s": 0.3, "start_ceiling_s": 6}
    running = Agent(folder, redis_url, "gpus", devices=devices, reserve_mb=0, **quick)
    running.heed(
        "\n".join(
            [
                fake("fake/pair", vram_mb=20_000, min_devices=2, min_device_vram_mb=24_000),
                fake("fake/large", vram_mb=60_000),
                fake("fake/first", vram_mb=40_000),
                fake("fake/second", vram_mb=40_000),
                fake("fake/elsewhere", pinned_on=["another"]),
                fake("fake/held", "--tps", HELD, "--tokens", "3"),
                fake("fake/routed", vram_mb=1),
                fake("fake/stubborn", "--ignore-term", vram_mb=1),
                fake("fake/stuck", "--hang", "loading", vram_mb=GPUS_MB[-1]),
            ]
        )
    )
    running.stuck = later(running.load, "fake/stuck")
    yield running
    running.end()


def later(work: Callable[..., httpx.Response], *arguments: Any, **more: Any) -> Future[httpx.Response]:
    """Begin a request in another thread."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work, *arguments, **more)
    finally:
        pool.shutdown(wait=False)


# /health, /discovery, /version and the token


def test_models_of_a_fresh_agent_is_an_empty_array(agent: Agent) -> None:
    answer = agent.http.get("/models")

    assert (answer.status_code, answer.json()) == (200, [])


def test_health_is_right_from_the_first_call_on(gpus: Agent) -> None:
    empty: dict[str, Any] = {"state": "ready", "pending": [], "in_progress": None, "completed": [], "failed": []}
    readings = [
        {"index": n, "vram_used_mb": 0, "vram_free_mb": size, "utilization_pct": 0, "temp_c": 0}
        for n, size in enumerate(GPUS_MB)
    ]
    uptime = gpus.first_health["uptime_secs"]

    assert gpus.first_health == {
        "status": "ok",
        "uptime_secs": uptime,
        "devices": readings,
        "activation": empty,
    }
    assert isinstance(uptime, int)
    assert gpus.http.get("/health").json()["host"] == "gpus"
    eventually(lambda: gpus.stranger.get("/health").json()["uptime_secs"] > uptime, what="the uptime to grow")


def test_health_names_no_model_and_no_failure_to_a_caller_without_the_token(agent: Agent) -> None:
    agent.loaded("fake/named")
    agent.load("fake/fails", "vllm")

    known = agent.http.get("/health")
    without = agent.stranger.get("/health")
    wrong = agent.stranger.get("/health", headers={"Authorization": "Bearer guessed"})

    assert "fake/named" in known.json()["activation"]["completed"]
    assert set(known.json()) - set(without.json()) == {"host"}
    for answer in (without, wrong):
        assert answer.status_code == 200
        assert "fake/" not in answer.text
    agent.unload("fake/named")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/discovery"),
        ("GET", "/version"),
        ("GET", "/models"),
        ("GET", "/models/x/endpoint"),
        ("POST", "/models/load"),
        ("POST", "/models/unload"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/devices"),
        ("GET", "/instances/x/logs"),
    ],
)
def test_everything_but_health_needs_the_token(agent: Agent, method: str, path: str) -> None:
    without = agent.stranger.request(method, path, json={"model_id": "m", "harness": "fake"})
    wrong = agent.stranger.request(method, path, headers={"Authorization": "Bearer guessed"})

    assert (without.status_code, wrong.status_code) == (401, 401)


def test_discovery_of_a_cpu_host_has_no_cuda_and_no_devices(agent: Agent) -> None:
    system = os.uname()

    found = agent.http.get("/discovery").json()

    harnesses = found.pop("harnesses")
    assert found == {
        "hostname": system.nodename,
        "os": "Linux",
        "kernel": system.release,
        "cuda_version": None,
        "driver_version": None,
        "devices": [],
    }
    assert {"candle", "llamacpp", "fake"} <= set(harnesses)
    assert agent.first_health["devices"] == []


def test_discovery_lists_gpus_with_their_memory(gpus: Agent) -> None:
    devices = gpus.http.get("/discovery").json()["devices"]

    assert devices[2] == {"index": 2, "name": "GPU 48000", "vram_total_mb": 48_000, "compute_capability": ""}
    assert [device["index"] for device in devices] == [0, 1, 2, 3]


def test_version_names_the_build(agent: Agent) -> None:
    found = agent.http.get("/version").json()

    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["package_version"])
    assert {"git_sha", "git_dirty", "features"} <= found.keys()
    assert "fake" in found["features"]


# Loading


def test_a_load_is_answered_when_the_model_is_ready(agent: Agent) -> None:
    asking = later(agent.load, "fake/slow")
    eventually(lambda: agent.status("fake/slow") == "loading", what="it to be loading")
    while_loading = agent.activation()
    endpoint, chat = agent.endpoint("fake/slow"), agent.chat("fake/slow")
    answer = asking.result()

    assert while_loading["in_progress"] == "fake/slow"
    assert "fake/slow" not in while_loading["completed"]
    assert (endpoint.status_code, chat.status_code) == (404, 404)
    assert (answer.status_code, answer.json()) == (200, {"status": "loaded"})
    assert agent.listed("fake/slow") == {
        "id": "fake/slow",
        "harness": "fake",
        "status": "loaded",
        "devices": [],
        "vram_used_mb": None,
    }
    assert agent.activation()["in_progress"] is None
    assert "fake/slow" in agent.activation()["completed"]
    assert agent.chat("fake/slow").status_code == 200


def test_loading_what_is_loaded_succeeds(agent: Agent) -> None:
    first, second = agent.load("fake/again"), agent.load("fake/again")

    assert (first.status_code, second.status_code, second.json()) == (200, 200, {"status": "loaded"})
    assert agent.spawned("fake/again") == 1


def test_loads_at_once_share_one_start(agent: Agent) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: agent.load("fake/crowd"), range(8)))

    assert {answer.status_code for answer in answers} == {200}
    assert agent.spawned("fake/crowd") == 1


def test_a_caller_that_leaves_does_not_end_the_load(agent: Agent) -> None:
    with pytest.raises(httpx.ReadTimeout):
        agent.http.post("/models/load", json={"model_id": "fake/left", "harness": "fake"}, timeout=0.3)

    eventually(lambda: agent.status("fake/left") == "loaded", what="the load to end")
    assert agent.spawned("fake/left") == 1


def test_a_declared_model_is_loaded_as_its_catalogue_declares_it(agent: Agent) -> None:
    agent.loaded("tiny/alpha", "candle", quant="Q4_K_M")

    answer = agent.chat("tiny/alpha", max_tokens=8)

    text = answer.json()["choices"][0]["message"]["content"]
    assert set(re.findall(r"[A-Za-z]+", text)) <= set(re.findall(r"[A-Za-z]+", ALPHA))
    assert (agent.listed("tiny/alpha") or {})["harness"] == "llamacpp"


def test_a_file_that_no_catalogue_names_is_loaded_by_its_path(agent: Agent, weights: Path) -> None:
    path = str(weights / "bravo.gguf")
    agent.loaded(path, "candle", quant="F32")

    assert agent.endpoint(path).json() == {"url": f"http://localhost:{agent.port}"}
    assert agent.chat(path, max_tokens=4).status_code == 200
    assert agent.unload(path).status_code == 200


def test_an_unknown_harness_loads_nothing(agent: Agent) -> None:
    answers = [agent.load(model, "mystery") for model in ("new/model", "fake/again")]

    assert [(a.status_code, a.json()) for a in answers] == [(400, {"error": "unknown harness: mystery"})] * 2
    assert agent.listed("new/model") is None


def test_candle_without_quant_means_vllm_which_a_host_may_lack(gpus: Agent, weights: Path) -> None:
    answer = gpus.load(str(weights / "bravo.gguf"), "candle")

    assert answer.status_code == 422
    assert "engine 'vllm' is not there" in answer.json()["error"]


def test_a_load_that_fails_says_why_and_is_listed_as_failed(agent: Agent) -> None:
    answer = agent.load("fake/dies")

    error = answer.json()["error"]
    failed = {entry["model_id"]: entry["error"] for entry in agent.activation()["failed"]}
    assert answer.status_code == 400
    assert "exited with code 3 while starting" in error
    assert "exited with code 3" in failed["fake/dies"]
    assert agent.activation()["state"] == "ready"
    assert agent.listed("fake/dies") is None
    assert agent.chat("fake/dies").status_code == 404


def test_starts_that_keep_failing_are_put_off_with_retry_after(agent: Agent) -> None:
    eventually(lambda: agent.load("fake/dies").status_code == 503, what="the back-off")

    answer = agent.load("fake/dies")

    assert "starts keep failing" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) > 1


def test_what_can_never_fit_is_422(gpus: Agent) -> None:
    large, elsewhere = gpus.load("fake/large"), gpus.load("fake/elsewhere")

    assert (large.status_code, elsewhere.status_code) == (422, 422)
    assert "12000 MiB more than there can ever be" in large.json()["error"]
    assert "pinned on another" in elsewhere.json()["error"]


def test_what_does_not_fit_now_is_503_with_retry_after(gpus: Agent) -> None:
    gpus.loaded("fake/first")

    answer = gpus.load("fake/second")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "does not fit by" in answer.json()["error"]
    assert gpus.unload("fake/first").status_code == 200


def test_tensor_parallel_takes_so_many_devices_and_readings_show_it(gpus: Agent) -> None:
    gpus.loaded("fake/pair", tensor_parallel=2, devices=[0, 1])

    entry = gpus.listed("fake/pair") or {}
    readings = gpus.stranger.get("/health").json()["devices"]
    assert (entry["devices"], entry["vram_used_mb"]) == ([0, 1], 20_000)
    assert [r["vram_used_mb"] for r in readings][:2] == [10_000, 10_000]
    assert [r["vram_free_mb"] for r in readings][:2] == [14_000, 14_000]
    assert gpus.unload("fake/pair").status_code == 200
    assert [r["vram_used_mb"] for r in gpus.stranger.get("/health").json()["devices"]][:2] == [0, 0]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b"\xff", 400, "JSON"),
        (b"[]", 422, "object"),
        (b'{"harness": "fake"}', 422, "model_id"),
        (b'{"model_id": "m"}', 422, "harness"),
        (b'{"model_id": 7, "harness": "fake"}', 422, "model_id"),
        (b'{"model_id": "", "harness": "fake"}', 422, "model_id"),
        (b'{"model_id": "a\\nb", "harness": "fake"}', 422, "model_id"),
        (b'{"model_id": "m", "harness": "fake", "tensor_parallel": 0}', 422, "tensor_parallel"),
        (b'{"model_id": "m", "harness": "fake", "devices": ["0"]}', 422, "devices"),
        (b'{"model_id": "m", "harness": "fake", "devices": [7]}', 400, "no device 7"),
        (b'{"model_id": "m", "harness": "fake", "quant": 4}', 422, "quant"),
    ],
)
def test_a_load_that_is_not_right_names_what_is_wrong(gpus: Agent, body: bytes, status: int, named: str) -> None:
    answer = gpus.http.post("/models/load", content=body)

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert named in answer.json()["error"]


# Unloading


def test_an_unload_is_answered_when_the_worker_is_gone(gpus: Agent) -> None:
    worker = gpus.loaded("fake/stubborn")  # it ignores TERM

    answer = gpus.unload("fake/stubborn")
    there = psutil.pid_exists(worker["pid"])

    assert (answer.status_code, answer.json()) == (200, {"status": "unloaded"})
    assert not there
    assert (gpus.listed("fake/stubborn"), gpus.instances("fake/stubborn")) == (None, [])
    assert gpus.chat("fake/stubborn").status_code == 404


def test_an_unload_without_a_model_says_what_is_missing(agent: Agent) -> None:
    missing, empty = agent.http.post("/models/unload", json={}), agent.unload("")

    assert (missing.status_code, missing.json()) == (400, {"error": "missing model_id"})
    assert (empty.status_code, empty.json()) == (400, {"error": "missing model_id"})
    assert agent.http.post("/models/unload", content=b"{").status_code == 400


def test_an_unload_of_what_is_not_loaded_is_404(agent: Agent) -> None:
    answer = agent.unload("nobody/knows")

    assert (answer.status_code, answer.json()) == (404, {"error": "model 'nobody/knows' not loaded on this neuron"})


def test_an_unload_waits_for_the_request_in_flight(agent: Agent) -> None:
    agent.loaded("fake/waited-for")
    chat = later(agent.chat, "fake/waited-for", stream=True)
    eventually(lambda: agent.running("fake/waited-for") == 1, what="the request")
    unload = later(agent.unload, "fake/waited-for")
    eventually(lambda: agent.instance("fake/waited-for")["state"] == "draining", what="the drain")
    leaving = (agent.status("fake/waited-for"), agent.endpoint("fake/waited-for").status_code)
    refused = agent.chat("fake/waited-for").status_code
    in_flight = not chat.done() and not unload.done()

    agent.script("fake/waited-for", tps=0)

    assert leaving == (None, 404)
    assert refused == 404
    assert in_flight
    assert chat.result().text.rstrip().endswith("data: [DONE]")
    assert unload.result().json() == {"status": "unloaded"}


def test_an_unload_gives_up_on_a_request_that_outlasts_the_grace(gpus: Agent) -> None:
    gpus.loaded("fake/held")
    chat = later(gpus.chat, "fake/held")
    eventually(lambda: gpus.running("fake/held") == 1, what="the request")

    answer = gpus.unload("fake/held")
    status = gpus.status("fake/held")
    gpus.script("fake/held", tps=0)

    error = "cannot unload 'fake/held': inference still in flight"
    assert (answer.status_code, answer.json()) == (404, {"error": error})
    assert status == "loaded"
    assert chat.result().status_code == 200
    assert gpus.unload("fake/held").status_code == 200


def test_an_unload_counts_the_requests_of_routers_too(gpus: Agent) -> None:
    def unload_while_busy() -> httpx.Response | None:
        instance = gpus.loaded("fake/routed")["id"]
        gpus.report(seen={"gpus": 1 << 60}, in_flight={instance: 1})
        answer = gpus.unload("fake/routed")
        return None if answer.is_success else answer  # the agent had not read the report yet

    try:
        busy = eventually(unload_while_busy, what="an agent that has read the report")
        assert busy is not None
        gpus.report(seen={"gpus": 0})
        unheard = gpus.unload("fake/routed")
        gpus.report(seen={"gpus": 1 << 60})
        gone = gpus.unload("fake/routed")
    finally:
        gpus.stop_reporting()

    assert (busy.status_code, "inference still in flight" in busy.json()["error"]) == (404, True)
    assert (unheard.status_code, "not every router" in unheard.json()["error"]) == (503, True)
    assert (gone.status_code, gone.json()) == (200, {"status": "unloaded"})


# Serving


def test_the_endpoint_of_a_loaded_model_is_the_agent_itself(agent: Agent) -> None:
    agent.loaded("fake/again")

    answers = [agent.http.get(f"/models/{name}/endpoint") for name in ("fake%2Fagain", "fake/again")]

    assert {a.status_code for a in answers} == {200}
    assert [a.json() for a in answers] == [{"url": f"http://localhost:{agent.port}"}] * 2


@pytest.mark.parametrize("path", ["fake%2Fnobody/endpoint", "fake/nobody/endpoint", "fake/again", "endpoint"])
def test_any_other_endpoint_is_404(agent: Agent, path: str) -> None:
    answer = agent.http.get(f"/models/{path}")

    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_a_gateway_gets_from_discovery_to_an_answer(agent: Agent) -> None:
    agent.unload("fake/again")
    before = agent.status("fake/again")
    load = agent.load("fake/again", devices=[0])
    after = agent.status("fake/again")
    url = agent.endpoint("fake/again").json()["url"].replace("localhost", "127.0.0.1")

    answer = agent.stranger.post(
        f"{url}/v1/chat/completions",
        json={"model": "fake/again", "messages": MESSAGES},
        headers={"Authorization": f"Bearer {agent.token}"},
    )

    assert (before, load.status_code, after) == (None, 200, "loaded")
    body = answer.json()
    assert (body["object"], body["model"]) == ("chat.completion", "fake/again")
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"]["completion_tokens"] > 0


def test_a_model_that_is_not_loaded_is_404_in_the_words_callers_know(agent: Agent) -> None:
    plain, streamed = agent.chat("nobody/knows"), agent.chat("nobody/knows", stream=True)
    text = agent.http.post("/v1/completions", json={"model": "nobody/knows", "prompt": "x"})

    expected = (404, {"error": "model 'nobody/knows' not loaded on this neuron"})
    assert [(a.status_code, a.json()) for a in (plain, streamed, text)] == [expected] * 3


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"{}", 422), (b'{"model": null}', 422), (b'{"model": 3}', 422)]
)
def test_a_request_that_names_no_model_says_so(agent: Agent, body: bytes, status: int) -> None:
    answer = agent.http.post("/v1/chat/completions", content=body)

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_a_text_is_completed(agent: Agent) -> None:
    agent.loaded("fake/again")

    answer = agent.http.post("/v1/completions", json={"model": "fake/again", "prompt": "x"})

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"]


def test_a_stream_comes_as_it_is_made(agent: Agent) -> None:
    agent.loaded("fake/streams")
    body = {"model": "fake/streams", "messages": MESSAGES, "stream": True}
    with agent.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        waits = agent.running("fake/streams")
        agent.script("fake/streams", tps=0)
        rest = list(lines)
    agent.script("fake/streams")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert json.loads(first.removeprefix("data: "))["object"] == "chat.completion.chunk"
    assert waits == 1
    assert rest[-1] == "data: [DONE]"


def test_a_client_that_leaves_a_stream_frees_the_worker(agent: Agent) -> None:
    agent.loaded("fake/streams")
    body = {"model": "fake/streams", "messages": MESSAGES, "stream": True}
    with agent.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        before = agent.running("fake/streams")

    eventually(lambda: agent.running("fake/streams") == 0, within_s=2, what="the worker to be free")
    assert before == 1
    assert agent.unload("fake/streams").status_code == 200  # at once: nothing counts as in flight any more


def test_a_client_that_leaves_a_plain_request_frees_the_worker(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", hang="serving")
    with pytest.raises(httpx.ReadTimeout):
        agent.http.post("/v1/chat/completions", json={"model": "fake/moody", "messages": MESSAGES}, timeout=0.3)

    eventually(lambda: agent.running("fake/moody") == 0, within_s=2, what="the worker to be free")


def test_a_worker_error_is_passed_on_as_it_is(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", fail_status=500)

    plain, streamed = agent.chat("fake/moody"), agent.chat("fake/moody", stream=True)

    assert (plain.status_code, streamed.status_code) == (500, 500)
    assert "error" in plain.json()


def test_a_worker_that_breaks_before_it_answers_is_502(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", refuse=True)

    plain, streamed = agent.chat("fake/moody"), agent.chat("fake/moody", stream=True)

    assert (plain.status_code, streamed.status_code) == (502, 502)
    assert "the worker of 'fake/moody' broke off" in plain.json()["error"]


def test_a_worker_that_takes_too_long_is_504(agent: Agent) -> None:
    agent.loaded("fake/tardy")

    answer = agent.chat("fake/tardy")

    assert (answer.status_code, "took longer than 0.3 s" in answer.json()["error"]) == (504, True)


def test_a_stream_that_is_cut_ends_with_an_error_and_no_done(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", cut_stream_after=3)

    answer = agent.chat("fake/moody", stream=True)

    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert answer.status_code == 200
    assert "broke off" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
    assert "[DONE]" not in answer.text


def test_a_model_with_a_request_in_flight_is_not_reaped(agent: Agent) -> None:
    worker = agent.loaded("fake/idle")
    chat = later(agent.chat, "fake/idle")
    eventually(lambda: agent.running("fake/idle") == 1, what="the request")

    eventually(lambda: time.time() - worker["ready"] > 1.5, what="more than twice as long as it may idle")
    kept = agent.instance("fake/idle")["state"]
    agent.script("fake/idle", tps=0)

    assert (kept, chat.result().status_code) == ("ready", 200)
    eventually(lambda: not agent.instances("fake/idle"), what="the reap once it idles")


# Logs and devices


def test_a_log_is_followed_until_the_instance_is_gone(agent: Agent) -> None:
    instance = agent.loaded("fake/again")["id"]
    plain = agent.http.get(f"/instances/{instance}/logs", params={"lines": 1})
    with agent.http.stream("GET", f"/instances/{instance}/logs", params={"follow": 1}) as answer:
        parts = answer.iter_text()
        first = next(parts)
        unload = agent.unload("fake/again")
        rest = "".join(parts)

    assert (plain.status_code, plain.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert len(plain.text.splitlines()) == 1
    assert "Listening on" in first + rest
    assert unload.status_code == 200


def test_the_log_of_the_run_before_is_kept(agent: Agent) -> None:
    first = agent.loaded("fake/ends")
    none = agent.http.get(f"/instances/{first['id']}/logs", params={"run": "previous"})
    agent.chat("fake/ends")
    eventually(lambda: not agent.instances("fake/ends"), what="its end")
    of_the_dead = agent.http.get(f"/instances/{first['id']}/logs").text

    second = agent.loaded("fake/ends")
    before = agent.http.get(f"/instances/{second['id']}/logs", params={"run": "previous", "follow": 1})

    assert none.status_code == 404
    assert "RuntimeError" in of_the_dead
    assert before.text == of_the_dead
    assert "RuntimeError" not in agent.http.get(f"/instances/{second['id']}/logs").text


@pytest.mark.parametrize("name", ["nobody", "..%2F..%2Fagent.log", "%2Fetc%2Fpasswd"])
def test_no_other_file_is_read_as_a_log(agent: Agent, name: str) -> None:
    answers = [agent.http.get(f"/instances/{name}/logs{query}") for query in ("", "?run=previous", "?follow=1")]

    assert {answer.status_code for answer in answers} == {404}


def test_devices_say_what_is_admitted_to_them(gpus: Agent) -> None:
    instance = gpus.loaded("fake/first")["id"]

    devices = gpus.http.get("/devices").json()

    large = next(device for device in devices if device["total_mb"] == 48_000)
    assert (large["budget_mb"], large["admitted_mb"]) == (48_000, 40_000)
    assert large["instances"] == {instance: 40_000}
    assert gpus.unload("fake/first").status_code == 200


def test_a_worker_that_was_killed_is_not_listed_as_loaded(agent: Agent) -> None:
    worker = agent.loaded("fake/again")

    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: agent.status("fake/again") is None, what="it to be listed no more")

    assert agent.chat("fake/again").status_code == 404
    assert agent.load("fake/again").status_code == 200


def test_a_load_that_takes_too_long_fails(gpus: Agent) -> None:
    answer = gpus.stuck.result()

    assert answer.status_code == 400
    assert "the start took longer than 6 s" in answer.json()["error"]
    eventually(lambda: not gpus.instances("fake/stuck"), what="its end")
