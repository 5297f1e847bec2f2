"""What a stranger gets at a vLLM worker's own port. The engine here opens its paths as vLLM does; `tests/vllm` has the
real one."""

import httpx
import pytest

from tests.support.fleet import Fleet

pytestmark = pytest.mark.xdist_group("small-vllm")
PATHS = (
    "/health", "/metrics", "/invocations", "/tokenize", "/pooling", "/score", "/collective_rpc", "/v1/models",
    "/v1/load_lora_adapter",
)  # fmt: skip


def test_every_path_of_a_worker_needs_its_key(vllm_fleet: Fleet) -> None:
    answer = vllm_fleet.chat("small")
    (instance,) = vllm_fleet.records()["a"].instances
    with httpx.Client(base_url=instance.url, trust_env=False) as stranger:
        statuses = {(m, path): stranger.request(m, path).status_code for path in PATHS for m in ("GET", "POST")}

    assert answer.status_code == 200, answer.text
    assert instance.server == "vllm"
    assert set(statuses.values()) == {401}


def test_only_the_agent_loads_adapters_into_a_worker(vllm_fleet: Fleet) -> None:
    assert vllm_fleet.chat("legal").status_code == 200
    (instance,) = vllm_fleet.records()["a"].instances
    as_router = {"Authorization": f"Bearer {vllm_fleet.worker_key(instance.id)}"}
    body = {"lora_name": "mine", "lora_path": "/etc"}
    with httpx.Client(base_url=instance.url, trust_env=False, headers=as_router) as router:
        statuses = [router.post(f"/v1/{verb}_lora_adapter", json=body).status_code for verb in ("load", "unload")]
        served = router.get("/v1/models").status_code

    assert (statuses, served) == ([401, 401], 200)
    assert vllm_fleet.http.post("/v1/load_lora_adapter", json=body).status_code == 404
