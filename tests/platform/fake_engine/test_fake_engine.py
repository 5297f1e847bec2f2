"""The fake engine, as agents and routers meet it: real processes, real sockets, the real OpenAI SDK.

Nothing sleeps: answers are held by a tiny `tps` and let go by changing the script, and states are polled.
"""

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from cortex.platform.fake_engine import replay
from cortex.platform.fake_engine.options import parse
from cortex.platform.fake_engine.outcome import Drop, Fail, Hang, Outcome, Serve, is_over, outcome
from cortex.platform.fake_engine.script import BadScript, Script, changed
from cortex.platform.fake_engine.shapes import SHAPES

MODEL = "helexa/tiny"
KEY = "worker-key"
DEADLINE_S = 15.0
SECRET = "grandmother"
HELLO: Any = [{"role": "user", "content": f"hello {SECRET}"}]
DIRECT: Any = {"trust_env": False, "verify": False}  # no proxy, and no certificates to load for plain HTTP
HELD = 0.001  # tokens per second: the next one comes when the script changes

Start = Callable[..., "Worker"]


class Worker:
    """A running fake engine: its process, its log as it comes, and a client that has its key."""

    def __init__(self, *options: str, env: dict[str, str] | None = None, key: str = KEY) -> None:
        environment = {**os.environ, "CORTEX_WORKER_KEY": key, **(env or {})}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
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
        """Where it listens; waits until it does."""
        return self.log_line("Listening").split()[-1]

    @functools.cached_property
    def http(self) -> httpx.Client:
        """A client with its key, if it has one."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else None
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S, **DIRECT)

    @functools.cached_property
    def openai(self) -> openai.OpenAI:
        """The real SDK."""
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
        """The script, and what came of it."""
        return self.http.get("/fake").json()  # type: ignore[no-any-return]

    def ask(self, **more: object) -> httpx.Response:
        """One chat request."""
        body = {"model": MODEL, "messages": HELLO, **more}
        return self.http.post("/v1/chat/completions", json=body)

    def exit_code(self) -> int:
        """Wait for its end and for all of its log."""
        code = self.process.wait(DEADLINE_S)
        self.reader.join(DEADLINE_S)
        return code

    def destroy(self) -> None:
        """End it and what it left in its group."""
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
        assert time.monotonic() < deadline, "never came to be"


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def contents(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if '"content":' in line and (text := json.loads(line[6:])["choices"][0]["delta"]["content"]):
            yield text


@pytest.fixture(scope="module")
def pycache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compile aiohttp once, not once a process: hosts have its bytecode too."""
    return {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pycache"))}


@pytest.fixture(scope="module")
def one_process(pycache: dict[str, str]) -> Iterator[Worker]:
    worker = Worker(env=pycache)
    yield worker
    worker.destroy()
    assert not [line for line in worker.log if "Traceback" in line or "Error" in line]


@pytest.fixture
def worker(one_process: Worker) -> Worker:
    """The process that most tests share, with its first script and no counts."""
    one_process.ready().http.put("/fake", json={}).raise_for_status()
    until(lambda: one_process.report()["in_flight"] == 0)
    one_process.http.put("/fake", json={}).raise_for_status()
    return one_process


@pytest.fixture
def start(pycache: dict[str, str]) -> Iterator[Start]:
    """Starts processes of a test's own."""
    started: list[Worker] = []

    def start(*options: str, env: dict[str, str] | None = None, key: str = KEY) -> Worker:
        started.append(Worker(*options, env={**pycache, **(env or {})}, key=key))
        return started[-1]

    yield start
    for worker in started:
        worker.destroy()


# Answering


def test_an_answer_opens_with_the_name_of_the_model_and_counts_its_tokens(worker: Worker) -> None:
    answer = worker.openai.chat.completions.create(model=MODEL, messages=HELLO)

    content = answer.choices[0].message.content
    assert content is not None and answer.usage is not None
    assert content.split()[0] == answer.model == MODEL
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, len(content.split())) == (2, 16)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_and_a_whole_answer_are_the_same_answer(worker: Worker, shape: str) -> None:
    worker.script(shape=shape, reasoning_tokens=3)
    whole = worker.openai.chat.completions.create(model=MODEL, messages=HELLO)
    with worker.openai.chat.completions.stream(
        model=MODEL, messages=HELLO, stream_options={"include_usage": True}
    ) as stream:
        streamed = stream.get_final_completion()

    assert streamed.id == whole.id
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert streamed.usage is not None and whole.usage is not None
    assert streamed.usage.total_tokens == whole.usage.total_tokens == 2 + 3 + 16


