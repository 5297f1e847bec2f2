"""The engine as a process: loading, death and orphans."""

import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.platform.fake_engine.workers import DEADLINE_S, HELD, HELLO, Start, contents, until

# Loading.


def test_health_reports_loading_until_the_engine_is_ready(start: Start) -> None:
    worker = start("--load-s=0.5")
    health, models = worker.http.get("/health"), worker.http.get("/v1/models")
    worker.script(load_s=1000)
    worker.log_line("Loading weights:")
    worker.script(load_s=0)
    worker.log_line("Application startup complete.")

    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert (models.status_code, models.json()["error"]["code"]) == (503, "model_loading")
    assert worker.http.get("/health").json() == {"status": "ok"}


def test_a_silent_load_logs_nothing_and_ends_by_term(start: Start) -> None:
    worker = start("--load-s=1000", "--silent-load")
    until(lambda: worker.http.get("/health").json()["status"] == "loading")
    worker.process.terminate()

    assert worker.exit_code() == 0
    assert worker.log == [f"Listening on {worker.url}"]


def test_a_crash_while_loading_has_the_scripted_message_and_exit_code(start: Start) -> None:
    message = "torch.OutOfMemoryError: CUDA out of memory."
    worker = start("--load-s=0.2", "--crash-on-load=3", f"--crash-message={message}")

    assert worker.exit_code() == 3
    assert worker.log[-1] == message
    assert any(line.startswith("Loading weights:") for line in worker.log)


def test_a_hanging_load_does_not_answer_health_checks(start: Start) -> None:
    worker = start("--hang=loading", key="")
    with pytest.raises(httpx.ReadTimeout):
        worker.http.get("/health", timeout=httpx.Timeout(DEADLINE_S, read=0.1))
    worker.script(hang=None)

    assert worker.ready().ask().status_code == 200  # and needs no key, as it was given none


# Death.


def test_with_crash_after_it_dies_after_that_many_requests(start: Start) -> None:
    worker = start("--crash-after=2", "--crash-code=7").ready()
    answers = [worker.ask(), worker.ask()]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert worker.exit_code() == 7


def test_with_crash_mid_stream_it_dies_during_the_next_request(start: Start) -> None:
    worker = start("--crash-after=1", "--crash-mid-stream=3").ready()
    worker.ask()
    received: list[str] = []
    with (
        pytest.raises(httpx.TransportError),
        worker.http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True}) as stream,
    ):
        received.extend(contents(stream))

    assert len("".join(received).split()) == 3
    assert worker.exit_code() == 1


def test_a_term_during_a_stream_ends_it_cleanly(start: Start, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    worker = start("--memory-mb=800", env={"CORTEX_FAKE_MEMORY_FILE": str(memory)}).ready()
    initial = memory.read_text()
    worker.script(memory_mb=900, tps=HELD)
    larger = memory.read_text()
    body = {"messages": HELLO, "stream": True}
    with (
        pytest.raises(httpx.TransportError),
        worker.http.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        worker.process.terminate()
        stream.read()

    assert (initial, larger) == ("800\n", "900\n")
    assert worker.exit_code() == 0
    assert not list(tmp_path.iterdir())


def test_an_engine_that_ignores_term_serves_until_it_is_killed(start: Start, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    worker = start("--ignore-term", env={"CORTEX_FAKE_MEMORY_FILE": str(memory)}).ready()
    worker.process.terminate()
    worker.log_line("SIGTERM ignored.")
    answer = worker.ask()
    worker.process.kill()

    assert answer.status_code == 200
    assert worker.exit_code() == -signal.SIGKILL
    assert memory.exists()


# Orphans.


def test_a_grandchild_outlives_it_in_its_group_and_keeps_its_log_open(start: Start) -> None:
    worker = start("--leave-grandchild", "--hold-stdout").ready()
    grandchild = psutil.Process(worker.report()["left_behind"]["grandchild"])
    worker.process.terminate()
    code = worker.process.wait(DEADLINE_S)
    is_open = worker.reader.is_alive() and grandchild.is_running()
    group = os.getpgid(grandchild.pid)
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.reader.join(DEADLINE_S)

    assert (code, group, is_open) == (0, worker.process.pid, True)
    assert not worker.reader.is_alive()


def test_a_daemon_outlives_it_in_another_session_with_its_environment(start: Start) -> None:
    worker = start("--leave-daemon", env={"CORTEX_INSTANCE": "marked"}).ready()
    daemon = psutil.Process(worker.report()["left_behind"]["daemon"])
    parent = daemon.ppid()
    worker.process.kill()
    code = worker.exit_code()  # its log is at its end, though the daemon lives
    alive = daemon.is_running()
    session, marker = os.getsid(daemon.pid), daemon.environ()["CORTEX_INSTANCE"]
    daemon.kill()

    assert (code, alive, marker) == (-signal.SIGKILL, True, "marked")
    assert worker.process.pid not in (parent, session)
