"""`/health`, `/discovery`, `/version`, the token, logs and devices in the Rust system's shapes."""

import os
import re
import signal
from typing import Any

import pytest

from tests.e2e.legacy.agents import GPUS_MB, Agent
from tests.support.stack import eventually

pytestmark = [pytest.mark.xdist_group("agents"), pytest.mark.long]


def test_models_of_a_new_agent_is_an_empty_array(agent: Agent) -> None:
    answer = agent.http.get("/models")

    assert (answer.status_code, answer.json()) == (200, [])


def test_health_has_readings_from_the_first_call(gpus: Agent) -> None:
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
    eventually(lambda: gpus.without_token.get("/health").json()["uptime_secs"] > uptime, what="the uptime to grow")


def test_health_without_the_token_names_no_model_or_failure(agent: Agent) -> None:
    agent.loaded("fake/named")
    agent.load("fake/fails", "vllm")

    with_token = agent.http.get("/health")
    no_token = agent.without_token.get("/health")
    wrong = agent.without_token.get("/health", headers={"Authorization": "Bearer guessed"})

    assert "fake/named" in with_token.json()["activation"]["completed"]
    assert set(with_token.json()) - set(no_token.json()) == {"host"}
    for answer in (no_token, wrong):
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
    no_token = agent.without_token.request(method, path, json={"model_id": "m", "harness": "fake"})
    wrong = agent.without_token.request(method, path, headers={"Authorization": "Bearer guessed"})

    assert (no_token.status_code, wrong.status_code) == (401, 401)


def test_discovery_of_a_cpu_host_has_no_cuda_and_no_devices(agent: Agent) -> None:
    system = os.uname()

    result = agent.http.get("/discovery").json()

    harnesses = result.pop("harnesses")
    assert result == {
        "hostname": system.nodename,
        "os": "Linux",
        "kernel": system.release,
        "cuda_version": None,
        "driver_version": None,
        "devices": [],
    }
    assert {"candle", "llamacpp", "fake"} <= set(harnesses)
    assert agent.first_health["devices"] == []


def test_discovery_lists_gpus_with_memory(gpus: Agent) -> None:
    devices = gpus.http.get("/discovery").json()["devices"]

    assert devices[2] == {"index": 2, "name": "GPU 48000", "vram_total_mb": 48_000, "compute_capability": ""}
    assert [device["index"] for device in devices] == [0, 1, 2, 3]


def test_version_has_the_package_version_and_features(agent: Agent) -> None:
    result = agent.http.get("/version").json()

    assert re.fullmatch(r"\d+\.\d+\.\d+.*", result["package_version"])
    assert {"git_sha", "git_dirty", "features"} <= result.keys()
    assert "fake" in result["features"]


# Logs and devices.


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


def test_the_log_of_the_previous_run_can_be_read(agent: Agent) -> None:
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


@pytest.mark.parametrize("name", ["unknown", "..%2F..%2Fagent.log", "%2Fetc%2Fpasswd"])
def test_an_unknown_or_hostile_instance_id_has_no_log(agent: Agent, name: str) -> None:
    answers = [agent.http.get(f"/instances/{name}/logs{query}") for query in ("", "?run=previous", "?follow=1")]

    assert {answer.status_code for answer in answers} == {404}


def test_devices_have_the_memory_of_their_instances(gpus: Agent) -> None:
    instance = gpus.loaded("fake/first")["id"]

    devices = gpus.http.get("/devices").json()

    large = next(device for device in devices if device["total_mb"] == 48_000)
    assert (large["budget_mb"], large["admitted_mb"]) == (48_000, 40_000)
    assert large["instances"] == {instance: 40_000}
    assert gpus.unload("fake/first").status_code == 200


def test_a_killed_worker_is_not_listed_as_loaded(agent: Agent) -> None:
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