def test_the_same_request_gets_the_same_bytes_and_another_request_others(worker: Worker) -> None:
    first, again = worker.ask(), worker.ask()
    other = worker.ask(messages=[{"role": "user", "content": "goodbye"}])

    assert first.content == again.content
    assert first.json()["choices"][0]["message"]["content"] != other.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_limit_cuts_the_answer_and_says_so(worker: Worker, shape: str, limit: str) -> None:
    worker.script(shape=shape)
    whole = worker.ask(**{limit: 4}).json()
    last = chunks(worker.ask(**{limit: 4}, stream=True))[-1]

    assert whole["usage"]["completion_tokens"] == 4
    assert whole["choices"][0]["finish_reason"] == last["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_stream_that_asked_for_usage_ends_with_it(worker: Worker, shape: str) -> None:
    worker.script(shape=shape)
    without = chunks(worker.ask(stream=True))
    asked = chunks(worker.ask(stream=True, stream_options={"include_usage": True}))

    assert all("usage" not in chunk and chunk["choices"] for chunk in without)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["completion_tokens"] == 16


def test_a_scripted_answer_is_kept_to_the_letter(worker: Worker) -> None:
    text = "  Grüße,\n\n\tWelt 🌍 "
    worker.script(answer=text)
    with worker.openai.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        streamed = stream.get_final_completion()

    assert streamed.choices[0].message.content == text


def test_an_echo_repeats_what_the_user_said_last(worker: Worker) -> None:
    worker.script(echo=True)
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "and last"}, {"type": "image_url"}]},
    ]

    assert worker.ask(messages=messages).json()["choices"][0]["message"]["content"] == "and last"


@pytest.mark.parametrize("shape", SHAPES)
def test_text_completions_stream_what_they_answer(worker: Worker, shape: str) -> None:
    worker.script(shape=shape)
    whole = worker.openai.completions.create(model=MODEL, prompt="once upon", max_tokens=5)
    stream = worker.openai.completions.create(model=MODEL, prompt="once upon", max_tokens=5, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    assert whole.choices[0].text == streamed
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.prompt_tokens == 2


def test_embeddings_are_the_same_numbers_in_both_encodings(worker: Worker) -> None:
    texts = ["a b", "c"]
    floats = worker.openai.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    packed = worker.openai.embeddings.create(model=MODEL, input=texts)
    wide = worker.openai.embeddings.create(model=MODEL, input=[1, 2, 3], dimensions=32)

    assert [item.embedding for item in floats.data] == [item.embedding for item in packed.data]
    assert floats.data[0].embedding != floats.data[1].embedding
    assert (floats.usage.prompt_tokens, len(wide.data), len(wide.data[0].embedding)) == (3, 1, 32)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_list_names_the_model_or_the_wrong_one(worker: Worker, shape: str) -> None:
    worker.script(shape=shape)
    right = [model.id for model in worker.openai.models.list()]
    worker.script(wrong_model="impostor")
    wrong = [model.id for model in worker.openai.models.list()]

    assert (right, wrong) == ([MODEL], ["impostor"])


def test_tokenize_counts_what_usage_reports(worker: Worker) -> None:
    messages = [{"role": "system", "content": "be kind"}, *HELLO]
    tools = [{"type": "function", "function": {"name": "look"}}]
    counted = worker.http.post("/tokenize", json={"messages": messages, "tools": tools}).json()
    used = worker.ask(messages=messages, tools=tools).json()["usage"]
    prompt = worker.http.post("/tokenize", json={"prompt": "be kind be"}).json()

    assert counted["count"] == len(counted["tokens"]) == used["prompt_tokens"]
    assert prompt["count"] == 3
    assert prompt["tokens"][0] == prompt["tokens"][2] != prompt["tokens"][1]


def test_another_model_is_not_found_if_it_checks(worker: Worker) -> None:
    worker.script(check_model=True)

    with pytest.raises(openai.NotFoundError) as caught:
        worker.openai.chat.completions.create(model="other", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert worker.ask().status_code == 200


# Shapes


def test_vllm_streams_an_empty_role_chunk_and_finishes_on_the_last_token(worker: Worker) -> None:
    worker.script(answer="Hi there", reasoning_tokens=1)
    choices = [chunk["choices"][0] for chunk in chunks(worker.ask(stream=True))]
    cut = [chunk["choices"][0] for chunk in chunks(worker.ask(stream=True, max_tokens=2))]

    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"reasoning": "hm"},
        {"content": "Hi"},
        {"content": " there"},
        {"content": ""},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]
    assert (cut[-1]["delta"], cut[-1]["finish_reason"]) == ({"content": "Hi"}, "length")


