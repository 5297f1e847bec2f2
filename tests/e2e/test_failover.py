"""Redis fails over under load: warm functions are served throughout, and cold starts work again."""

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.catalogues import entry, fake
from tests.support.sentinels import Sentinels, sentinels
from tests.support.stack import Stack, eventually

BOUND_S = 20.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with sentinels(tmp_path_factory.mktemp("sentinels"), "hunter2") as servers:
        yield servers


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis: Sentinels) -> Iterator[Stack]:
    catalogue = "\n".join(
        [
            fake("fake/warm", "--answer", "one"),
            fake("fake/cold-planned"),
            fake("fake/cold-killed"),
            entry("cortex/harbour", engine="llamacpp", source="demo:harbour"),
        ]
    )
    stack = Stack(tmp_path_factory.mktemp("stack"), catalogue, env={"CORTEX_REDIS_URL": redis.url})
    try:
        stack.chat("fake/warm")
        yield stack
    finally:
        stack.end()


class Load:
    """Asks a warm function again and again, and notes how each request ended."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self.ends = stack, list[int]()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self.ends.append(self._stack.chat("fake/warm").status_code)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def cold_start_s(stack: Stack, function: str) -> float:
    """Ask for a cold function until it answers, and return how long that took."""
    began = time.monotonic()
    eventually(lambda: stack.chat(function).status_code == 200, within_s=BOUND_S, what=f"{function} to answer")
    return time.monotonic() - began


@pytest.mark.long
def test_a_planned_failover_fails_no_request(stack: Stack, redis: Sentinels, tell: Callable[[str], None]) -> None:
    with Load(stack) as load:
        redis.fail_over()
        took_s = cold_start_s(stack, "fake/cold-planned")
        eventually(lambda: stack.http.get("/health").json()["status"] == "ok", within_s=BOUND_S)

    assert set(load.ends) == {200}
    assert len(load.ends) > 10
    tell(f"a planned failover: a cold start after {took_s:.1f} s, {len(load.ends)} warm requests served meanwhile")


@pytest.mark.long
def test_after_a_masters_death_warm_requests_are_served_and_cold_starts_work(
    stack: Stack, redis: Sentinels, tell: Callable[[str], None]
) -> None:
    with Load(stack) as load:
        redis.kill_master(signal.SIGKILL)
        took_s = cold_start_s(stack, "fake/cold-killed")
        fetch_s = cold_start_s(stack, "cortex/harbour")  # its weights come by the job worker
        eventually(lambda: stack.http.get("/health").json()["status"] == "ok", within_s=BOUND_S)

    assert set(load.ends) == {200}
    assert stack.child("jobs").is_running()
    tell(f"a master killed: a cold start after {took_s:.1f} s, one with a fetch {fetch_s:.1f} s later")
