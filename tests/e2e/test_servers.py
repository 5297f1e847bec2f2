"""The same requests to every installed server of llama.cpp; the table has the differences.

`xllamacpp` comes with cortex. `llama-server` takes part when it is on the PATH or named by CORTEX_TEST_LLAMA_SERVER,
`llama_cpp.server` when CORTEX_TEST_LLAMA_CPP_PYTHON names its virtual environment (`just test-llama-cpp-python`).
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from cortex.functions.servers import SERVERS
from tests.e2e.conftest import ALPHA
from tests.support.catalogues import gguf
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.xdist_group("servers")

PLACES = {
    "llama-server": os.environ.get("CORTEX_TEST_LLAMA_SERVER") or shutil.which("llama-server") or "",
    "xllamacpp": "",
    "llama_cpp.server": os.environ.get("CORTEX_TEST_LLAMA_CPP_PYTHON", ""),
}
PRESENT = [name for name, place in PLACES.items() if place or name == "xllamacpp"]
NAME = "tiny/alpha"
REQUEST = {"model": NAME, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
TOOLS = [{"type": "function", "function": {"name": "sound", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module", params=PRESENT)
def server(request: pytest.FixtureRequest) -> str:
    """One of the servers that are here."""
    return str(request.param)


@pytest.fixture(scope="module")
def fleet(server: str, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A host that serves a tiny model with it."""
    folder = tmp_path_factory.mktemp("servers")
    engines = [{"name": server, "path": PLACES[server]}] if PLACES[server] else []
    models = gguf(NAME, str(weights / "alpha.gguf"), server=server, context=512, target_concurrency=4)
    agents = {"a": {"CORTEX_AGENT__ENGINES": json.dumps(engines)}}
    with own_redis(folder) as url, Fleet(folder, url, models, agents) as running:
        running.http = httpx.Client(base_url=running.url, timeout=120, trust_env=False)
        yield running


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def test_a_cold_request_is_answered_by_its_server(fleet: Fleet, server: str) -> None:
    answer = fleet.chat(NAME, max_tokens=8)

    assert answer.status_code == 200, answer.text
    assert words(answer.json()["choices"][0]["message"]["content"]) <= words(ALPHA)
    (instance,) = fleet.records()["a"].instances
    assert instance.server == server


def test_every_dialect_streams(fleet: Fleet) -> None:
    texts = {}
    for path in ("/v1/chat/completions", "/v1/messages"):
        with fleet.http.stream("POST", path, json={**REQUEST, "stream": True}) as answer:
            texts[path] = [line for line in answer.iter_lines() if line]

    assert texts["/v1/chat/completions"][-1] == "data: [DONE]"
    assert texts["/v1/messages"][0] == "event: message_start"
    assert texts["/v1/messages"][-2] == "event: message_stop"


@pytest.mark.long
def test_concurrent_requests_are_all_answered(fleet: Fleet) -> None:
    def ask(number: int) -> int:
        return fleet.http.post("/v1/chat/completions", json={**REQUEST, "stream": number % 2 == 0}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == [200] * 16


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_tools_are_used_or_rejected_with_their_name(fleet: Fleet, server: str, path: str) -> None:
    tools = TOOLS if "chat" in path else [{"name": "sound", "input_schema": {"type": "object"}}]
    answer = fleet.http.post(path, json={**REQUEST, "tools": tools})

    if SERVERS[server].tools:
        assert answer.status_code == 200, answer.text
    else:
        assert answer.status_code == 400
        assert f"runs on {server}, which does not parse tool calls" in answer.json()["error"]["message"]


def test_tokens_are_counted_or_estimated(fleet: Fleet, server: str) -> None:
    answer = fleet.http.post("/v1/messages/count_tokens", json={k: v for k, v in REQUEST.items() if k != "max_tokens"})

    assert answer.json()["input_tokens"] > 0
    assert ("x-cortex-estimate" in answer.headers) == (SERVERS[server].counts == "no")


def test_embeddings_of_a_chat_model_are_rejected(fleet: Fleet) -> None:
    answer = fleet.http.post("/v1/embeddings", json={"model": NAME, "input": "alder"})

    assert answer.status_code == 400
    assert "serves chat, completions, not embeddings" in answer.json()["error"]["message"]


def test_a_worker_requires_its_key_which_is_not_in_its_argv(fleet: Fleet) -> None:
    fleet.chat(NAME, max_tokens=1)
    (instance,) = fleet.records()["a"].instances

    assert httpx.post(f"{instance.url}/v1/chat/completions", json=REQUEST).status_code == 401
    secret = {v for k, v in psutil.Process(instance.pid).environ().items() if k in ("LLAMA_API_KEY", "API_KEY")}
    assert secret
    assert not secret & set(psutil.Process(instance.pid).cmdline())


def test_a_client_that_disconnects_does_not_delay_the_next_request(fleet: Fleet) -> None:
    with fleet.http.stream("POST", "/v1/chat/completions", json={**REQUEST, "max_tokens": 400, "stream": True}) as left:
        next(line for line in left.iter_lines() if line.startswith("data: "))

    assert fleet.chat(NAME, max_tokens=2).status_code == 200


def test_a_worker_killed_while_it_serves_is_replaced(fleet: Fleet) -> None:
    fleet.chat(NAME, max_tokens=1)
    (instance,) = fleet.records()["a"].instances
    os.kill(instance.pid, signal.SIGKILL)

    assert fleet.chat(NAME, max_tokens=2).status_code == 200
    eventually(lambda: {i.id for i in fleet.records()["a"].instances} != {instance.id}, what="another instance")
