"""A host with a hung mount, and measurements of functions that are shown and deleted.

The mount is played by the agent's own `os.stat`, which blocks for every path below it, as a dead server's mount does.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.support.catalogues import entry, fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.xdist_group("hung")

HUNG = "/hung"
STUCK = 12
SITE = f"""
import os, time
stat = os.stat
def slow(path, *args, **more):
    if str(path).startswith("{HUNG}/"):
        time.sleep(10_000)
    return stat(path, *args, **more)
os.stat = slow
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("hung")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    stuck = (
        entry(f"stuck/{n}", engine="llamacpp", source=f"{HUNG}/{n}/m.gguf", vram_mb=1000, start_timeout_s=7)
        for n in range(STUCK)
    )
    models = "\n".join(
        [
            *stuck,
            fake("well/one", vram_mb=20_000),
            fake("well/two", vram_mb=20_000),
            fake("measured", "--memory-mb", "9000", vram_mb=4000),
        ]
    )
    agent = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH", "")])),
        "CORTEX_AGENT__DEVICES": json.dumps([{"name": "80 GB", "vram_mb": 81_920}]),
        "CORTEX_AGENT__HEALTH_S": "0.3",
        "CORTEX_AGENT__RESERVE_MB": "0",
    }
    with own_redis(folder) as url, Fleet(folder, url, models, {"a": agent}) as running:
        yield running


@pytest.mark.long
def test_a_hung_mount_affects_only_its_functions(fleet: Fleet) -> None:
    answers: dict[str, httpx.Response] = {}
    waiting = [
        threading.Thread(target=lambda name=f"stuck/{n}": answers.update({name: fleet.chat(name)}))
        for n in range(STUCK)
    ]
    for one in waiting:
        one.start()
    first = fleet.chat("well/one")
    for one in waiting:
        one.join()
    hot = fleet.chat("well/one")
    fleet.http.post("/admin/functions/well/one/cool").raise_for_status()
    eventually(lambda: fleet.function("well/one")["state"] == "cold", what="well/one to be gone")
    second = fleet.chat("well/two")
    failure, doctor = fleet.function("stuck/0")["failure"], fleet.cli("doctor")
    refusals = fleet.http.get("/admin/decisions", params={"function": "stuck/0", "what": "refused"}).json()["decisions"]
    weights = fleet.http.get("/admin/weights").json()
    bearer = {"authorization": f"Bearer {TOKEN}"}
    health = httpx.get(f"{fleet.records()['a'].address}/health", headers=bearer, trust_env=False).json()

    assert [first.status_code, hot.status_code, second.status_code] == [200, 200, 200]
    assert {name: a.status_code for name, a in answers.items()} == {f"stuck/{n}": 503 for n in range(STUCK)}
    assert all("does not answer (is its mount hung?)" in a.text for a in answers.values())
    assert failure.startswith(f"a: {HUNG}")
    assert f"{HUNG}/0/m.gguf has not answered for" in doctor.stdout
    assert any("does not answer" in refusal["why"] for refusal in refusals)
    assert f"{HUNG}/0/m.gguf" in health["silent"]
    assert not weights["away"]


@pytest.mark.long
def test_measurements_of_a_function_are_shown_and_can_be_deleted(fleet: Fleet) -> None:
    fleet.chat("measured").raise_for_status()
    eventually(lambda: fleet.function("measured")["measured"], what="a measurement")
    fleet.http.post("/admin/functions/measured/cool", params={"now": 1}).raise_for_status()
    eventually(lambda: fleet.function("measured")["state"] == "cold", what="it to be gone")
    shown, before = fleet.cli("fn", "show", "measured"), planned(fleet, "measured")

    forgotten = fleet.cli("fn", "forget", "measured", "--json")
    after, unknown = planned(fleet, "measured"), fleet.http.post("/admin/functions/no/such/forget")

    assert "measured 9000 MiB on 80 GB, last starts: 9000" in shown.stdout
    assert before == (9000, "measured")
    assert json.loads(forgotten.stdout) == {"id": "measured", "entries": 1}
    assert after == (4000, "declared")
    row = fleet.function("measured")
    assert (row["measured"], row["expected_start_s"], row["last_start"]) == ([], None, None)
    assert unknown.status_code == 404


@pytest.mark.long
def test_an_agent_with_hung_file_accesses_stops_and_starts_in_time(fleet: Fleet) -> None:
    eventually(lambda: fleet.records()["a"].silent, what="a look that hangs")

    fleet.kill("a", signal.SIGTERM)
    fleet.start_agent("a")

    assert eventually(lambda: fleet.chat("measured").status_code == 200, what="a start by the new agent")


def planned(fleet: Fleet, name: str) -> tuple[int, str]:
    """Return by what memory a start would be placed, and where that number is from."""
    start = fleet.http.post(f"/admin/functions/{name}/warm", params={"plan": 1}).json()["start"]
    return start["memory_mb"], start["memory_from"]


@pytest.mark.long
def test_a_worker_hung_by_a_request_is_restarted_although_its_health_check_passes(
    fleet: Fleet,
) -> None:
    fleet.chat("well/one").raise_for_status()
    (instance,) = (i for i in fleet.records()["a"].instances if i.function == "well/one")
    key = {"authorization": f"Bearer {fleet.worker_key(instance.id)}"}
    httpx.post(f"{instance.url}/fake", json={"hang": "serving"}, headers=key, trust_env=False).raise_for_status()
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": "well/one", "messages": [{"role": "user", "content": "hang"}]}
        fleet.http.post("/v1/chat/completions", json=body, timeout=2.0)

    answer = fleet.chat("well/one")
    failures = fleet.http.get("/admin/decisions", params={"function": "well/one", "what": "failed"}).json()["decisions"]

    assert answer.status_code == 200
    assert answer.headers["x-cortex-instance"] != instance.id
    assert any("made no progress" in decision["why"] for decision in failures)