def test_llama_server_streams_a_null_role_chunk_and_times_its_last_chunk(worker: Worker) -> None:
    worker.script(shape="llama", answer="Hi there", reasoning_tokens=1)
    sent = chunks(worker.ask(stream=True))
    with_usage = chunks(worker.ask(stream=True, stream_options={"include_usage": True}))

    assert [chunk["choices"][0]["delta"] for chunk in sent] == [
        {"role": "assistant", "content": None},
        {"reasoning_content": "hm"},
        {"content": "Hi"},
        {"content": " there"},
        {},
    ]
    assert ["timings" in chunk for chunk in sent] == [False, False, False, False, True]
    assert with_usage[-1]["timings"]["predicted_n"] == with_usage[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tool_is_called_with_arguments_that_join_to_json(worker: Worker, shape: str) -> None:
    worker.script(shape=shape, call_tool=True)
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}}
    weather = {"name": "weather", "parameters": {"type": "object", "properties": properties}}
    tools: Any = [{"type": "function", "function": weather}]
    with worker.openai.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = worker.openai.chat.completions.create(model=MODEL, messages=HELLO, tools=tools).choices[0]

    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert streamed.message.tool_calls and whole.message.tool_calls
    called: Any = streamed.message.tool_calls[0]
    same: Any = whole.message.tool_calls[0]
    assert (called.id, called.function.name) == (same.id, same.function.name) == (called.id, "weather")
    assert json.loads(called.function.arguments) == {"city": "fake", "days": 1, "unit": "C"}
    assert called.function.arguments == same.function.arguments


def test_a_tools_result_is_answered_in_words(worker: Worker) -> None:
    worker.script(call_tool=True)
    tools = [{"type": "function", "function": {"name": "look"}}]
    call = {"id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "nothing"},
    ]

    assert worker.ask(messages=messages, tools=tools).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_planned_calls_that_are_offered_come_together_and_their_results_are_counted(
    worker: Worker, shape: str
) -> None:
    calls = [{"name": n, "arguments": {"at": n}} for n in ("look", "elsewhere", "jump")]
    worker.script(shape=shape, calls=json.dumps(calls), report_results=True)
    tools: Any = [{"type": "function", "function": {"name": name}} for name in ("look", "jump")]
    with worker.openai.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
        streamed: Any = stream.get_final_completion().choices[0].message.tool_calls
    whole: Any = worker.openai.chat.completions.create(model=MODEL, messages=HELLO, tools=tools).choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": "done"} for c in whole.tool_calls]
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    history = [*HELLO, whole.model_dump(exclude_none=True), *results, shown]

    for called in (streamed, whole.tool_calls):
        assert [(c.function.name, json.loads(c.function.arguments)) for c in called] == [
            ("look", {"at": "look"}),
            ("jump", {"at": "jump"}),
        ]
        assert len({c.id for c in called}) == 2
    answer = worker.ask(messages=history, tools=tools).json()["choices"][0]["message"]["content"]
    assert answer == "I have 2 results and 1 images."


