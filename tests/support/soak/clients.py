"""A bounded number of clients that ask one thing after another, and check every answer.

There is only one right answer to each request (the fake engine's words depend on the function and the prompt),
so one that is cut short, mixed up or another model's is seen at once.
"""

import json
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx
import msgspec

from cortex.platform.fake_engine.answer import chat_answer, text_answer
from cortex.platform.fake_engine.request import ChatRequest, CompletionRequest
from cortex.platform.fake_engine.script import Script
from tests.support.soak.functions import CATALOGUE, MORTAL, NAMES, POPULAR, TOKENS, UNKNOWN
from tests.support.soak.harm import Harm, Wrong

CLIENTS = 16
LONGEST_ANSWER_S = 90.0
SECRET = "a-prompt-that-no-log-may-hold"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REFUSALS = {
    429: {"rate_limit_exceeded"},
    500: {"worker_error"},
    502: {"worker_error"},
    503: {"no_capacity", "start_failed", "model_loading", "record_away", "worker_error"},
    504: {"timeout"},
}
"""Every way a request for a function may fail, by status. The worker's own errors pass as they are."""


class ScriptedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as it is going to be made."""

    name: str
    path: str
    stream: bool
    words: str
    leave_after: int | None
    """Events after which the client leaves; of a plain answer, tenths of a second."""

    @property
    def function(self) -> str:
        """The function that the name stands for."""
        return CATALOGUE.aliases.get(self.name, self.name)

    @property
    def body(self) -> dict[str, Any]:
        """The request's body."""
        if self.path == COMPLETIONS:
            return {"model": self.name, "stream": self.stream, "prompt": self.words}
        return {"model": self.name, "stream": self.stream, "messages": [{"role": "user", "content": self.words}]}

    @property
    def expected(self) -> str:
        """The only right answer."""
        script = Script(tokens=TOKENS.get(self.function, 16))
        if self.path == COMPLETIONS:
            return text_answer(msgspec.convert(self.body, CompletionRequest), script, self.function).content
        return chat_answer(msgspec.convert(self.body, ChatRequest), script, self.function).content


def random_request(rng: random.Random) -> ScriptedRequest:
    """Return any request; what is popular more often."""
    name = rng.choice(POPULAR if rng.random() < 0.7 else NAMES)
    return ScriptedRequest(
        name=UNKNOWN if rng.random() < 0.02 else name,
        path=rng.choice([CHAT, CHAT, COMPLETIONS]),
        stream=rng.random() < 0.5,
        words=f"{SECRET} {rng.randrange(1000)}",
        leave_after=rng.randrange(12) if rng.random() < 0.15 else None,
    )


class ClientLeft(Exception):
    """This client has heard enough."""


class Clients:
    """All of them; `run` is one."""

    def __init__(self, url: str, seed: int, harm: Harm, wrong: Wrong) -> None:
        self._url, self._seed, self._harm, self._wrong = url, seed, harm, wrong
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0

    def run(self, number: int, over: threading.Event) -> None:
        """Ask until it is over."""
        rng = random.Random(f"{self._seed} client {number}")
        limits = httpx.Timeout(LONGEST_ANSWER_S, connect=10)
        with httpx.Client(base_url=self._url, timeout=limits, trust_env=False) as http:
            while not over.is_set():
                began = time.time()
                outcome = self._ask(http, random_request(rng), began)
                with self._lock:
                    self.outcomes[outcome] += 1
                    self.slowest_s = max(self.slowest_s, time.time() - began)
                over.wait(rng.uniform(0, 0.3))

    def _ask(self, http: httpx.Client, request: ScriptedRequest, began: float) -> str:
        """Ask, and say in a word or two what came of it."""
        try:
            return self._streamed(http, request, began) if request.stream else self._plain(http, request, began)
        except ClientLeft:
            return "client left"
        except httpx.TransportError as error:
            if not self._harm.explains("router", began, time.time()):
                self._wrong.add(f"{request.function} (stream: {request.stream}) got {error!r}")
            return "cut by a killed router"
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            self._wrong.add(f"{request.function} (stream: {request.stream}) got what is no answer: {error!r}")
            return "malformed"

    def _plain(self, http: httpx.Client, request: ScriptedRequest, began: float) -> str:
        leaves = (
            httpx.USE_CLIENT_DEFAULT if request.leave_after is None else httpx.Timeout(request.leave_after / 10 + 0.02)
        )
        try:
            answer = http.post(request.path, json=request.body, timeout=leaves)
        except httpx.TimeoutException:
            if request.leave_after is None:
                raise
            raise ClientLeft from None
        if answer.status_code != 200:
            return self._refused(request, answer.status_code, answer.json(), began)
        event = answer.json()
        choice = event["choices"][0]
        output = choice["text"] if request.path == COMPLETIONS else choice["message"]["content"]
        self._compare(request, event["model"], output)
        return "200 whole"

    def _streamed(self, http: httpx.Client, request: ScriptedRequest, began: float) -> str:
        with http.stream("POST", request.path, json=request.body) as answer:
            if answer.status_code != 200:
                answer.read()
                return self._refused(request, answer.status_code, answer.json(), began)
            events: list[str] = []
            for line in answer.iter_lines():
                if request.leave_after is not None and len(events) >= request.leave_after:
                    raise ClientLeft
                if line.startswith("data: "):
                    events.append(line.removeprefix("data: "))
        assert events, "a stream without an event"
        if events[-1] != "[DONE]":
            return "in the stream: " + self._refused(request, 200, json.loads(events[-1]), began)
        chunks = [json.loads(event) for event in events[:-1]]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        texts = [c["text"] if request.path == COMPLETIONS else c["delta"].get("content") or "" for c in choices]
        self._compare(request, chunks[0]["model"], "".join(texts))
        return "200 stream"

    def _compare(self, request: ScriptedRequest, model: str, output: str) -> None:
        if output != request.expected or model not in (request.name, request.function):
            self._wrong.add(f"{request.function} (stream: {request.stream}) answered as {model}: {output!r}")

    def _refused(self, request: ScriptedRequest, status: int, body: dict[str, Any], began: float) -> str:
        """Check a refusal, or the error that ends a stream (`status` is 200 then), and say which it was."""
        error = body["error"]
        code = error["code"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"], error
        if request.name == UNKNOWN or status == 404:
            assert (status, code, request.name) == (404, "model_not_found", UNKNOWN), body
            return "404 model_not_found"
        assert code in (REFUSALS[status] if status != 200 else set().union(*REFUSALS.values())), (status, body)
        excused = request.function in MORTAL or self._harm.explains(request.function, began, time.time())
        if code == "worker_error" and not excused:
            self._wrong.add(f"nothing explains why {request.function} broke: {status} {error['message']}")
        return str(code) if status == 200 else f"{status} {code}"
