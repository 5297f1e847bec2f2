"""Engines end to end: any program by its command line, and what a function's server cannot do."""

import json

import psutil
import pytest

from cortex.platform.process.environment import MARKER, OWNER
from tests.e2e.conftest import SECRETS
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.xdist_group("stack"),
    pytest.mark.parametrize("stack", [2], ids=["two-workers"], indirect=True),
]


def test_any_program_serves_by_its_command_line(stack: Stack) -> None:
    answer = stack.chat("any/command")

    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "four five")
    instance = stack.instance("any/command")
    worker = psutil.Process(instance["pid"])
    key = worker.environ()["CORTEX_WORKER_KEY"]
    assert instance["server"] == "command"
    assert not [word for word in worker.cmdline() if key in word]


def test_a_worker_has_nothing_secret_of_its_agent_in_its_environment(stack: Stack) -> None:
    agent = stack.child("agent").environ()
    workers = []
    for name in ("tiny/alpha", "fake/told"):
        assert stack.chat(name).status_code == 200
        workers.append(psutil.Process(stack.instance(name)["pid"]).environ())
    llama, told = workers

    assert agent.items() >= SECRETS.items()
    assert "CORTEX_REDIS_URL" in agent
    assert not set(SECRETS) & set(llama)
    assert {name for name in llama if name.startswith("CORTEX_")} == {MARKER, OWNER}
    assert llama["PATH"] == agent["PATH"]
    assert told["HF_TOKEN"] == "of its function"  # whoever writes the catalogue asked for it


def test_a_loaded_worker_takes_what_was_estimated_for_it(stack: Stack) -> None:
    told = stack.http.get("/admin/weights/estimate", params={"function": "tiny/wide"}).json()
    assert stack.chat("tiny/wide", max_tokens=1).status_code == 200
    instance = stack.instance("tiny/wide")
    taken_mb = psutil.Process(instance["pid"]).memory_info().rss // 2**20

    assert told["cache_mb"] == 128  # 32 × 32768 tokens of 128 bytes
    assert told["weights_mb"] + told["cache_mb"] <= taken_mb <= told["total_mb"]
    assert instance["memory_mb"] == told["total_mb"]  # and this is what was placed


def test_what_a_server_does_not_serve_is_refused_before_anything_starts(stack: Stack) -> None:
    answer = stack.http.post("/v1/embeddings", json={"model": "broken/command", "input": "a"})

    assert answer.status_code == 400
    assert "'broken/command' serves chat, completions, not embeddings" in answer.json()["error"]["message"]


def test_a_program_no_host_has_is_named(stack: Stack) -> None:
    answer = stack.chat("broken/command")

    assert answer.status_code == 503
    assert "no program 'no-such-program' on this host" in answer.json()["error"]["message"]


def test_host_ls_shows_the_engines_with_their_versions(stack: Stack) -> None:
    (host,) = json.loads(stack.cli("host", "ls", "--json").stdout)
    table = stack.cli("host", "ls").stdout

    assert {"llamacpp", "fake", "command"} <= set(host["engines"])
    assert "xllamacpp" in host["servers"]
    assert "llamacpp (" in " ".join(table.split())
