"""Scripted failures, errors and the worker's key."""

import httpx
import pytest

from cortex.platform.fake_engine.outcome import Drop, Fail, Hang, Outcome, Serve, is_over, outcome
from cortex.platform.fake_engine.script import Script
from tests.platform.fake_engine.workers import DIRECT, HELLO, KEY, Worker, contents


def test_the_outcome_of_the_nth_request_follows_the_script() -> None:
    table: list[tuple[Script, int, Outcome]] = [
        (Script(), 1, Serve()),
        (Script(refuse=True, hang="serving"), 1, Drop()),
        (Script(hang="serving", fail_status=500), 1, Hang()),
        (Script(hang="loading"), 1, Serve()),
        (Script(fail_status=500), 1, Fail(500)),
        (Script(fail_status=429, fail_every=3), 2, Serve()),
        (Script(fail_status=429, fail_every=3), 3, Fail(429)),
        (Script(cut_stream_after=0), 1, Serve(cut_after=0)),
        (Script(crash_mid_stream=5), 1, Serve(die_after=5)),
        (Script(crash_mid_stream=5, crash_after=1), 1, Serve()),
        (Script(crash_mid_stream=5, crash_after=1), 2, Serve(die_after=5)),
    ]

    for script, nth, expected in table:
        assert outcome(script, nth) == expected, (script, nth)


@pytest.mark.parametrize(
    ("limit", "tokens", "step", "over"),
    [(None, 9, 1, False), (2, 1, 1, False), (2, 2, 1, True), (2, 2, 0, True), (0, 0, 0, False), (0, 0, 1, True)],
)
def test_a_limit_counts_tokens_and_allows_the_role_chunk(limit: int | None, tokens: int, step: int, over: bool) -> None:
    assert is_over(limit, tokens, step) is over


def test_with_fail_every_2_every_second_request_fails(worker: Worker) -> None:
    worker.script(fail_status=503, fail_every=2)
    answers = [worker.ask() for _ in range(4)]
    report = worker.report()

    assert [answer.status_code for answer in answers] == [200, 503, 200, 503]
    assert answers[1].json()["error"].keys() == {"message", "type", "param", "code"}
    assert answers[1].headers["retry-after"] == "1"
    assert (report["finished"], report["failed"]) == (2, 2)


def test_a_dead_engine_answers_as_vllms_front_does_until_the_script_changes(worker: Worker) -> None:
    worker.script(engine_dead=True)
    dead, health = worker.ask(), worker.http.get("/health")
    worker.script(engine_dead=False)

    assert (dead.status_code, health.status_code) == (500, 503)
    assert dead.json()["error"]["message"].startswith("EngineCore encountered an issue")
    assert (worker.ask().status_code, worker.http.get("/health").status_code) == (200, 200)


def test_a_cut_stream_has_no_finish(worker: Worker) -> None:
    worker.script(cut_stream_after=3)
    received: list[str] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        worker.http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True}) as stream,
    ):
        received.extend(contents(stream))

    assert len("".join(received).split()) == 3
    assert worker.report()["failed"] == 1


def test_an_unstreamed_answer_is_cut_before_its_first_byte(worker: Worker) -> None:
    worker.script(cut_stream_after=3)

    with pytest.raises(httpx.RemoteProtocolError):
        worker.ask()


def test_a_refusing_engine_is_healthy_and_closes_inference_connections(worker: Worker) -> None:
    worker.script(refuse=True)

    with pytest.raises(httpx.RemoteProtocolError):
        worker.ask()
    assert worker.http.get("/health").status_code == 200
    assert worker.http.get("/v1/models").status_code == 200


def test_errors_of_aiohttp_have_openais_envelope(worker: Worker) -> None:
    answers = [
        worker.http.get("/nowhere"),
        worker.http.get("/v1/chat/completions"),
        worker.http.post("/v1/chat/completions", content=b"{"),
        worker.http.post("/v1/chat/completions", json={"messages": [{"role": 1}]}),
    ]

    assert [answer.status_code for answer in answers] == [404, 405, 400, 400]
    assert all(answer.json()["error"]["type"] == "invalid_request_error" for answer in answers)


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("POST", "/tokenize"),
        ("GET", "/fake"),
        ("POST", "/fake"),
        ("PUT", "/fake"),
    ],
)
def test_a_request_without_the_key_gets_401(worker: Worker, method: str, path: str, header: dict[str, str]) -> None:
    answer = httpx.request(method, worker.url + path, headers=header, json={}, **DIRECT)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_probes_need_no_key(worker: Worker, path: str) -> None:
    assert httpx.get(worker.url + path, **DIRECT).status_code == 200