def test_a_call_demanded_by_name_finishes_with_stop_on_vllm(worker: Worker) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "jump")]
    choice = {"type": "function", "function": {"name": "jump"}}
    answer = worker.ask(tools=tools, tool_choice=choice).json()["choices"][0]

    assert answer["message"]["tool_calls"][0]["function"]["name"] == "jump"
    assert answer["finish_reason"] == "stop"


# Replaying


def test_a_captured_stream_is_replayed_byte_for_byte_and_starts_over(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "captured.jsonl"
    file.write_text('[{"b": 1.0,  "a":2}, "data: {\\"to", 0.01, "rn\\": 1}\\r\\n\\r\\n"]\n\n["data: [DONE]\\n\\n"]\n')
    worker.script(script=str(file))
    answers = [worker.ask(stream=True).content for _ in range(3)]

    assert answers[0] == answers[2] == b'data: {"b": 1.0,  "a":2}\n\ndata: {"torn": 1}\r\n\r\n'
    assert answers[1] == b"data: [DONE]\n\n"


def test_a_captured_answer_is_replayed_without_the_sse_around_it(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "captured.jsonl"
    file.write_text('[{"id": "x"}]')
    worker.script(script=str(file))
    answer = worker.ask()

    assert (answer.content, answer.headers["content-type"]) == (b'{"id": "x"}', "application/json")


@pytest.mark.parametrize("text", ["", "{}", "[null]", "[-1]", "[[]]", '["a"]\n[tru]'])
def test_a_file_that_cannot_be_replayed_is_refused(text: str) -> None:
    with pytest.raises(BadScript, match=r"script: (line|the file)"):
        replay.parse(text)


# The script while it runs


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"tsp": 3}, "tsp"),
        ({"tps": "fast"}, "tps"),
        ({"tokens": -1}, "tokens"),
        ({"hang": "always"}, "hang"),
        ({"script": "/nowhere"}, "script: /nowhere: No such file"),
    ],
)
def test_a_bad_change_names_the_option_and_changes_nothing(
    worker: Worker, changes: dict[str, object], culprit: str
) -> None:
    before = worker.report()["script"]
    refused = worker.http.post("/fake", json={"tps": 5, **changes})

    assert refused.status_code == 400
    assert culprit in refused.json()["error"]["message"]
    assert worker.report()["script"] == before


def test_changes_are_partial_take_either_spelling_and_null_is_the_default() -> None:
    script = changed(Script(tokens=3, tps=9.0), {"ttft-s": 1, "echo": True, "tokens": None})

    assert script == Script(ttft_s=1.0, echo=True, tps=9.0)


def test_a_held_answer_comes_at_once_when_the_script_lets_it_go(worker: Worker) -> None:
    worker.script(tps=HELD)
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(worker.ask)
        until(lambda: worker.report()["in_flight"] == 1)
        running = worker.http.get("/metrics").text
        worker.script(tps=0)
        answer = asked.result(DEADLINE_S)

    assert f'vllm:num_requests_running{{model_name="{MODEL}"}} 1\n' in running
    assert answer.status_code == 200
    assert worker.report()["finished"] == 1


def test_a_hanging_engine_is_healthy_and_answers_once_it_no_longer_hangs(worker: Worker) -> None:
    worker.script(hang="serving")
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(worker.ask)
        until(lambda: worker.report()["in_flight"] == 1)
        health = worker.http.get("/health")
        worker.script(hang=None)

        assert health.status_code == 200
        assert asked.result(DEADLINE_S).status_code == 200


def test_prefill_and_token_rate_take_their_time(worker: Worker) -> None:
    worker.script(ttft_s=0.1, tps=100, tokens=11)
    body = {"messages": HELLO, "stream": True}
    began = time.monotonic()
    with worker.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        times = [time.monotonic() - began for _ in contents(stream)]

    assert len(times) == 11
    assert times[0] >= 0.11
    assert times[-1] >= 0.21


