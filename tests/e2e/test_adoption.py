"""A restart of the agent ends no instance and no stream."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cortex.platform.workers.hardening import temporary_path
from tests.e2e.conftest import FAKE
from tests.support.catalogues import entry, fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.xdist_group("agents")

MODELS = "\n".join(
    [
        fake("fake/long", "--tps", "20", "--tokens", "360", target_concurrency=16),
        fake("fake/quick"),
        fake("fake/slow", "--load-s", "4"),
        # Its child has nothing in its environment, as vLLM's engine core has once it has a title.
        entry(
            "odd/core", engine="command", command=["sh", "-c", 'env -i sleep 600 & exec "$@"', "sh", *FAKE], vram_mb=9
        ),
    ]
)
STREAMS = 4


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with own_redis(tmp_path) as url, Fleet(tmp_path, url, MODELS, {"a": {}}) as running:
        yield running


def adopted(fleet: Fleet) -> int:
    return fleet.log("a").count('"event": "adopted"')


@pytest.mark.long
def test_repeated_kills_of_the_agent_break_no_stream_and_restart_no_worker(
    fleet: Fleet, tell: Callable[[str], None]
) -> None:
    ends: list[str] = []
    over = threading.Event()
    quick: list[int] = []

    def stream() -> None:
        body = {"model": "fake/long", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with fleet.http.stream("POST", "/v1/chat/completions", json=body, timeout=120) as answer:
            ends.append([line for line in answer.iter_lines() if line][-1])

    def ask() -> None:
        while not over.is_set():
            quick.append(fleet.chat("fake/quick").status_code)

    assert fleet.chat("fake/quick").status_code == 200
    assert fleet.cli("fn", "warm", "fake/long", "--wait").returncode == 0
    threads = [threading.Thread(target=stream) for _ in range(STREAMS)] + [threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    pids = {i.pid for i in fleet.records()["a"].instances}
    for round in range(1, 11):
        fleet.kill("a")
        fleet.start_agent("a")
        eventually(lambda n=round: adopted(fleet) == 2 * n, what="both workers to be adopted")  # type: ignore[misc]
    for thread in threads[:STREAMS]:
        thread.join(120)
    over.set()
    threads[-1].join(30)

    assert ends == ["data: [DONE]"] * STREAMS
    assert set(quick) == {200}
    assert fleet.spawned() == 2
    assert {p.pid for p in fleet.workers()} == pids
    tell(f"10 kills: {STREAMS} streams whole, {len(quick)} plain requests answered, 0 workers restarted")


@pytest.mark.long
def test_an_upgrade_by_term_keeps_the_workers(fleet: Fleet) -> None:
    first = fleet.chat("fake/quick").headers["x-cortex-instance"]

    fleet.kill("a", signal.SIGTERM)
    fleet.start_agent("a")
    eventually(lambda: adopted(fleet) == 1, what="adoption")

    assert fleet.chat("fake/quick").headers["x-cortex-instance"] == first


@pytest.mark.long
def test_a_start_continues_over_a_restart_of_the_agent(fleet: Fleet) -> None:
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(fleet.chat("fake/slow").status_code))
    asking.start()
    # A process that the record names is in the state file; one killed before that is an orphan, and starts again.
    eventually(lambda: any(i["pid"] for i in fleet.function("fake/slow")["instances"]), what="the start")

    fleet.kill("a")
    fleet.start_agent("a")
    asking.join(30)

    assert (answers, fleet.spawned()) == ([200], 1)


@pytest.mark.long
def test_a_worker_that_died_while_the_agent_was_away_is_replaced_and_leaves_no_child(fleet: Fleet) -> None:
    fleet.chat("odd/core")
    (worker,) = fleet.workers()
    (child,) = worker.children()
    fleet.kill("a")
    worker.kill()

    fleet.start_agent("a")

    assert fleet.chat("odd/core").status_code == 200
    assert fleet.spawned() == 2
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="its child to be gone")


@pytest.mark.long
def test_a_worker_missing_from_the_state_file_is_killed(fleet: Fleet) -> None:
    fleet.chat("fake/quick")
    (worker,) = fleet.workers()
    (temporary,) = (temporary_path(i) for i in fleet.instances_of_workers())
    assert temporary.is_dir()
    fleet.kill("a")
    path = next((fleet.folder / "state-a").glob("*.json"))
    path.write_text(json.dumps({"workers": [], "failures": []}))

    fleet.start_agent("a")

    eventually(lambda: not worker.is_running() or worker not in fleet.workers(), what="the orphan to be gone")
    eventually(lambda: not temporary.exists(), what="its temporary files to be gone")
    assert fleet.chat("fake/quick").status_code == 200


@pytest.mark.long
def test_a_second_agent_with_the_same_state_directory_does_not_start(fleet: Fleet) -> None:
    first = fleet.processes["a"]

    fleet.start_agent("a")

    assert fleet.processes["a"].wait(20) != 0
    assert "another agent (" in fleet.log("a")
    fleet.processes["a"] = first
