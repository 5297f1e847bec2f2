"""Sleep as vLLM has it: the routes, the memory at each level, and the scripted faults."""

import threading
from pathlib import Path

import httpx
import pytest

from tests.platform.fake_engine.workers import DIRECT, Start, Worker


def is_asleep(worker: Worker) -> object:
    return worker.http.get("/is_sleeping").json()["is_sleeping"]


def text(answer: httpx.Response) -> object:
    return answer.json()["choices"][0]["message"]["content"]


def test_a_sleeping_worker_is_healthy_and_holds_less_memory_until_it_wakes(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "memory"
    options = ("--memory-mb=8000", "--asleep-mb=1400")
    worker = start(*options, env={"CORTEX_FAKE_MEMORY_FILE": str(file)}).ready()

    fell = worker.http.post("/sleep", params={"level": 1})
    asleep = (is_asleep(worker), worker.report()["memory_mb"], file.read_text(), worker.http.get("/health").status_code)
    woke = worker.http.post("/wake_up")
    awake = (is_asleep(worker), worker.report()["memory_mb"], file.read_text())

    assert fell.json() == {"status": "sleeping", "level": 1}
    assert asleep == (True, 1400, "1400\n", 200)
    assert woke.json() == {"status": "awake", "tags": None}
    assert awake == (False, 8000, "8000\n")


def test_a_request_to_a_sleeping_worker_is_answered_after_it_wakes(worker: Worker) -> None:
    before = text(worker.ask())
    worker.http.post("/sleep").raise_for_status()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(worker.ask()))
    asking.start()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{worker.url}/v1/completions", json={"prompt": "x"}, headers=worker.http.headers, timeout=0.2, **DIRECT
        )
    waited = not answers
    worker.http.post("/wake_up").raise_for_status()
    asking.join(15)

    assert waited
    assert [text(a) for a in answers] == [before]


@pytest.mark.parametrize(("option", "path", "asleep"), [("on_sleep", "/sleep", False), ("on_wake", "/wake_up", True)])
def test_a_refusal_leaves_it_as_it_was(worker: Worker, option: str, path: str, asleep: bool) -> None:
    if asleep:
        worker.http.post("/sleep").raise_for_status()
    worker.script(**{option: "refuse"})

    refused = worker.http.post(path)

    assert (refused.status_code, is_asleep(worker)) == (500, asleep)


@pytest.mark.parametrize(("option", "path"), [("on_sleep", "/sleep"), ("on_wake", "/wake_up")])
def test_a_hang_ends_when_the_script_changes(worker: Worker, option: str, path: str) -> None:
    worker.script(**{option: "hang"})
    answers: list[httpx.Response] = []
    sent = threading.Thread(target=lambda: answers.append(worker.http.post(path)))
    sent.start()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{worker.url}{path}", headers=worker.http.headers, timeout=0.2, **DIRECT)
    hung = not answers
    worker.script(**{option: None})
    sent.join(15)

    assert hung
    assert [a.status_code for a in answers] == [200]


@pytest.mark.parametrize(("option", "path"), [("--on-sleep=crash", "/sleep"), ("--on-wake=crash", "/wake_up")])
def test_a_crash_ends_the_process(start: Start, option: str, path: str) -> None:
    worker = start(option).ready()

    with pytest.raises(httpx.TransportError):
        worker.http.post(path)

    assert worker.exit_code() == 1


def test_a_wake_up_that_garbles_changes_the_answers(worker: Worker) -> None:
    before = text(worker.ask(temperature=0))
    worker.script(on_wake="garble")
    worker.http.post("/sleep").raise_for_status()
    worker.http.post("/wake_up").raise_for_status()
    garbled = text(worker.ask(temperature=0))
    worker.script(on_wake=None)
    worker.http.post("/wake_up").raise_for_status()

    assert garbled != before
    assert text(worker.ask(temperature=0)) == before


def test_its_levels_are_vllms_and_its_routes_need_the_key(worker: Worker) -> None:
    unknown = worker.http.post("/sleep", params={"level": "9"})
    keyless = [httpx.request(*r, **DIRECT).status_code for r in _routes(worker.url)]

    assert (unknown.status_code, "level" in unknown.text) == (400, True)
    assert keyless == [401, 401, 401]
    assert is_asleep(worker) is False


def _routes(url: str) -> list[tuple[str, str]]:
    return [("POST", f"{url}/sleep"), ("POST", f"{url}/wake_up"), ("GET", f"{url}/is_sleeping")]
