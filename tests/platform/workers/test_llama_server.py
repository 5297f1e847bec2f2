"""The launcher of llama.cpp's server, as a real process with a real (tiny) model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from cortex.platform.weights.demo_model import write_bigram
from tests.support.stack import eventually

KEY = "a-key-that-is-not-to-be-seen"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
ENDLESS = CHAT | {"ignore_eos": True, "max_tokens": 100_000, "stream": True}


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client

    @property
    def port(self) -> int:
        return self.client.base_url.port or 0

    def busy(self) -> bool:
        return any(slot["is_processing"] for slot in self.client.get("/slots").json())


def command(*flags: str | Path) -> list[str]:
    return [sys.executable, "-m", "cortex.platform.workers.llama_server", *map(str, flags)]


def run(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*flags), capture_output=True, text=True, timeout=20)


@contextmanager
def serving(log: Path, *flags: str | Path) -> Iterator[Server]:
    def address() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"^llama_server: serving .* on (http://\S+)$", log.read_text(), re.MULTILINE)

    with log.open("wb") as file:
        process = subprocess.Popen(
            command("--port", "0", *flags),
            env=os.environ | {"LLAMA_API_KEY": KEY},
            stderr=file,
            start_new_session=True,
        )
    try:
        match = eventually(address)
        assert match
        url = match[1]
        # The server may close a connection after an answer without announcing it: none is used twice.
        limits, headers = httpx.Limits(max_keepalive_connections=0), {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=20, limits=limits) as client:
            yield Server(process, log, client)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_bigram(path, "alpha bravo. alpha charlie, and delta.", name="tiny")
    return path


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "worker.log"
    with serving(log, "-m", model, "-a", "team/tiny:1", "-c", "65536", "-np", "2", "--slots") as server:
        yield server


def test_the_model_is_listed_by_its_alias(server: Server) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    answer = server.client.post("/v1/chat/completions", json=CHAT).json()

    assert [entry["id"] for entry in listed] == ["team/tiny:1"]
    assert answer["model"] == "team/tiny:1"


def test_an_answer_has_usage(server: Server) -> None:
    answer = server.client.post("/v1/chat/completions", json=CHAT).json()

    assert answer["choices"][0]["message"]["content"].startswith("alpha ")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0


def test_a_stream_ends_with_usage_when_requested(server: Server) -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]

    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["usage"]["completion_tokens"] > 0
    assert json.loads(data[-2])["choices"] == []


def test_every_path_but_health_needs_the_key(server: Server) -> None:
    url = server.client.base_url

    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 401
    assert httpx.get(f"{url}/slots", headers={"Authorization": "Bearer guess"}).status_code == 401


def test_the_slots_divide_the_context(server: Server) -> None:
    slots = server.client.get("/slots").json()

    assert [slot["n_ctx"] for slot in slots] == [32768, 32768]


def test_a_client_that_hangs_up_frees_its_slot(server: Server) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.busy()

    eventually(lambda: not server.busy(), within_s=5)


def test_the_server_listens_on_its_own_address_only(server: Server) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_a_taken_port_is_not_shared(server: Server, model: Path) -> None:
    second = run("-m", model, "--port", str(server.port))

    assert second.returncode == 1
    assert second.stderr.splitlines()[-1] == (
        f"llama_server: cannot listen on 127.0.0.1:{server.port}: Address already in use"
    )
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "a private matter',
        b'{"messages": [{"role": "user", "content": "a private \xff matter"}]}',
        b'{"messages": [{"role": "user", "content": "a private matter"}], "max_tokens": 3}',
    ],
)
def test_no_prompt_and_no_key_reach_the_log(server: Server, body: bytes) -> None:
    server.client.post("/v1/chat/completions", content=body)

    log = server.log.read_text()
    assert "model loaded" in log
    assert "private" not in log
    assert KEY not in log


def test_optional_endpoints_are_off_by_default_and_usual_flags_are_taken(model: Path, tmp_path: Path) -> None:
    usual = ("--jinja", "--no-webui", "-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0", "-tb", "1", "--cache-reuse", "64")
    with serving(tmp_path / "log", "-m", model, *usual, "--swa-full", "--no-warmup", "--no-context-shift") as server:
        codes = {path: server.client.get(path).status_code for path in ("/", "/slots", "/metrics")}

        answer = server.client.post("/v1/chat/completions", json=CHAT)

    assert codes == {"/": 404, "/slots": 501, "/metrics": 501}
    assert answer.json()["choices"][0]["message"]["content"].startswith("alpha ")


def test_an_embedding_server_returns_embeddings(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", "-m", model, "--embeddings", "-c", "512", "--metrics") as server:
        body = {"input": ["alpha bravo", "alpha bravo charlie", "zulu"]}
        a, b, c = (item["embedding"] for item in server.client.post("/v1/embeddings", json=body).json()["data"])
        metrics = server.client.get("/metrics").status_code

    assert sum(x * y for x, y in zip(a, b, strict=True)) > sum(x * y for x, y in zip(a, c, strict=True))
    assert metrics == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_term_stops_the_server_at_once_during_an_answer(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "log", "-m", model) as server:
        with server.client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(number)
            code = server.process.wait(timeout=5)

        assert code == 0


def test_the_port_of_a_killed_server_can_be_taken_again(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "first", "-m", model) as first:
        first.client.post("/v1/chat/completions", json=CHAT)
        first.process.kill()
        first.process.wait()
        with serving(tmp_path / "second", "-m", model, "--port", str(first.port)) as second:
            health = second.client.get("/health").status_code

    assert health == 200


def test_a_file_that_is_not_a_model_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(bytes(range(256)) * 100)

    refused = run("-m", path, "--port", "0")

    assert refused.returncode == 1
    assert refused.stderr == f"llama_server: cannot load {path}: it is not a GGUF file\n"


def test_a_broken_model_is_rejected_with_the_reason(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(model.read_bytes()[:-5000])

    refused = run("-m", path, "--port", "0")

    assert refused.returncode == 1
    assert "data is not within the file bounds" in refused.stderr
    assert refused.stderr.splitlines()[-1] == (f"llama_server: cannot load {path}: llama.cpp gives the reason above")


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["-m", "/nowhere/x.gguf"], 1, "cannot read /nowhere/x.gguf: No such file or directory"),
        (["-m", "/"], 1, "cannot read /: Is a directory"),
        ([], 2, "error: the following arguments are required: -m/--model"),
        (["-m", "x.gguf", "--frobnicate"], 2, "error: unrecognized arguments: --frobnicate"),
        (["-m", "x.gguf", "--paral", "2"], 2, "error: unrecognized arguments: --paral 2"),
        (["-m", "x.gguf", "--port", "http"], 2, "error: argument --port: invalid int value: 'http'"),
        (
            ["-m", "x.gguf", "-ngl", "some"],
            2,
            "error: argument -ngl/--n-gpu-layers/--gpu-layers: 'some' is not a number, 'auto' or 'all'",
        ),
    ],
)
def test_an_invalid_command_line_exits_with_the_reason(flags: list[str], code: int, reason: str) -> None:
    refused = run(*flags)

    assert refused.returncode == code
    assert refused.stderr.splitlines()[-1] == f"llama_server: {reason}"
