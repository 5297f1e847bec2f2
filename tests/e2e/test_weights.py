"""Weights that are not on the host: from a hub on loopback to an answer, with faults on the way."""

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cortex.cli.main import cli
from cortex.platform.weights.demo_model import write_bigram
from tests.e2e.conftest import ALPHA
from tests.support.catalogues import entry
from tests.support.hub import FakeHub, fake_hub
from tests.support.lora import write_lora
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.xdist_group("agents")

TOKEN = "hf_secretsecret"
FETCHED = ("cold", "killed", "gone", "restarted", "cooled", "asked", "pre", "flaky")
FILE = "m-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("alpha") / "alpha.gguf"
    write_bigram(path, ALPHA, name="alpha")
    return path.read_bytes() + bytes(4_000_000)  # what stands behind the tensors is nothing to llama.cpp


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_lora(tmp_path_factory.mktemp("lora") / "lora.gguf", " night").read_bytes()


@pytest.fixture(scope="module")
def hub(alpha: bytes, lora: bytes) -> Iterator[FakeHub]:
    with fake_hub() as running:
        for name in (*FETCHED, "gated", "slow", "down", "undeclared", "shared"):
            running.repos[f"org/{name}"] = {FILE: alpha, "README.md": b"x"}
        running.repos["org/lora"] = {"lora.gguf": lora, "README.md": b"x"}
        running.tokens["org/gated"], running.gated = TOKEN, {"org/gated"}
        yield running


def hub_entry(name: str, **keys: object) -> str:
    return entry(f"w/{name}", engine="llamacpp", source=f"org/{name}", quant="Q4_K_M", **keys)


@pytest.fixture(scope="module")
def stack(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("weights-stack")
    (folder / "hf-token").write_text(TOKEN)
    models = [hub_entry(n) for n in (*FETCHED, "gated", "unknown")]
    models += [entry(f"w/{n}", engine="llamacpp", source="org/shared:Q4_K_M") for n in ("one", "same")]
    models += [hub_entry(n, start_timeout_s=1.5) for n in ("slow", "down")]
    models += [
        entry("w/base", engine="llamacpp", source="demo:harbour", context=512, max_output_tokens=4, start_timeout_s=60),
        entry("w/lora", base="w/base", adapter="org/lora", sampling={"temperature": 0.0}),
        entry("w/no-lora", base="w/base", adapter="org/nowhere"),
    ]
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


def request_in_thread(stack: Stack, name: str) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(stack.chat(name)), daemon=True)
    thread.start()
    return thread, answers


def run(stack: Stack, *arguments: str) -> Result:
    """Run a command in this process: starting another takes most of the time."""
    env = {k: stack.env[k] for k in ("CORTEX_URL", "XDG_STATE_HOME", "XDG_CACHE_HOME")}
    return CliRunner().invoke(cli, arguments, env={**os.environ, **env})


def job(stack: Stack, name: str) -> dict[str, Any]:
    answer = [j for j in stack.http.get("/admin/jobs").json()["jobs"] if f"w/{name}" in j["functions"]]
    return dict(answer[0]) if answer else {}


