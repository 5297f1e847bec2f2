"""Workers that die, invalid weights, taken ports: a clear answer, and no effect on other requests."""

import json
import os
import signal
import threading
from typing import Any

import httpx
import psutil
import pytest
import redis

from cortex.platform.keys import host_token, worker_key
from cortex.platform.process.environment import MARKER
from cortex.platform.record import HostRecord, RouterReport
from cortex.platform.workers.activity import requests_running
from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)

MESSAGES = [{"role": "user", "content": "Hello!"}]


def kill_worker(stack: Stack, name: str) -> str:
    """KILL the function's worker; return the id of its instance."""
    instance = stack.instance(name)
    os.kill(instance["pid"], signal.SIGKILL)
    return str(instance["id"])


def ready(stack: Stack, name: str) -> list[dict[str, Any]]:
    return [i for i in stack.function(name)["instances"] if i["state"] == "ready"]


def killed_while_it_serves(stack: Stack, name: str, **more: Any) -> httpx.Response:
    """Send a request and KILL the worker that serves it, unless the request is refused first; return the answer."""
    answers: list[httpx.Response] = []
    sending = threading.Thread(target=lambda: answers.append(stack.chat(name, **more)))
    sending.start()
    # A worker that is killed before it has read the request was not at work on it: the request is served elsewhere.
    eventually(
        lambda: answers or any(has_requests(stack, i) for i in ready(stack, name)), what="a request at its worker"
    )
    if not answers:
        kill_worker(stack, name)
    sending.join(30)
    return answers[0]


def authorization(stack: Stack, instance: dict[str, Any]) -> dict[str, str]:
    """Return the header with a worker's key."""
    token = next((stack.folder / "state").rglob("fleet.token")).read_text().strip()
    return {"authorization": f"Bearer {worker_key(host_token(token, 'here'), instance['id'])}"}


def has_requests(stack: Stack, instance: dict[str, Any]) -> bool:
    """Whether a worker has read a request that it has not answered, by its metrics; False when it has ended."""
    key = authorization(stack, instance)
    try:
        metrics = httpx.get(f"{instance['url']}/metrics", headers=key, trust_env=False)
    except httpx.TransportError:
        return False
    return metrics.is_success and bool(requests_running(metrics.content))


def change_script(stack: Stack, instance: dict[str, Any], **script: object) -> None:
    """Change what a fake worker does."""
    key = authorization(stack, instance)
    httpx.post(f"{instance['url']}/fake", json=script, headers=key, trust_env=False).raise_for_status()


def why_failed(stack: Stack, function: str, instance: str) -> str:
    """Return the reason in the decision of an instance's failure, as soon as there is one."""
    body = {"function": function, "what": "failed"}

    def reasons() -> list[str]:
        decisions = stack.http.get("/admin/decisions", params=body).json()["decisions"]
        return [r["why"] for r in decisions if r["instance"] == instance]

    return eventually(reasons, what="a decision of the failure")[0]


def marked(instance: str) -> list[int]:
    matches = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == instance and process.status() != psutil.STATUS_ZOMBIE:
                matches.append(process.pid)
        except psutil.Error:
            continue
    return matches


def test_a_worker_killed_while_idle_is_replaced_by_the_next_request(stack: Stack) -> None:
    stack.chat("tiny/killed", max_tokens=1)
    killed = kill_worker(stack, "tiny/killed")

    answer = stack.chat("tiny/killed", max_tokens=1)

    assert answer.status_code == 200
    assert answer.headers["x-cortex-instance"] != killed
    eventually(lambda: not marked(killed), what="nothing left of the killed worker")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_request_that_meets_a_dead_engine_is_served_by_the_next_worker_and_the_instance_is_gone(
    stack: Stack, stream: bool
) -> None:
    stack.chat("fake/echo").raise_for_status()
    instance = stack.instance("fake/echo")
    change_script(stack, instance, engine_dead=True)

    answer = stack.chat("fake/echo", stream=stream)

    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-cortex-instance") != instance["id"]
    assert instance["id"] not in [i["id"] for i in ready(stack, "fake/echo")]
    # Its agent ended it when the router reported it, before its health check was due.
    assert "was killed by SIGKILL" in why_failed(stack, "fake/echo", str(instance["id"]))


def test_a_worker_killed_during_a_stream_gives_an_error_event_and_is_replaced(stack: Stack) -> None:
    body = {"model": "fake/streams", "messages": MESSAGES, "stream": True}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        killed = kill_worker(stack, "fake/streams")
        rest = [line for line in lines if line]

    again = stack.chat("fake/streams", max_tokens=1)

    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "worker_error"
    assert "data: [DONE]" not in rest
    assert (again.status_code, again.headers["x-cortex-instance"] != killed) == (200, True)


@pytest.mark.long
def test_a_request_alone_at_a_killed_worker_is_not_replayed(stack: Stack) -> None:
    answers: list[httpx.Response] = []
    sending = threading.Thread(target=lambda: answers.append(stack.chat("fake/cooled")))
    sending.start()
    eventually(lambda: stack.function("fake/cooled")["in_flight"] == 1, what="one in flight")
    spawned = stack.spawned("fake/cooled")

    killed = kill_worker(stack, "fake/cooled")
    sending.join(30)
    not_spawned = stack.spawned("fake/cooled")
    again = stack.chat("fake/cooled")

    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (502, "worker_error")
    assert not_spawned == spawned
    assert (again.status_code, again.headers["x-cortex-instance"] != killed) == (200, True)
    why = stack.cli("why", answers[0].headers["x-request-id"], "--json").stdout
    assert "it was alone in flight on a worker that died" in why


