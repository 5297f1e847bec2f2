"""Changes of the script while the engine runs. Answers are held by a tiny `tps` and released by a change."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from cortex.platform.fake_engine.options import parse
from cortex.platform.fake_engine.script import Script, with_changes
from tests.platform.fake_engine.workers import DEADLINE_S, DIRECT, HELD, HELLO, MODEL, SECRET, Worker, contents, until


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"tsp": 3}, "tsp"),
        ({"tps": "fast"}, "tps"),
        ({"tokens": -1}, "tokens"),
        ({"hang": "always"}, "hang"),
        ({"script": "/nowhere"}, "script: /nowhere: No such file"),
    ],
)
def test_an_invalid_change_names_the_option_and_has_no_effect(
    worker: Worker, changes: dict[str, object], option: str
) -> None:
    before = worker.report()["script"]
    response = worker.http.post("/fake", json={"tps": 5, **changes})

    assert response.status_code == 400
    assert option in response.json()["error"]["message"]
    assert worker.report()["script"] == before


def test_changes_are_partial_accept_both_spellings_and_null_restores_the_default() -> None:
    script = with_changes(Script(tokens=3, tps=9.0), {"ttft-s": 1, "echo": True, "tokens": None})

    assert script == Script(ttft_s=1.0, echo=True, tps=9.0)


def test_a_held_answer_is_sent_when_the_script_changes(worker: Worker) -> None:
    worker.script(tps=HELD)
    with ThreadPoolExecutor() as threads:
        future = threads.submit(worker.ask)
        until(lambda: worker.report()["in_flight"] == 1)
        running = worker.http.get("/metrics").text
        worker.script(tps=0)
        answer = future.result(DEADLINE_S)

    assert f'vllm:num_requests_running{{model_name="{MODEL}"}} 1\n' in running
    assert answer.status_code == 200
    assert worker.report()["finished"] == 1


def test_a_hanging_engine_is_healthy_and_answers_after_the_script_changes(worker: Worker) -> None:
    worker.script(hang="serving")
    with ThreadPoolExecutor() as threads:
        future = threads.submit(worker.ask)
        until(lambda: worker.report()["in_flight"] == 1)
        health = worker.http.get("/health")
        worker.script(hang=None)

        assert health.status_code == 200
        assert future.result(DEADLINE_S).status_code == 200


def test_an_answer_takes_its_prefill_and_token_rate(worker: Worker) -> None:
    worker.script(ttft_s=0.1, tps=100, tokens=11)
    body = {"messages": HELLO, "stream": True}
    start_time = time.monotonic()
    with worker.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        times = [time.monotonic() - start_time for _ in contents(stream)]

    assert len(times) == 11
    assert times[0] >= 0.11
    assert times[-1] >= 0.21


def test_a_slow_health_check_succeeds_late(worker: Worker) -> None:
    worker.script(slow_health_s=0.15)
    start_time = time.monotonic()

    assert worker.http.get("/health").status_code == 200
    assert time.monotonic() - start_time >= 0.15


def test_requests_are_listed_without_their_content(worker: Worker) -> None:
    worker.ask(model="named-in-the-body", stream=True)
    report = worker.http.get("/fake")

    assert report.json()["requests"] == [
        {
            "number": 1,
            "nth": 1,
            "path": "/v1/chat/completions",
            "model": "named-in-the-body",
            "stream": True,
            "prompt_tokens": 2,
            "traceparent": "",
            "tokens": 16,
            "received": 0,
            "outcome": "finished",
        }
    ]
    assert SECRET not in report.text
    assert SECRET not in "".join(worker.log)


def test_the_list_of_requests_is_bounded(worker: Worker) -> None:
    worker.script(tokens=0)
    for _ in range(101):
        worker.ask()
    report = worker.report()

    assert report["started"] == report["finished"] == 101
    assert [report["requests"][index]["number"] for index in (0, -1)] == [2, 101]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_aborts_its_request(worker: Worker, stream: bool) -> None:
    worker.script(tps=HELD)
    body = {"model": MODEL, "messages": HELLO, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{worker.url}/v1/chat/completions",
            json=body,
            headers=worker.http.headers,
            timeout=httpx.Timeout(DEADLINE_S, read=0.1),
            **DIRECT,
        )
    until(lambda: worker.report()["in_flight"] == 0)
    report = worker.report()

    assert (report["started"], report["aborted"], report["finished"]) == (1, 1, 0)
    assert report["requests"][0]["outcome"] == "aborted"


def test_leaked_memory_is_resident(worker: Worker) -> None:
    worker.script(leak_mb_per_request=20)
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    worker.ask()

    assert worker.report()["leaked_mb"] == 20
    assert process.memory_info().rss - before > 15 << 20


def test_fill_log_mb_fills_the_log(worker: Worker) -> None:
    lines = len(worker.log)
    worker.script(fill_log_mb=1)

    until(lambda: sum(len(line) + 1 for line in worker.log[lines:]) > 1_000_000)


# The command line.


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out

    assert all(f"--{name.replace('_', '-')}" in text for name in Script.__struct_fields__)
    assert "POST /fake" in text


def test_options_are_parsed_into_the_script() -> None:
    words = "--port 1 --model m --load-s 2 --crash-on-load --hang serving --echo --tps 1e3 --answer null"
    setup, script = parse(words.split())

    assert (setup.port, setup.host) == (1, "127.0.0.1")
    assert script == Script(load_s=2.0, crash_on_load=1, hang="serving", echo=True, tps=1000.0, answer="null")


@pytest.mark.parametrize(
    "words", ["--port 1", "--port x --model m", "--port 1 --model m --tps fast", "--port 1 --model m --tok 1"]
)
def test_an_invalid_option_exits_with_code_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(words.split())

    assert exit_info.value.code == 2
    assert any(name in capsys.readouterr().err for name in ("--model", "port", "tps", "--tok"))
