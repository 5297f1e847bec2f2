"""The check of a vLLM worker's key, as ASGI and in a real uvicorn started like vLLM's."""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cortex.functions.launch import vllm
from cortex.platform.workers.launch_context import ENGINE_MODULES

KEY, CONTROL_KEY = "secret-of-the-worker", "secret-of-the-agent"
CLIENT_PATHS = [
    "/health", "/ping", "/load", "/metrics", "/version", "/invocations", "/pooling", "/classify", "/score", "/rerank",
    "/tokenize", "/detokenize", "/v1/models", "/v1/chat/completions", "/v2/rerank",
]  # fmt: skip
AGENT_PATHS = [
    "/pause", "/update_weights", "/collective_rpc", "/sleep", "/wake_up", "/is_sleeping", "/reset_prefix_cache",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters",
    "/docs", "/openapi.json", "//v1/models", "/V1/models", "//sleep", "/%73leep", "/", "/nothing",
]  # fmt: skip
PATHS = [*CLIENT_PATHS, *AGENT_PATHS]
SERVER = """
import importlib, os, socket, sys
import uvicorn

async def everything(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})

module, name = os.environ["CHECK"].rsplit(".", 1)
app = getattr(importlib.import_module(module), name)(everything)
# With `fd`, uvicorn takes the socket for a local one, and each answer waits for the kernel to send its second part.
uvicorn.Server(uvicorn.Config(app, lifespan="off")).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


def key_file(folder: Path) -> str:
    """Write both keys to a file and return its path."""
    (folder / "key").write_text(f"{KEY}\n{CONTROL_KEY}")
    return str(folder / "key")


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The class, loaded as the engine loads it."""
    monkeypatch.setenv(vllm.KEY_FILE, key_file(tmp_path))
    module, _, name = vllm.KEY_CHECK.rpartition(".")
    spec = importlib.util.spec_from_file_location(module, str(ENGINE_MODULES / f"{module}.py"))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


