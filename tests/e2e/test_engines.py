"""Engines: any program by its command line, and dialects that a server does not support."""

import json

import psutil
import pytest

from cortex.platform.process.environment import MARKER, OWNER
from tests.e2e.conftest import SECRETS
from tests.e2e.workers import TWO
from tests.support.stack import Stack

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def test_any_program_can_serve_by_its_command_line(stack: Stack) -> None:
    answer = stack.chat("any/command")

    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "four five")
    instance = stack.instance("any/command")
    worker = psutil.Process(instance["pid"])
    key = worker.environ()["CORTEX_WORKER_KEY"]
    assert instance["server"] == "command"
    assert not [word for word in worker.cmdline() if key in word]


def test_a_workers_environment_has_no_secret_of_the_agent(stack: Stack) -> None:
    agent = stack.child("agent").environ()
    workers = []
    for name in ("tiny/alpha", "fake/told"):
        answer = stack.chat(name)
        assert answer.status_code == 200, answer.text
        workers.append(psutil.Process(stack.instance(name)["pid"]).environ())
    llama, report = workers

    assert agent.items() >= SECRETS.items()
    assert "CORTEX_REDIS_URL" in agent
    assert not set(SECRETS) & set(llama)
    assert {name for name in llama if name.startswith("CORTEX_")} == {MARKER, OWNER}
    assert llama["PATH"] == agent["PATH"]
    assert report["HF_TOKEN"] == "of its function"  # the catalogue sets it


def test_a_loaded_worker_takes_the_estimated_memory(stack: Stack) -> None:
    answer = stack.http.get("/admin/weights/estimate", params={"function": "tiny/wide"}).json()
    assert stack.chat("tiny/wide", max_tokens=1).status_code == 200
    instance = stack.instance("tiny/wide")
    taken_mb = psutil.Process(instance["pid"]).memory_info().rss // 2**20

    assert answer["cache_mb"] == 128  # 32 × 32768 tokens of 128 bytes
    assert answer["weights_mb"] + answer["cache_mb"] <= taken_mb <= answer["total_mb"]
    assert instance["memory_mb"] == answer["total_mb"]  # and this is what was placed


def test_an_unsupported_dialect_is_rejected_before_a_start(stack: Stack) -> None:
    answer = stack.http.post("/v1/embeddings", json={"model": "broken/command", "input": "a"})

    assert answer.status_code == 400
    assert "'broken/command' serves chat, completions, not embeddings" in answer.json()["error"]["message"]


def test_a_program_that_no_host_has_is_an_error_with_its_name(stack: Stack) -> None:
    answer = stack.chat("broken/command")

    assert answer.status_code == 503
    assert "no program 'no-such-program' on this host" in answer.json()["error"]["message"]


def test_host_ls_lists_engines_with_versions(stack: Stack) -> None:
    (host,) = json.loads(stack.cli("host", "ls", "--json").stdout)
    table = stack.cli("host", "ls").stdout

    assert {"llamacpp", "fake", "command"} <= set(host["engines"])
    assert "xllamacpp" in host["servers"]
    assert "llamacpp (" in " ".join(table.split())