@pytest.mark.long
def test_repeated_kills_of_workers_delay_no_other_request(stack: Stack) -> None:
    """Deaths of workers that had served are no failed starts; a request in flight at each is refused in the end."""
    # Its answer takes 20 s: it is not there before the worker is killed.
    answers = [killed_while_it_serves(stack, "fake/streams", user="pill") for _ in range(4)]
    statuses = [answer.status_code for answer in answers]
    other = stack.chat("fake/streams", max_tokens=1)

    assert (statuses[0], statuses[-1], set(statuses)) == (502, 503, {502, 503})
    assert answers[-1].json()["error"]["code"] == "suspected_request"
    assert int(answers[-1].headers["retry-after"]) > 0
    assert other.status_code == 200
    assert stack.state("fake/streams") != "failing"


def test_a_worker_killed_while_starting_fails_waiting_requests_at_once(stack: Stack) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(stack.chat("fake/loads-long")))
    asking.start()
    eventually(
        lambda: [i for i in stack.function("fake/loads-long")["instances"] if i["pid"]],
        what="the worker's process",
    )

    kill_worker(stack, "fake/loads-long")
    asking.join(10)

    error = answers[0].json()["error"]
    assert (answers[0].status_code, error["code"]) == (503, "start_failed")
    assert "was killed by SIGKILL while starting" in error["message"]
    assert stack.cli("fn", "warm", "fake/loads-long").returncode == 0
    assert stack.cli("fn", "cool", "fake/loads-long", "--now").returncode == 0


def test_a_function_that_cannot_start_is_503_with_the_reason(stack: Stack) -> None:
    for name, reason in (
        ("broken/garbage", "exited with code 1 while starting"),
        ("broken/missing", "missing.gguf do not exist"),
        ("fake/stranger", "serves 1 other model instead of fake/stranger"),
        ("fake/dies", "exited with code 3 while starting"),
    ):
        answer = stack.chat(name)

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "start_failed"), answer.text
        assert reason in answer.json()["error"]["message"]
        assert "retry-after" not in answer.headers
    assert stack.chat("tiny/alpha", max_tokens=1).status_code == 200


def test_a_taken_port_is_a_failed_start_with_the_reason(stack: Stack) -> None:
    import socket

    with socket.create_server(("127.0.0.1", stack.taken_port)):
        answer = stack.chat("broken/port")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "start_failed")
    assert "its port is in use" in answer.json()["error"]["message"]


@pytest.mark.long
def test_repeated_failures_back_off_and_warm_overrides_it(stack: Stack) -> None:
    eventually(lambda: stack.chat("fake/dies").status_code == 503 and backs_off(stack, "fake/dies"), what="back-off")
    spawned = stack.spawned("fake/dies")

    refused = stack.chat("fake/dies")
    not_spawned = stack.spawned("fake/dies")
    forced = stack.cli("fn", "warm", "fake/dies", "--wait")

    assert (refused.status_code, "keep failing" in refused.json()["error"]["message"]) == (503, True)
    assert not_spawned == spawned
    assert (forced.returncode, stack.spawned("fake/dies")) == (1, spawned + 1)
    assert stack.state("fake/dies") == "failing"


def backs_off(stack: Stack, name: str) -> bool:
    return stack.function(name)["retry_at"] is not None


@pytest.mark.long
def test_a_drain_waits_for_all_routers_and_a_request_in_flight_cancels_it(stack: Stack) -> None:
    """The test is a second router: it reports to the record, late, and with a request in flight."""
    with redis.Redis.from_url(stack.env["CORTEX_REDIS_URL"]) as record:

        def report(**values: Any) -> None:
            import msgspec

            record.set("cortex:router:test", msgspec.json.encode(RouterReport(id="test", **values)), px=60_000)
            record.sadd("cortex:routers", "test")
            record.publish("cortex:changed", "router:test")

        def host() -> HostRecord:
            import msgspec

            return msgspec.json.decode(record.get("cortex:host:here") or b"", type=HostRecord)

        def held() -> Any:
            return next(i for i in host().instances if i.function == "fake/held")

        try:
            report(seen={"here": 0})
            stack.chat("fake/held")
            eventually(lambda: held().state == "draining", what="the reap to begin")
            epoch = held().epoch

            report(seen={"here": epoch}, in_flight={held().id: 1})
            eventually(lambda: held().state == "ready", what="the drain to be taken back")
            taken_back = held().epoch

            report(seen={"here": 1 << 60})
            stack.until("fake/held", "cold")
        finally:
            record.delete("cortex:router:test")

    assert taken_back > epoch


def test_cool_waits_for_the_request_in_flight(stack: Stack) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(stack.chat("fake/cooled")))
    asking.start()
    eventually(lambda: stack.function("fake/cooled")["in_flight"] == 1, what="one in flight")

    cooled = stack.cli("fn", "cool", "fake/cooled")
    asking.join(10)

    assert (answers[0].status_code, answers[0].json()["usage"]["completion_tokens"]) == (200, 20)
    assert (cooled.returncode, cooled.stdout) == (0, "fake/cooled: cold\n")


@pytest.mark.long
def test_without_redis_warm_functions_are_served(stack: Stack) -> None:
    stack.chat("tiny/alpha", max_tokens=1)
    with redis.Redis.from_url(stack.env["CORTEX_REDIS_URL"]) as record:
        pid = int(record.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: stack.http.get("/health").json()["record"] == "away", what="the record to be away")
        warm = stack.chat("tiny/alpha", max_tokens=1)
        cold = stack.chat("fake/held")
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: stack.http.get("/health").json()["record"] == "ok", what="the record to be back")

    assert warm.status_code == 200
    assert (cold.status_code, cold.json()["error"]["code"]) == (503, "record_away")
    assert stack.chat("fake/held").status_code == 200