def test_a_cold_request_fetches_the_weights_and_is_answered(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 2.5
    thread, answers = request_in_thread(stack, "w/cold")

    phase = eventually(
        lambda: next((i["phase"] for i in stack.function("w/cold")["instances"] if "s left" in i["phase"]), ""),
        what="progress",
    )
    state, listed = stack.state("w/cold"), eventually(lambda: job(stack, "cold"), what="its job in the list")
    (line,) = [row for row in run(stack, "fn", "ls").stdout.splitlines() if row.startswith("w/cold: ")]
    hub.bytes_s = 0
    thread.join(30)

    assert state == "fetching"
    assert "of 3.9 MiB" in phase
    assert re.search(r"fetching, .* of 3.9 MiB, .*/s(, \d+ s left| .*\(fetched in \d+s\))", line)
    assert (listed["state"], listed["source"], listed["total"]) == ("fetching", "org/cold:Q4_K_M", len(alpha))
    assert answers[0].status_code == 200
    assert answers[0].json()["model"] == "w/cold"
    assert job(stack, "cold")["state"] == "done"
    held = lambda: stack.http.get("/admin/hosts").json()["hosts"][0]["weights"]  # noqa: E731
    assert "w/cold" in eventually(held, what="the record to say so")


@pytest.mark.long
def test_a_failing_hub_is_retried(stack: Stack, hub: FakeHub) -> None:
    hub.faults[FILE] = [503, 500]
    thread, answers = request_in_thread(stack, "w/flaky")

    readings: list[dict[str, Any]] = []

    def waits() -> bool:
        readings.append(job(stack, "flaky"))
        return readings[-1].get("state") == "waiting"

    eventually(waits, what="the job to wait")
    thread.join(30)

    assert "answers 50" in readings[-1]["why"]
    assert readings[-1]["retry_at"] is not None
    assert answers[0].status_code == 200


@pytest.mark.long
def test_a_slow_download_continues_after_its_request(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 4

    early = stack.chat("w/slow")
    hub.bytes_s = 0
    eventually(lambda: stack.state("w/slow") == "ready", what="the start to go on")

    assert early.status_code == 503
    assert early.headers["retry-after"]
    assert "fetching on here" in early.json()["error"]["message"]
    assert stack.chat("w/slow").status_code == 200
    assert stack.spawned("w/slow") == 1


@pytest.mark.long
@pytest.mark.parametrize("who", ["worker", "its job"])
def test_a_download_of_a_killed_job_worker_resumes(stack: Stack, hub: FakeHub, alpha: bytes, who: str) -> None:
    name = "killed" if who == "worker" else "gone"
    hub.bytes_s = len(alpha) / 3
    before = len(hub.transfers(FILE))
    thread, answers = request_in_thread(stack, f"w/{name}")
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


@pytest.mark.long
def test_a_download_continues_over_a_restart_of_the_agent(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 60
    before = len(hub.transfers(FILE))
    thread, answers = request_in_thread(stack, "w/restarted")
    blobs = Path(stack.env["XDG_CACHE_HOME"]) / "cortex" / "hub" / "models--org--restarted" / "blobs"
    partly = eventually(lambda: [p.name for p in blobs.glob("*.incomplete") if p.stat().st_size], what="bytes")
    first = stack.instance("w/restarted")["id"]

    stack.child("agent").kill()
    eventually(
        lambda: [i["state"] for i in stack.function("w/restarted")["instances"] if i["id"] != first] == ["fetching"],
        what="the next agent to follow it",
    )
    still = [p.name for p in blobs.iterdir()]
    hub.bytes_s = 0
    thread.join(30)

    assert still == partly  # by no name that a whole file has
    assert [s.range for s in hub.transfers(FILE)[before:]] == [""]  # one transfer, that nothing broke off
    assert answers[0].status_code == 200, answers[0].text
    assert stack.spawned("w/restarted") == 1


@pytest.mark.long
def test_a_fetch_without_a_waiting_instance_is_cancelled(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 60
    thread, answers = request_in_thread(stack, "w/cooled")
    eventually(lambda: job(stack, "cooled").get("state") == "fetching", what="the fetch")

    cooled = run(stack, "fn", "cool", "w/cooled")

    assert cooled.exit_code == 0
    eventually(lambda: job(stack, "cooled").get("state", "stopped") == "stopped", what="the job to stop")
    thread.join(10)
    assert answers[0].status_code == 503
    assert stack.child("jobs").children() == []


@pytest.mark.long
def test_a_gated_repository_is_fetched_and_the_token_is_sent_to_the_hub_only(stack: Stack, hub: FakeHub) -> None:
    assert stack.chat("w/gated").status_code == 200

    def has_token(path: Path) -> bool:
        try:
            return path.is_file() and path.stat().st_size < 2**22 and TOKEN.encode() in path.read_bytes()
        except FileNotFoundError:  # a state file is renamed once it is written
            return False

    assert [p for p in stack.folder.rglob("*") if p.name != "hf-token" and has_token(p)] == []
    assert {r.token for r in hub.requests if r.cdn} == {""}


def test_a_missing_repository_is_an_error_with_the_function_and_the_fix(stack: Stack) -> None:
    answer = stack.chat("w/unknown")

    content = answer.json()["error"]["message"]
    assert answer.status_code == 503
    assert "the weights of 'w/unknown' ('org/unknown') could not be fetched" in content
    assert "by-hand/org/unknown" in content


@pytest.mark.long
def test_an_unreachable_hub_is_an_error_with_the_folder_for_files(stack: Stack, hub: FakeHub) -> None:
    hub.faults["down"] = [503] * 100  # for every listing of the repository
    stack.http.post("/admin/functions/w/down/warm").raise_for_status()
    eventually(lambda: any("503" in i["phase"] for i in stack.function("w/down")["instances"]), what="the hub's no")

    answer = stack.chat("w/down")
    hub.faults["down"].clear()
    run(stack, "jobs", "cancel", "w/down")

    content = answer.json()["error"]["message"]
    assert (answer.status_code, bool(answer.headers["retry-after"])) == (503, True)
    assert "'w/down' was not ready after 1.5 s: it is fetching on here" in content
    assert "answers 503 for org/down" in content
    assert "put its files into" in content
    assert "by-hand/org/down" in content


def test_weights_are_prefetched_estimated_listed_and_removed_by_commands(
    stack: Stack, hub: FakeHub, alpha: bytes
) -> None:
    before = run(stack, "fn", "estimate", "w/pre")
    fetched = run(stack, "fn", "prefetch", "w/pre", "--host", "here")
    after = json.loads(run(stack, "fn", "estimate", "w/pre", "--json").stdout)
    listed = json.loads(run(stack, "weights", "ls", "--json").stdout)["weights"]
    would = run(stack, "weights", "rm", "w/pre", "--dry-run")
    removed = run(stack, "weights", "rm", "w/pre")
    again = run(stack, "weights", "rm", "w/pre")
    left = json.loads(run(stack, "weights", "ls", "--json").stdout)["weights"]

    assert "not on here yet" in before.stdout
    assert fetched.stdout == "here: has org/pre:Q4_K_M (4 MiB)\n"
    assert stack.spawned("w/pre") == 0
    assert (after["here"], after["weights_mb"]) == (True, 4)
    assert f"{after['total_mb']} MiB" in before.stdout  # the hub's word is as good as the file
    assert [w["functions"] for w in listed if w["name"] == "org/pre:Q4_K_M"] == [["w/pre"]]
    assert would.stdout == "here: would remove org/pre:Q4_K_M (4 MiB)\n"
    assert removed.stdout == "here: removed org/pre:Q4_K_M (4 MiB)\n"
    assert "this host has no weights of this name" in str(again.exception)
    assert [w for w in left if w["name"] == "org/pre:Q4_K_M"] == []
    assert not (Path(stack.env["XDG_CACHE_HOME"]) / "cortex" / "hub" / "models--org--pre").exists()


def test_weights_in_use_or_of_other_tools_are_not_removed(stack: Stack, weights: Path) -> None:
    path = str(weights / "alpha.gguf")
    stack.models.write_text(stack.models.read_text() + entry("w/path", engine="llamacpp", source=path))
    stack.chat("w/cold")
    eventually(lambda: path in run(stack, "weights", "ls").stdout, what="the new function's weights to be listed")

    busy = run(stack, "weights", "rm", "w/cold")
    not_ours = run(stack, "weights", "rm", "w/path")
    unused = run(stack, "weights", "rm", "--unused", "--dry-run")

    assert "an instance runs from it" in str(busy.exception)
    assert f"cortex did not put {path} there" in str(not_ours.exception)
    assert "org/cold" not in unused.stdout
    assert (weights / "alpha.gguf").exists()


@pytest.mark.long
def test_two_functions_with_one_source_share_one_download(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 60
    before = len(hub.transfers(FILE))

    begun = [stack.http.post("/admin/weights/fetch", json={"function": f}).json() for f in ("w/one", "w/same")]
    named = eventually(
        lambda: (result := job(stack, "one")).get("done") and result["functions"], within_s=45, what="bytes"
    )
    listed = stack.http.get("/admin/jobs").json()["jobs"]
    run(stack, "jobs", "cancel", "w/one")

    assert begun[0]["job"] == begun[1]["job"]
    assert named == ["w/one", "w/same"]
    assert [j["id"] for j in listed].count(begun[0]["job"]) == 1
    assert len(hub.transfers(FILE)[before:]) == 1


@pytest.mark.long
def test_a_download_is_listed_and_cancelled_by_commands(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 60
    begun = run(stack, "fn", "prefetch", "w/asked", "--no-wait")
    eventually(lambda: job(stack, "asked").get("total"), within_s=45, what="progress")

    listed = run(stack, "jobs", "ls")
    cancelled = run(stack, "jobs", "cancel", "org/asked:Q4_K_M")

    assert begun.stdout == "here: fetching the weights of w/asked\n"
    (line,) = (line.split() for line in listed.stdout.splitlines() if line.startswith("org/asked"))
    assert line[:4] == ["org/asked:Q4_K_M", "here", "w/asked", "fetching"]
    assert "░" in listed.stdout
    assert cancelled.stdout == "here: cancelled org/asked:Q4_K_M\n"
    eventually(lambda: job(stack, "asked")["state"] == "stopped", what="it to stop")
    assert "no download 'org/asked:Q4_K_M' is running" in str(
        run(stack, "jobs", "cancel", "org/asked:Q4_K_M").exception
    )


@pytest.mark.long
def test_a_fetch_for_a_removed_function_is_cancelled(stack: Stack, hub: FakeHub, alpha: bytes) -> None:
    hub.bytes_s = len(alpha) / 60
    declared = stack.models.read_text()
    stack.models.write_text(declared + hub_entry("undeclared"))
    eventually(lambda: stack.http.get("/admin/functions/w/undeclared").is_success, what="the catalogue")
    run(stack, "fn", "prefetch", "w/undeclared", "--no-wait")
    eventually(lambda: job(stack, "undeclared").get("state") == "fetching", what="the fetch")

    stack.models.write_text(declared)

    eventually(lambda: job(stack, "undeclared").get("state") == "stopped", what="it to be called off")


def test_an_adapter_comes_from_the_hub_and_one_that_does_not_fails_its_function_alone(stack: Stack) -> None:
    tuned, lost = stack.chat("w/lora"), stack.chat("w/no-lora")

    assert tuned.json()["choices"][0]["message"]["content"] == " night" * 4
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "adapter_failed")
    assert "its adapter 'org/nowhere' could not be fetched" in stack.function("w/no-lora")["failure"]
    assert stack.state("w/base") == "ready"