def test_a_slow_health_is_late_but_good(worker: Worker) -> None:
    worker.script(slow_health_s=0.15)
    began = time.monotonic()

    assert worker.http.get("/health").status_code == 200
    assert time.monotonic() - began >= 0.15


def test_requests_are_listed_by_name_and_tokens_and_never_by_content(worker: Worker) -> None:
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
def test_a_client_that_leaves_ends_its_generation(worker: Worker, stream: bool) -> None:
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


def test_leaked_memory_is_really_lost(worker: Worker) -> None:
    worker.script(leak_mb_per_request=20)
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    worker.ask()

    assert worker.report()["leaked_mb"] == 20
    assert process.memory_info().rss - before > 15 << 20


def test_the_log_can_be_filled(worker: Worker) -> None:
    lines = len(worker.log)
    worker.script(fill_log_mb=1)

    until(lambda: sum(len(line) + 1 for line in worker.log[lines:]) > 1_000_000)


# Failing


def test_the_fates_of_requests() -> None:
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
    ("limit", "sent", "step", "over"),
    [(None, 9, 1, False), (2, 1, 1, False), (2, 2, 1, True), (2, 2, 0, True), (0, 0, 0, False), (0, 0, 1, True)],
)
def test_a_limit_counts_tokens_and_lets_the_role_chunk_pass(
    limit: int | None, sent: int, step: int, over: bool
) -> None:
    assert is_over(limit, sent, step) is over


def test_every_second_request_fails_with_the_scripted_status(worker: Worker) -> None:
    worker.script(fail_status=503, fail_every=2)
    answers = [worker.ask() for _ in range(4)]
    report = worker.report()

    assert [answer.status_code for answer in answers] == [200, 503, 200, 503]
    assert answers[1].json()["error"].keys() == {"message", "type", "param", "code"}
    assert answers[1].headers["retry-after"] == "1"
    assert (report["finished"], report["failed"]) == (2, 2)


def test_a_cut_stream_ends_without_a_finish(worker: Worker) -> None:
    worker.script(cut_stream_after=3)
    received: list[str] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        worker.http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True}) as stream,
    ):
        received.extend(contents(stream))

    assert len("".join(received).split()) == 3
    assert worker.report()["failed"] == 1


def test_an_answer_in_one_piece_is_cut_before_it_begins(worker: Worker) -> None:
    worker.script(cut_stream_after=3)

    with pytest.raises(httpx.RemoteProtocolError):
        worker.ask()


def test_a_refusing_engine_is_healthy_but_closes_every_request(worker: Worker) -> None:
    worker.script(refuse=True)

    with pytest.raises(httpx.RemoteProtocolError):
        worker.ask()
    assert worker.http.get("/health").status_code == 200
    assert worker.http.get("/v1/models").status_code == 200


def test_errors_of_the_framework_have_the_envelope_too(worker: Worker) -> None:
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
def test_without_the_key_nothing_is_told(worker: Worker, method: str, path: str, header: dict[str, str]) -> None:
    answer = httpx.request(method, worker.url + path, headers=header, json={}, **DIRECT)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_probes_need_no_key(worker: Worker, path: str) -> None:
    assert httpx.get(worker.url + path, **DIRECT).status_code == 200


# Processes: loading


def test_loading_is_told_until_it_is_done(start: Start) -> None:
    worker = start("--load-s=0.5")
    health, models = worker.http.get("/health"), worker.http.get("/v1/models")
    worker.script(load_s=1000)
    worker.log_line("Loading weights:")
    worker.script(load_s=0)
    worker.log_line("Application startup complete.")

    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert (models.status_code, models.json()["error"]["code"]) == (503, "model_loading")
    assert worker.http.get("/health").json() == {"status": "ok"}


def test_a_silent_load_logs_nothing_and_is_ended_by_a_term(start: Start) -> None:
    worker = start("--load-s=1000", "--silent-load")
    until(lambda: worker.http.get("/health").json()["status"] == "loading")
    worker.process.terminate()

    assert worker.exit_code() == 0
    assert worker.log == [f"Listening on {worker.url}"]


