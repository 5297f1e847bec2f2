"""LoRA adapters of a base on one process of real vLLM."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.stack import eventually
from tests.vllm.host import VllmHost

NAMES = ("tiny/base", "tiny/tuned", "tiny/other")


def test_adapters_are_loaded_into_the_running_base_and_change_its_answers(
    host: VllmHost, tell: Callable[[str], None]
) -> None:
    alone = host.text("tiny/one")
    host.cold("tiny/one", "tiny/two", "tiny/plain")
    base = host.text("tiny/base")
    before = host.instance("tiny/base")
    tuned, other = host.text("tiny/tuned"), host.text("tiny/other")
    after = host.instance("tiny/base")

    assert base == alone
    assert len({base, tuned, other}) == 3
    assert (before.adapters, set(after.adapters)) == ({}, {"tiny/tuned", "tiny/other"})
    assert (after.id, after.pid) == (before.id, before.pid)
    tell(f"a base with adapters started {after.path} in {after.ready - after.started:.1f} s")


def test_simultaneous_requests_get_the_answers_of_their_own_adapters(host: VllmHost) -> None:
    says = {name: host.text(name) for name in NAMES}

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: (name, host.text(name)), NAMES * 4))

    assert all(says[name] == text for name, text in answers)


def test_an_adapter_that_does_not_fit_fails_its_function_alone(host: VllmHost) -> None:
    tuned, pid = host.text("tiny/tuned"), host.instance("tiny/base").pid

    answer = host.chat("tiny/misfit")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_failed")
    assert host.instance("tiny/base").adapter_problems["tiny/misfit"].startswith("the engine cannot load the adapter")
    assert (host.text("tiny/tuned"), host.instance("tiny/base").pid) == (tuned, pid)


def test_routers_cannot_load_adapters(host: VllmHost) -> None:
    host.text("tiny/tuned")
    worker = host.instance("tiny/base")
    as_router = {"Authorization": f"Bearer {host.worker_key(worker.id)}"}
    body = {"lora_name": "mine", "lora_path": "/etc"}

    with httpx.Client(base_url=worker.url, headers=as_router, trust_env=False, timeout=60) as router:
        paths = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters")
        statuses = [router.post(path, json=body).status_code for path in paths]

    assert statuses == [401, 401, 401]


def test_a_restarted_agent_keeps_the_adapters_of_its_workers(host: VllmHost) -> None:
    tuned, before = host.text("tiny/tuned"), host.instance("tiny/base")

    host.restart_agent()
    eventually(lambda: '"adopted"' in host.log("a"), within_s=30, what="adoption")

    assert host.text("tiny/tuned") == tuned
    after = host.instance("tiny/base")
    assert (after.pid, after.adapters) == (before.pid, before.adapters)
    host.cold("tiny/base")
