"""Processes of the fake engine."""

import contextlib
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai

MODEL = "helexa/tiny"
KEY = "worker-key"
DEADLINE_S = 15.0
SECRET = "grandmother"
HELLO: Any = [{"role": "user", "content": f"hello {SECRET}"}]
DIRECT: Any = {"trust_env": False, "verify": False}
"""Options for plain HTTP: no proxy, and no loading of certificates."""
HELD = 0.001
"""Tokens per second: practically, the next one is sent when the script changes."""

Start = Callable[..., "Worker"]
"""Starts a worker with options, environment and key."""


class Worker:
    """A fake engine's process, with its log and clients that have its key."""

    def __init__(self, *options: str, env: dict[str, str] | None = None, key: str = KEY) -> None:
        environment = {**os.environ, "CORTEX_WORKER_KEY": key, **(env or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cortex.platform.fake_engine", "--port=0", f"--model={MODEL}", *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            text=True,
        )
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self._key = key

    @functools.cached_property
    def url(self) -> str:
        """Its address; waits until it listens."""
        return self.log_line("Listening").split()[-1]

    @functools.cached_property
    def http(self) -> httpx.Client:
        """An HTTP client with its key, if it has one."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else None
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S, **DIRECT)

    @functools.cached_property
    def openai(self) -> openai.OpenAI:
        """A client of the OpenAI SDK."""
        http = openai.DefaultHttpxClient(**DIRECT)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, http_client=http)

    def log_line(self, part: str) -> str:
        """Wait for the line that contains `part`."""
        while (line := self._lines.get(timeout=DEADLINE_S)) is not None:
            if part in line:
                return line
        raise AssertionError(f"no {part!r} in {self.log[-5:]}")

    def ready(self) -> "Worker":
        """Wait until it is healthy."""
        until(lambda: self.http.get("/health").status_code == 200)
        return self

    def script(self, **changes: object) -> dict[str, Any]:
        """Change the script."""
        answer = self.http.post("/fake", json=changes)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def report(self) -> dict[str, Any]:
        """Return the script, the counters and the last requests."""
        return self.http.get("/fake").json()  # type: ignore[no-any-return]

    def ask(self, **more: object) -> httpx.Response:
        """Send a chat request."""
        body = {"model": MODEL, "messages": HELLO, **more}
        return self.http.post("/v1/chat/completions", json=body)

    def exit_code(self) -> int:
        """Wait until it exits and its log ends. Return its exit code."""
        code = self.process.wait(DEADLINE_S)
        self.reader.join(DEADLINE_S)
        return code

    def destroy(self) -> None:
        """Kill it and all processes in its group."""
        for client in ("http", "openai"):
            if client in vars(self):
                vars(self)[client].close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                self.log.append(line.rstrip("\n"))
                self._lines.put(self.log[-1])
        self._lines.put(None)


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline, "the condition was not reached"


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def contents(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if '"content":' in line and (text := json.loads(line[6:])["choices"][0]["delta"]["content"]):
            yield text
