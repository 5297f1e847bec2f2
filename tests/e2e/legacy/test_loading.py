"""Loading and unloading of models through the Rust system's API."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import ALPHA
from tests.e2e.legacy.agents import Agent, later
from tests.support.stack import eventually

pytestmark = [pytest.mark.xdist_group("agents"), pytest.mark.long]


def test_a_load_is_answered_when_the_model_is_ready(agent: Agent) -> None:
    load = later(agent.load, "fake/slow")
    eventually(lambda: agent.status("fake/slow") == "loading", what="it to be loading")
    while_loading = agent.activation()
    endpoint, chat = agent.endpoint("fake/slow"), agent.chat("fake/slow")
    answer = load.result()

    assert while_loading["in_progress"] == "fake/slow"
    assert "fake/slow" not in while_loading["completed"]
    assert (endpoint.status_code, chat.status_code) == (404, 404)
    assert (answer.status_code, answer.json()) == (200, {"status": "loaded"})
    assert agent.entry("fake/slow") == {
        "id": "fake/slow",
        "harness": "fake",
        "status": "loaded",
        "devices": [],
        "vram_used_mb": None,
    }
    assert agent.activation()["in_progress"] is None
    assert "fake/slow" in agent.activation()["completed"]
    assert agent.chat("fake/slow").status_code == 200


def test_a_load_of_a_loaded_model_succeeds(agent: Agent) -> None:
    first = agent.load("fake/again")
    workers = agent.spawned("fake/again")

    second = agent.load("fake/again")

    assert (first.status_code, second.status_code, second.json()) == (200, 200, {"status": "loaded"})
    assert agent.spawned("fake/again") == workers


def test_concurrent_loads_share_one_start(agent: Agent) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: agent.load("fake/crowd"), range(8)))

    assert {answer.status_code for answer in answers} == {200}
    assert agent.spawned("fake/crowd") == 1


def test_a_load_continues_after_its_caller_disconnects(agent: Agent) -> None:
    with pytest.raises(httpx.ReadTimeout):
        agent.http.post("/models/load", json={"model_id": "fake/left", "harness": "fake"}, timeout=0.3)

    eventually(lambda: agent.status("fake/left") == "loaded", what="the load to end")
    assert agent.spawned("fake/left") == 1


def test_a_declared_model_is_loaded_from_the_catalogue(agent: Agent) -> None:
    agent.loaded("tiny/alpha", "candle", quant="Q4_K_M")

    answer = agent.chat("tiny/alpha", max_tokens=8)

    text = answer.json()["choices"][0]["message"]["content"]
    assert set(re.findall(r"[A-Za-z]+", text)) <= set(re.findall(r"[A-Za-z]+", ALPHA))
    assert (agent.entry("tiny/alpha") or {})["harness"] == "llamacpp"


def test_an_undeclared_file_is_loaded_by_its_path(agent: Agent, weights: Path) -> None:
    path = str(weights / "bravo.gguf")
    agent.loaded(path, "candle", quant="F32")

    assert agent.endpoint(path).json() == {"url": f"http://localhost:{agent.port}"}
    assert agent.chat(path, max_tokens=4).status_code == 200
    assert agent.unload(path).status_code == 200


def test_a_load_with_an_unknown_harness_is_400(agent: Agent) -> None:
    answers = [agent.load(model, "mystery") for model in ("new/model", "fake/again")]

    assert [(a.status_code, a.json()) for a in answers] == [(400, {"error": "unknown harness: mystery"})] * 2
    assert agent.entry("new/model") is None


def test_candle_without_quant_selects_vllm(gpus: Agent, weights: Path) -> None:
    answer = gpus.load(str(weights / "bravo.gguf"), "candle")

    assert answer.status_code == 422
    assert "engine 'vllm' is not there" in answer.json()["error"]


def test_a_failed_load_has_the_reason_and_is_listed_as_failed(agent: Agent) -> None:
    answer = agent.load("fake/dies")

    error = answer.json()["error"]
    failed = {entry["model_id"]: entry["error"] for entry in agent.activation()["failed"]}
    assert answer.status_code == 400
    assert "exited with code 3 while starting" in error
    assert "exited with code 3" in failed["fake/dies"]
    assert agent.activation()["state"] == "ready"
    assert agent.entry("fake/dies") is None
    assert agent.chat("fake/dies").status_code == 404


def test_after_repeated_failures_a_load_is_503_with_retry_after(agent: Agent) -> None:
    eventually(lambda: agent.load("fake/dies").status_code == 503, what="the back-off")

    answer = agent.load("fake/dies")

    assert "starts keep failing" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) > 1


def test_a_load_that_can_never_fit_is_422(gpus: Agent) -> None:
    large, elsewhere = gpus.load("fake/large"), gpus.load("fake/elsewhere")

    assert (large.status_code, elsewhere.status_code) == (422, 422)
    assert "12000 MiB more than there can ever be" in large.json()["error"]
    assert "pinned on another" in elsewhere.json()["error"]


def test_a_load_that_does_not_fit_now_is_503_with_retry_after(gpus: Agent) -> None:
    gpus.loaded("fake/first")

    answer = gpus.load("fake/second")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "does not fit by" in answer.json()["error"]
    assert gpus.unload("fake/first").status_code == 200


def test_tensor_parallel_sets_the_number_of_devices(gpus: Agent) -> None:
    gpus.loaded("fake/pair", tensor_parallel=2, devices=[0, 1])

    entry = gpus.entry("fake/pair") or {}
    readings = gpus.without_token.get("/health").json()["devices"]
    assert (entry["devices"], entry["vram_used_mb"]) == ([0, 1], 20_000)
    assert [r["vram_used_mb"] for r in readings][:2] == [10_000, 10_000]
    assert [r["vram_free_mb"] for r in readings][:2] == [14_000, 14_000]
    assert gpus.unload("fake/pair").status_code == 200
    assert [r["vram_used_mb"] for r in gpus.without_token.get("/health").json()["devices"]][:2] == [0, 0]


@pytest.mark.parametrize(
    ("body", "status", "part"),
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
def test_an_invalid_load_names_the_wrong_field(gpus: Agent, body: bytes, status: int, part: str) -> None:
    answer = gpus.http.post("/models/load", content=body)

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert part in answer.json()["error"]


# Unloading.


def test_an_unload_is_answered_after_the_worker_has_exited(gpus: Agent) -> None:
    worker = gpus.loaded("fake/stubborn")  # it ignores TERM

    answer = gpus.unload("fake/stubborn")
    is_alive = psutil.pid_exists(worker["pid"])

    assert (answer.status_code, answer.json()) == (200, {"status": "unloaded"})
    assert not is_alive
    assert (gpus.entry("fake/stubborn"), gpus.instances("fake/stubborn")) == (None, [])
    assert gpus.chat("fake/stubborn").status_code == 404


def test_an_unload_without_a_model_is_400(agent: Agent) -> None:
    missing, empty = agent.http.post("/models/unload", json={}), agent.unload("")

    assert (missing.status_code, missing.json()) == (400, {"error": "missing model_id"})
    assert (empty.status_code, empty.json()) == (400, {"error": "missing model_id"})
    assert agent.http.post("/models/unload", content=b"{").status_code == 400


def test_an_unload_of_a_model_that_is_not_loaded_is_404(agent: Agent) -> None:
    answer = agent.unload("unknown/model")

    assert (answer.status_code, answer.json()) == (404, {"error": "model 'unknown/model' not loaded on this neuron"})


def test_an_unload_waits_for_the_request_in_flight(agent: Agent) -> None:
    agent.loaded("fake/waited-for")
    chat = later(agent.chat, "fake/waited-for", stream=True)
    eventually(lambda: agent.running("fake/waited-for") == 1, what="the request")
    unload = later(agent.unload, "fake/waited-for")
    eventually(lambda: agent.instance("fake/waited-for")["state"] == "draining", what="the drain")
    while_draining = (agent.status("fake/waited-for"), agent.endpoint("fake/waited-for").status_code)
    refused = agent.chat("fake/waited-for").status_code
    in_flight = not chat.done() and not unload.done()

    agent.script("fake/waited-for", tps=0)

    assert while_draining == (None, 404)
    assert refused == 404
    assert in_flight
    assert chat.result().text.rstrip().endswith("data: [DONE]")
    assert unload.result().json() == {"status": "unloaded"}


def test_an_unload_fails_when_a_request_exceeds_the_grace(gpus: Agent) -> None:
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


def test_an_unload_also_waits_for_requests_of_routers(gpus: Agent) -> None:
    def unload_while_busy() -> httpx.Response | None:
        instance = gpus.loaded("fake/routed")["id"]
        gpus.report(seen={"gpus": 1 << 60}, in_flight={instance: 1})
        answer = gpus.unload("fake/routed")
        return None if answer.is_success else answer  # the agent had not read the report yet

    try:
        busy = eventually(unload_while_busy, what="an agent that has read the report")
        assert busy is not None
        gpus.report(seen={"gpus": 0})
        unacknowledged = gpus.unload("fake/routed")
        gpus.report(seen={"gpus": 1 << 60})
        unloaded = gpus.unload("fake/routed")
    finally:
        gpus.stop_reporting()

    assert (busy.status_code, "inference still in flight" in busy.json()["error"]) == (404, True)
    assert (unacknowledged.status_code, "not every router" in unacknowledged.json()["error"]) == (503, True)
    assert (unloaded.status_code, unloaded.json()) == (200, {"status": "unloaded"})