async def sent(check: Any, scope: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether a scope reaches the application behind the check, and what the check sends itself."""
    reached: list[str] = []
    messages: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def receive() -> dict[str, Any]:
        raise AssertionError("the check reads no body")

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await check(app)(scope, receive, send)
    return bool(reached), messages


def http(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers)}


def bearer(key: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {key}".encode())


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_needs_a_key_and_paths_for_developers_the_agents(check: Any, path: str) -> None:
    without, refusal = await sent(check, http(path))
    of_router, _ = await sent(check, http(path, bearer(KEY)))
    of_agent, messages = await sent(check, http(path, bearer(CONTROL_KEY)))

    assert (without, of_router, of_agent, messages) == (False, path in CLIENT_PATHS, True, [])
    assert refusal[0]["status"] == 401
    assert (b"www-authenticate", b"Bearer") in refusal[0]["headers"]


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer"),
        (b"authorization", b"Bearer "),
        (b"authorization", b"Bearer wrong"),
        (b"authorization", f"Bearer {KEY}x".encode()),
        (b"authorization", f"Basic {KEY}".encode()),
        (b"authorization", KEY.encode()),
        (b"authorization", b"Bearer \xff\xfe"),
        (b"x-api-key", KEY.encode()),
        (b"cookie", f"authorization=Bearer {KEY}".encode()),
    ],
    ids=lambda h: repr(h[1]),
)
async def test_only_the_key_as_a_bearer_token_passes(check: Any, header: tuple[bytes, bytes]) -> None:
    passes, refusal = await sent(check, http("/v1/models", header))

    assert not passes
    assert refusal[0]["status"] == 401


async def test_without_a_control_key_no_key_opens_the_paths_for_developers(
    check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "one-key").write_text(KEY)
    monkeypatch.setenv(vllm.KEY_FILE, str(tmp_path / "one-key"))

    for key in (KEY, "", CONTROL_KEY):
        assert not (await sent(check, http("/sleep", bearer(key))))[0]
    assert (await sent(check, http("/v1/models", bearer(KEY))))[0]


class Engine:
    """An application that answers every request with one status."""

    def __init__(self) -> None:
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def answered(app: Any, path: str, key: str = CONTROL_KEY) -> int:
    """Return the status of a request through the check."""
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await app(http(path, bearer(key)), None, send)
    return int(messages[0]["status"])


async def test_an_engine_that_sleeps_gets_no_request_that_needs_its_weights(check: Any) -> None:
    app = check(Engine())

    assert await answered(app, "/sleep") == 200

    assert [await answered(app, p, KEY) for p in ("/v1/chat/completions", "/v1/models", "/pooling")] == [503] * 3
    assert await answered(app, "/v1/load_lora_adapter") == 503
    assert [await answered(app, p, KEY) for p in ("/health", "/metrics")] == [200] * 2
    assert await answered(app, "/is_sleeping") == 200
    assert await answered(app, "/wake_up") == 200
    assert await answered(app, "/v1/chat/completions", KEY) == 200


async def test_an_engine_that_did_not_do_what_it_was_told_is_as_it_was(check: Any) -> None:
    engine = Engine()
    app = check(engine)

    engine.status = 500
    assert await answered(app, "/sleep") == 500
    engine.status = 200
    assert await answered(app, "/v1/models", KEY) == 200

    await answered(app, "/sleep")
    engine.status = 500
    assert await answered(app, "/wake_up") == 500
    assert await answered(app, "/v1/models", KEY) == 503


async def test_a_websocket_without_the_key_is_closed_before_it_is_accepted(check: Any) -> None:
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}

    assert await sent(check, scope) == (False, [{"type": "websocket.close", "code": 1008}])
    assert await sent(check, scope | {"headers": [(b"authorization", f"bearer {KEY}".encode())]}) == (True, [])


async def test_the_start_and_the_end_of_the_server_pass(check: Any) -> None:
    assert await sent(check, {"type": "lifespan"}) == (True, [])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "CORTEX_WORKER_KEY_FILE is not set"),
        ("", "CORTEX_WORKER_KEY_FILE is not set"),
        ("/nowhere/key", "cannot be read: /nowhere/key: No such file"),
        (os.devnull, "is empty"),
    ],
)
def test_a_worker_without_a_key_exits(check: Any, monkeypatch: pytest.MonkeyPatch, value: str | None, why: str) -> None:
    monkeypatch.delenv(vllm.KEY_FILE) if value is None else monkeypatch.setenv(vllm.KEY_FILE, value)

    with pytest.raises(RuntimeError, match=why):
        check(None)


def test_the_module_needs_only_the_standard_library() -> None:
    module = vllm.KEY_CHECK.partition(".")[0]
    code = (
        f"import sys; sys.path.insert(0, {str(ENGINE_MODULES)!r}); import {module}; "
        "print([n for n in sys.modules if n.partition('.')[0] not in sys.stdlib_module_names "
        f"and n not in ('__main__', {module!r})])"
    )

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert [p.name for p in Path(ENGINE_MODULES).iterdir() if p.name != "__pycache__"] == [f"{module}.py"]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that answers every path with 200, behind the check."""
    folder = tmp_path_factory.mktemp("worker")
    script = folder / "server.py"
    script.write_text(SERVER)
    modules = {"PYTHONPATH": str(ENGINE_MODULES), "CHECK": vllm.KEY_CHECK}
    env = {**os.environ, **modules, vllm.KEY_FILE: key_file(folder)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        argv = [sys.executable, str(script), str(descriptor)]
        with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL, pass_fds=[descriptor]) as child:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                child.kill()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_over_a_real_socket_no_path_and_no_method_passes_without_the_key(worker: str, method: str) -> None:
    with httpx.Client(base_url=worker, trust_env=False, timeout=30) as stranger:
        refused = {path: stranger.request(method, path, content=b"x" * 1000).status_code for path in PATHS}
    with httpx.Client(base_url=worker, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as router:
        served = {path: router.request(method, path).status_code for path in PATHS}

    assert set(refused.values()) == {401}
    assert served == {path: 200 if path in CLIENT_PATHS else 401 for path in PATHS}
