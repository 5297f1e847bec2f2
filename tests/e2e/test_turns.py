"""Two busy functions and memory for one: they take turns, and no answer is cut."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually, own_redis

pytestmark = pytest.mark.xdist_group("turns")

TOKENS = 20
ANSWER = ("--tps", "20", "--tokens", str(TOKENS))
KEYS = {"vram_mb": 20_000, "turn_wait_s": 5, "idle_after_s": 600}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running cortex with one device of 24 GiB."""
    folder = tmp_path_factory.mktemp("turns")
    catalogue = fake("f", *ANSWER, turn_min_s=1, **KEYS) + fake("g", *ANSWER, turn_min_s=4, **KEYS)
    with own_redis(folder) as redis_url:
        running = Stack(folder, catalogue, env={"CORTEX_REDIS_URL": redis_url}, more=("--devices", "1x24GB"))
        try:
            yield running
        finally:
            running.end()


class Client(threading.Thread):
    """Sends one streamed request after another until it is stopped."""

    def __init__(self, stack: Stack, model: str) -> None:
        super().__init__()
        self._stack, self._model, self._over = stack, model, threading.Event()
        self.answers: list[str] = []

    def run(self) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        while not self._over.is_set():
            self.answers.append(self._stack.http.post("/v1/chat/completions", json=body).text)

    def stop(self) -> None:
        self._over.set()
        self.join(60)


@contextlib.contextmanager
def clients(stack: Stack, model: str, count: int) -> Iterator[list[Client]]:
    """Keep a function busy."""
    running = [Client(stack, model) for _ in range(count)]
    for client in running:
        client.start()
    try:
        yield running
    finally:
        for client in running:
            client.stop()


def is_whole(answer: str) -> bool:
    """Whether a stream was answered to its end, without an error in it."""
    return answer.rstrip().endswith("data: [DONE]") and answer.count('"content":') >= TOKENS and "error" not in answer


@pytest.mark.long
def test_functions_take_turns_and_no_stream_is_cut(stack: Stack) -> None:
    assert stack.chat("f").status_code == 200

    with clients(stack, "f", 2) as of_f, clients(stack, "g", 1) as of_g:
        eventually(lambda: of_g[0].answers, within_s=30, what="g to have its turn")
        eventually(lambda: stack.function("f")["in_line"], what="f to wait for its next turn")
        waits = stack.cli("why", "f").stdout
        served = len(of_f[0].answers)
        eventually(lambda: len(of_f[0].answers) > served + 1, within_s=30, what="f to be served again")
    decided = [d["what"] for d in stack.http.get("/admin/decisions", params={"limit": 500}).json()["decisions"]]

    answers = [a for client in (*of_f, *of_g) for a in client.answers]
    assert [a for a in answers if not is_whole(a)] == []
    assert of_g[0].answers[0].startswith(":")  # a keep-alive came while it waited
    assert "has waited for memory on here" in waits
    assert "closed" in decided
    assert "turn" in decided
