"""Weights that are not there yet: from a hub on loopback to an answer, whatever happens on the way."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.platform.bigram import write_bigram
from tests.e2e.conftest import ALPHA
from tests.support.catalogues import entry
from tests.support.hub import FakeHub, fake_hub
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.xdist_group("agents")

TOKEN = "hf_secretsecret"
FILE = "m-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("alpha") / "alpha.gguf"
    write_bigram(path, ALPHA, name="alpha")
    return path.read_bytes() + bytes(4_000_000)  # what stands behind the tensors is nothing to llama.cpp


@pytest.fixture(scope="module")
def hub(alpha: bytes) -> Iterator[FakeHub]:
    with fake_hub() as running:
        for name in ("cold", "slow", "killed", "cooled", "asked", "gone", "gated"):
            running.repos[f"org/{name}"] = {FILE: alpha, "README.md": b"x"}
        running.tokens["org/gated"], running.gated = TOKEN, {"org/gated"}
        yield running


def hub_entry(name: str, **keys: object) -> str:
    return entry(f"w/{name}", engine="llamacpp", source=f"org/{name}", quant="Q4_K_M", **keys)


@pytest.fixture(scope="module")
def stack(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("weights-stack")
    (folder / "hf-token").write_text(TOKEN)
    models = [hub_entry(n) for n in ("cold", "killed", "cooled", "asked", "gone", "gated", "unknown")]
    models += [hub_entry("slow", start_timeout_s=1.5), entry("w/fake", engine="fake")]
    env = {"CORTEX_HUB__ENDPOINT": hub.url, "CORTEX_HUB__TOKEN_FILE": str(folder / "hf-token")}
    running = Stack(folder, "\n".join(models), env=env)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(autouse=True)
def full_speed(hub: FakeHub) -> Iterator[None]:
    yield
    hub.bytes_s = 0


def asked(stack: Stack, name: str) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(stack.chat(name)), daemon=True)
    thread.start()
    return thread, answers


def job(stack: Stack, name: str) -> dict[str, Any]:
    found = [j for j in stack.http.get("/admin/jobs").json()["jobs"] if f"w/{name}" in j["functions"]]
    return dict(found[0]) if found else {}


def test_a_cold_request_fetches_and_is_answered(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 2.5
    thread, answers = asked(stack, "w/cold")

    phase = eventually(
        lambda: next((i["phase"] for i in stack.function("w/cold")["instances"] if "/s" in i["phase"]), ""),
        what="progress",
    )
    state, listed = stack.state("w/cold"), job(stack, "cold")
    hub.bytes_s = 0
    thread.join(30)

    assert state == "fetching"
    assert "of 4 MiB" in phase
    assert (listed["state"], listed["source"], listed["total"]) == ("fetching", "org/cold:Q4_K_M", len(alpha))
    assert answers[0].status_code == 200
    assert answers[0].json()["model"] == "w/cold"
    assert job(stack, "cold")["state"] == "done"
    held = lambda: stack.http.get("/admin/hosts").json()["hosts"][0]["weights"]  # noqa: E731
    assert "w/cold" in eventually(held, what="the record to say so")


def test_a_slow_download_outlives_the_request_that_began_it(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 4

    early = stack.chat("w/slow")
    hub.bytes_s = 0
    eventually(lambda: stack.state("w/slow") in ("ready", "starting"), what="the start to go on")

    assert early.status_code == 503
    assert early.headers["retry-after"]
    assert "fetching on here" in early.json()["error"]["message"]
    assert stack.chat("w/slow").status_code == 200
    assert stack.spawned("w/slow") == 1


@pytest.mark.parametrize("who", ["worker", "its job"])
def test_a_killed_job_worker_loses_nothing_that_came(stack: Stack, hub: FakeHub, alpha: bytes, who: str) -> None:
    name = "killed" if who == "worker" else "gone"
    hub.bytes_s = len(alpha) / 3
    before = len(hub.transfers(FILE))
    thread, answers = asked(stack, f"w/{name}")
    partials = Path(stack.env["XDG_CACHE_HOME"]) / "cortex" / "hub" / f"models--org--{name}" / "blobs"
    eventually(lambda: sum(p.stat().st_size for p in partials.glob("*.incomplete")) > 0, what="bytes")

    worker = stack.child("jobs")
    victim = worker if who == "worker" else worker.children()[0]
    victim.kill()
    hub.bytes_s = 0
    thread.join(30)

    ranges = [s.range for s in hub.transfers(FILE)[before:]]
    assert answers[0].status_code == 200, answers[0].text
    assert len(ranges) == 2
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 0


def test_a_fetch_that_nobody_wants_any_more_is_called_off(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 60
    thread, answers = asked(stack, "w/cooled")
    eventually(lambda: job(stack, "cooled").get("state") == "fetching", what="the fetch")

    cooled = stack.cli("fn", "cool", "w/cooled")

    assert cooled.returncode == 0
    eventually(lambda: job(stack, "cooled").get("state", "stopped") == "stopped", what="the job to stop")
    thread.join(10)
    assert answers[0].status_code == 503
    assert stack.child("jobs").children() == []


def test_a_gated_repository_is_fetched_with_a_token_that_is_nowhere_else(stack: Stack, hub: FakeHub) -> None:
    assert stack.chat("w/gated").status_code == 200

    said = [p for p in stack.folder.rglob("*") if p.is_file() and p.name != "hf-token" and p.stat().st_size < 2**22]
    assert [p for p in said if TOKEN.encode() in p.read_bytes()] == []
    assert {s.token for s in hub.seen if s.cdn} == {""}


def test_what_the_hub_does_not_have_is_said_with_the_function_and_what_to_do(stack: Stack) -> None:
    answer = stack.chat("w/unknown")

    said = answer.json()["error"]["message"]
    assert answer.status_code == 503
    assert "the weights of 'w/unknown' ('org/unknown') could not be fetched" in said
    assert "by-hand/org/unknown" in said
