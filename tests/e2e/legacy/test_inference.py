"""Inference requests through the agent, as a gateway of the Rust system sends them."""

import json
import time

import httpx
import pytest

from tests.e2e.legacy.agents import MESSAGES, Agent, later
from tests.support.stack import eventually

pytestmark = [pytest.mark.xdist_group("agents"), pytest.mark.long]


def test_the_endpoint_of_a_loaded_model_is_the_agents_url(agent: Agent) -> None:
    agent.loaded("fake/again")

    answers = [agent.http.get(f"/models/{name}/endpoint") for name in ("fake%2Fagain", "fake/again")]

    assert {a.status_code for a in answers} == {200}
    assert [a.json() for a in answers] == [{"url": f"http://localhost:{agent.port}"}] * 2


@pytest.mark.parametrize("path", ["fake%2Funknown/endpoint", "fake/unknown/endpoint", "fake/again", "endpoint"])
def test_any_other_endpoint_is_404(agent: Agent, path: str) -> None:
    answer = agent.http.get(f"/models/{path}")

    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_a_gateway_can_load_a_model_and_send_a_request(agent: Agent) -> None:
    agent.unload("fake/again")
    before = agent.status("fake/again")
    load = agent.load("fake/again", devices=[0])
    after = agent.status("fake/again")
    url = agent.endpoint("fake/again").json()["url"].replace("localhost", "127.0.0.1")

    answer = agent.without_token.post(
        f"{url}/v1/chat/completions",
        json={"model": "fake/again", "messages": MESSAGES},
        headers={"Authorization": f"Bearer {agent.token}"},
    )

    assert (before, load.status_code, after) == (None, 200, "loaded")
    body = answer.json()
    assert (body["object"], body["model"]) == ("chat.completion", "fake/again")
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["usage"]["completion_tokens"] > 0


def test_a_request_for_a_model_that_is_not_loaded_is_404(agent: Agent) -> None:
    plain, streamed = agent.chat("unknown/model"), agent.chat("unknown/model", stream=True)
    text = agent.http.post("/v1/completions", json={"model": "unknown/model", "prompt": "x"})

    expected = (404, {"error": "model 'unknown/model' not loaded on this neuron"})
    assert [(a.status_code, a.json()) for a in (plain, streamed, text)] == [expected] * 3


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"{}", 422), (b'{"model": null}', 422), (b'{"model": 3}', 422)]
)
def test_a_request_without_a_model_is_rejected(agent: Agent, body: bytes, status: int) -> None:
    answer = agent.http.post("/v1/chat/completions", content=body)

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_a_completion_is_answered(agent: Agent) -> None:
    agent.loaded("fake/again")

    answer = agent.http.post("/v1/completions", json={"model": "fake/again", "prompt": "x"})

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"]


def test_a_stream_is_forwarded_as_it_arrives(agent: Agent) -> None:
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


def test_a_client_that_disconnects_from_a_stream_frees_the_worker(agent: Agent) -> None:
    agent.loaded("fake/streams")
    body = {"model": "fake/streams", "messages": MESSAGES, "stream": True}
    with agent.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        before = agent.running("fake/streams")

    eventually(lambda: agent.running("fake/streams") == 0, within_s=2, what="the worker to be free")
    assert before == 1
    assert agent.unload("fake/streams").status_code == 200  # at once: nothing counts as in flight any more


def test_a_client_that_disconnects_from_a_request_frees_the_worker(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", hang="serving")
    with pytest.raises(httpx.ReadTimeout):
        agent.http.post("/v1/chat/completions", json={"model": "fake/moody", "messages": MESSAGES}, timeout=0.3)

    eventually(lambda: agent.running("fake/moody") == 0, within_s=2, what="the worker to be free")


def test_an_error_of_the_worker_is_forwarded_unchanged(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", fail_status=500)

    plain, streamed = agent.chat("fake/moody"), agent.chat("fake/moody", stream=True)

    assert (plain.status_code, streamed.status_code) == (500, 500)
    assert "error" in plain.json()


def test_a_worker_that_breaks_off_before_its_answer_is_502(agent: Agent) -> None:
    agent.loaded("fake/moody")
    agent.script("fake/moody", refuse=True)

    plain, streamed = agent.chat("fake/moody"), agent.chat("fake/moody", stream=True)

    assert (plain.status_code, streamed.status_code) == (502, 502)
    assert "the worker of 'fake/moody' broke off" in plain.json()["error"]


def test_a_worker_that_takes_too_long_is_504(agent: Agent) -> None:
    agent.loaded("fake/tardy")

    answer = agent.chat("fake/tardy")

    assert (answer.status_code, "took longer than 0.3 s" in answer.json()["error"]) == (504, True)


def test_a_stream_that_breaks_off_ends_with_an_error_and_without_done(agent: Agent) -> None:
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
    state = agent.instance("fake/idle")["state"]
    agent.script("fake/idle", tps=0)

    assert (state, chat.result().status_code) == ("ready", 200)
    eventually(lambda: not agent.instances("fake/idle"), what="the reap once it idles")