def test_a_crash_while_loading_ends_with_its_message_and_code(start: Start) -> None:
    message = "torch.OutOfMemoryError: CUDA out of memory."
    worker = start("--load-s=0.2", "--crash-on-load=3", f"--crash-message={message}")

    assert worker.exit_code() == 3
    assert worker.log[-1] == message
    assert any(line.startswith("Loading weights:") for line in worker.log)


def test_a_load_that_hangs_does_not_even_answer_probes(start: Start) -> None:
    worker = start("--hang=loading", key="")
    with pytest.raises(httpx.ReadTimeout):
        worker.http.get("/health", timeout=httpx.Timeout(DEADLINE_S, read=0.1))
    worker.script(hang=None)

    assert worker.ready().ask().status_code == 200  # and needs no key, as it was given none


# Processes: dying


def test_it_dies_when_it_has_served_its_last_request(start: Start) -> None:
    worker = start("--crash-after=2", "--crash-code=7").ready()
    answers = [worker.ask(), worker.ask()]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert worker.exit_code() == 7


def test_it_dies_in_the_middle_of_the_request_after_that(start: Start) -> None:
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


def test_a_term_ends_it_cleanly_in_the_middle_of_a_stream(start: Start, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    worker = start("--memory-mb=800", env={"CORTEX_FAKE_MEMORY_FILE": str(memory)}).ready()
    held = memory.read_text()
    worker.script(memory_mb=900, tps=HELD)
    grown = memory.read_text()
    body = {"messages": HELLO, "stream": True}
    with (
        pytest.raises(httpx.TransportError),
        worker.http.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        worker.process.terminate()
        stream.read()

    assert (held, grown) == ("800\n", "900\n")
    assert worker.exit_code() == 0
    assert not list(tmp_path.iterdir())


def test_an_engine_that_ignores_term_serves_on_and_leaves_its_memory_when_killed(start: Start, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    worker = start("--ignore-term", env={"CORTEX_FAKE_MEMORY_FILE": str(memory)}).ready()
    worker.process.terminate()
    worker.log_line("SIGTERM ignored.")
    answer = worker.ask()
    worker.process.kill()

    assert answer.status_code == 200
    assert worker.exit_code() == -signal.SIGKILL
    assert memory.exists()


# Processes: left behind


def test_a_grandchild_outlives_it_in_its_group_and_holds_its_log_open(start: Start) -> None:
    worker = start("--leave-grandchild", "--hold-stdout").ready()
    grandchild = psutil.Process(worker.report()["left_behind"]["grandchild"])
    worker.process.terminate()
    code = worker.process.wait(DEADLINE_S)
    held = worker.reader.is_alive() and grandchild.is_running()
    group = os.getpgid(grandchild.pid)
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.reader.join(DEADLINE_S)

    assert (code, group, held) == (0, worker.process.pid, True)
    assert not worker.reader.is_alive()


def test_a_daemon_outlives_it_in_a_session_of_its_own_with_its_environment(start: Start) -> None:
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


# The command line


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out

    assert all(f"--{name.replace('_', '-')}" in text for name in Script.__struct_fields__)
    assert "POST /fake" in text


def test_options_become_the_script() -> None:
    words = "--port 1 --model m --load-s 2 --crash-on-load --hang serving --echo --tps 1e3 --answer null"
    place, script = parse(words.split())

    assert (place.port, place.host) == (1, "127.0.0.1")
    assert script == Script(load_s=2.0, crash_on_load=1, hang="serving", echo=True, tps=1000.0, answer="null")


@pytest.mark.parametrize(
    "words", ["--port 1", "--port x --model m", "--port 1 --model m --tps fast", "--port 1 --model m --tok 1"]
)
def test_a_bad_option_ends_it_at_once(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words.split())

    assert ended.value.code == 2
    assert any(name in capsys.readouterr().err for name in ("--model", "port", "tps", "--tok"))
