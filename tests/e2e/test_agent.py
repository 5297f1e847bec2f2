"""Placement on declared devices, with the fake engine and real processes."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cortex.functions.sources import Demo
from cortex.platform.weights.demo_model import write_bigram
from cortex.platform.weights.store import demo_path
from tests.e2e.conftest import ALPHA, FAKE
from tests.support.catalogues import entry, fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.xdist_group("agents")

GPUS = {"CORTEX_AGENT__DEVICES": json.dumps([{"name": "24 GB", "vram_mb": 24576}] * 2)}
LARGE = {"CORTEX_AGENT__DEVICES": json.dumps([{"name": "80 GB", "vram_mb": 81920}])}
QUICK = {
    "CORTEX_AGENT__HEALTH_S": "0.3",
    "CORTEX_AGENT__STOP_GRACE_S": "1",
    "CORTEX_AGENT__DRAIN_GRACE_S": "4",
    "CORTEX_AGENT__RESERVE_MB": "0",
}


MODELS = "\n".join(
    [
        fake("f/half-a", vram_mb=12000),
        fake("f/half-b", vram_mb=12000),
        fake("f/whole", vram_mb=24000, min_devices=1),
        fake("f/both", vram_mb=40000, min_devices=2),
        fake("f/large", vram_mb=70000),
        fake("f/too-large", vram_mb=200_000),
        fake("f/pinned", vram_mb=24000, pinned_on=["small"]),
        fake("f/measured", "--memory-mb", "5000", vram_mb=12000),
        fake("f/long", "--tps", "10", "--tokens", "1000", vram_mb=24000),
        fake("f/hangs", "--hang", "serving", vram_mb=1000),
        fake("f/ignores", "--ignore-term", "--leave-grandchild", "--leave-daemon", vram_mb=1000),
        fake("f/holds", "--leave-grandchild", "--hold-stdout", vram_mb=1000),
        fake("f/oom", "--crash-on-load", "1", "--crash-message", "torch.OutOfMemoryError: CUDA out of memory"),
        entry("f/movable", engine="fake", vram_mb=10000),
        # It says where its weights are.
        entry("f/weighty", engine="command", command=[*FAKE, "--answer", "{source}"], source="demo:tiny", vram_mb=100),
    ]
)


def demo_of(folder: Path, host: str) -> Path:
    """Where a host of these keeps the weights of `f/weighty`."""
    return demo_path(Demo("tiny"), folder / f"cache-{host}")


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("two-hosts")
    agents = {
        name: {**QUICK, **devices, "CORTEX_AGENT__CACHE_DIR": str(folder / f"cache-{name}")}
        for name, devices in {"small": GPUS, "tall": LARGE}.items()
    }
    demo_of(folder, "tall").parent.mkdir(parents=True)
    write_bigram(demo_of(folder, "tall"), ALPHA, name="tiny")
    with own_redis(folder) as url, Fleet(folder, url, MODELS, agents) as running:
        yield running


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("one-host")
    with own_redis(folder) as url, Fleet(folder, url, MODELS, {"small": {**QUICK, **GPUS}}) as running:
        yield running


@pytest.fixture
def fleet(two_hosts: Fleet) -> Fleet:
    two_hosts.rest()
    return two_hosts


@pytest.fixture
def small(one_host: Fleet) -> Fleet:
    one_host.rest()
    return one_host


def devices_of(fleet: Fleet, function: str) -> tuple[str, ...]:
    (result,) = fleet.function(function)["instances"]
    return tuple(result["devices"])


@pytest.mark.long
def test_functions_share_a_device_or_take_several(fleet: Fleet) -> None:
    for name in ("f/half-a", "f/half-b", "f/both", "f/large"):
        assert fleet.chat(name).status_code == 200, name
        if name == "f/both":
            assert len(devices_of(fleet, "f/both")) == 2

    places = {h.name: {i.function: i.devices for i in h.instances} for h in fleet.records().values()}
    assert places["tall"]["f/large"] == ("gpu-0",)
    assert "f/large" not in places["small"]


@pytest.mark.long
def test_an_idle_function_is_evicted_for_another(small: Fleet) -> None:
    small.chat("f/whole")
    small.chat("f/half-a")
    small.chat("f/half-b")

    answer = small.chat("f/both")  # held until the others may leave

    assert answer.status_code == 200
    assert small.function("f/whole")["instances"] == []
    assert small.function("f/both")["instances"][0]["state"] == "ready"


def test_a_plan_lists_the_victims_and_changes_nothing(small: Fleet) -> None:
    small.chat("f/half-a")
    free = small.cli("fn", "warm", "f/whole", "--plan")
    small.chat("f/whole")
    full = json.loads(small.cli("fn", "warm", "f/both", "--plan", "--json").stdout)
    never = small.cli("fn", "warm", "f/too-large", "--plan")

    assert "would start on small, gpu-1: 24000 MiB each (declared)" in free.stdout
    assert (full["effect"], full["start"]) == ("impossible", None)  # both were used just now
    assert "does not fit by" in full["refusals"]["small"]
    assert never.returncode == 1
    assert "more than there can ever be" in never.stdout
    assert small.function("f/both")["state"] == "cold"


def test_a_function_that_can_never_fit_is_refused_at_once_with_the_shortage(small: Fleet) -> None:
    answer = small.chat("f/too-large")

    assert answer.status_code == 503
    assert "175424 MiB more than there can ever be" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers


@pytest.mark.long
def test_a_busy_or_pinned_function_is_never_evicted(small: Fleet) -> None:
    assert small.chat("f/pinned").status_code == 200
    body = {"model": "f/long", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with small.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        asking = threading.Thread(target=lambda: small.chat("f/whole"), daemon=True)
        asking.start()
        eventually(lambda: small.function("f/whole")["waiting"] == 1, what="one waiting")
        planned = small.cli("fn", "warm", "f/whole", "--plan")
        states = {f: small.function(f)["state"] for f in ("f/pinned", "f/long")}
    asking.join(60)

    assert planned.returncode == 1
    assert states == {"f/pinned": "ready", "f/long": "ready"}
    assert small.function("f/pinned")["state"] == "ready"
    assert small.function("f/whole")["state"] == "ready"  # it came once the stream had ended


@pytest.mark.long
def test_the_measured_memory_is_used_for_the_next_start(small: Fleet) -> None:
    small.chat("f/measured")
    declared = small.function("f/measured")["instances"][0]
    eventually(lambda: small.function("f/measured")["instances"][0]["used_mb"] == 5000, what="a measurement")
    eventually(lambda: small.last_use(declared["id"]), what="its use to be in the record")  # unused: it does not count
    small.cli("fn", "cool", "f/measured")

    small.chat("f/measured")

    measured = small.function("f/measured")["instances"][0]
    assert (declared["memory_mb"], declared["memory_from"]) == (12000, "declared")
    assert (measured["memory_mb"], measured["memory_from"]) == (5000, "measured")


@pytest.mark.long
@pytest.mark.parametrize("name", ["f/ignores", "f/holds"])
def test_workers_that_ignore_term_are_killed_with_all_their_processes(small: Fleet, name: str) -> None:
    small.chat(name)
    before = small.workers()

    cooled = small.cli("fn", "cool", name)

    assert len(before) > 1
    assert cooled.returncode == 0, cooled.stderr
    assert small.workers() == []


@pytest.mark.long
def test_a_hung_worker_without_cpu_time_is_replaced(small: Fleet) -> None:
    small.chat("f/half-a")
    (worker,) = small.workers()
    first = small.function("f/half-a")["instances"][0]["id"]

    worker.suspend()
    eventually(
        lambda: [i["id"] for i in small.function("f/half-a")["instances"]] != [first],
        within_s=40,
        what="the stuck worker to go",
    )

    assert small.chat("f/half-a").status_code == 200
    assert not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_a_start_out_of_memory_is_retried_once_with_more(small: Fleet) -> None:
    answer = small.chat("f/oom")

    log = [json.loads(line) for line in small.log("small").splitlines() if "worker_spawned" in line and "f/oom" in line]
    assert answer.status_code == 503
    assert "out of memory" in answer.json()["error"]["message"]
    assert [line["instance"].endswith("-2") for line in log] == [False, True]


@pytest.mark.long
def test_a_cordoned_host_gets_nothing_new_also_after_a_restart(fleet: Fleet) -> None:
    assert fleet.cli("host", "cordon", "tall").returncode == 0
    before = fleet.records()["tall"].epoch
    fleet.kill("tall")
    fleet.start_agent("tall")
    eventually(lambda: (now := fleet.records().get("tall")) and now.epoch > before, what="tall to be back")

    fleet.chat("f/movable")
    listed = {h["name"]: h for h in json.loads(fleet.cli("host", "ls", "--json").stdout)}

    assert fleet.function("f/movable")["instances"][0]["host"] == "small"
    assert (listed["tall"]["cordoned"], listed["small"]["cordoned"]) == (True, False)
    assert fleet.cli("host", "uncordon", "tall").returncode == 0
    assert fleet.cli("host", "cordon", "tal").returncode == 4


@pytest.mark.long
def test_a_drained_hosts_functions_move_to_another(fleet: Fleet) -> None:
    fleet.cli("host", "cordon", "tall")
    fleet.chat("f/movable")
    fleet.cli("host", "uncordon", "tall")

    drained = fleet.cli("host", "drain", "small")

    assert (drained.returncode, drained.stdout) == (0, "small: drained; moved f/movable\n")
    assert fleet.records()["small"].instances == ()
    hot = fleet.chat("f/movable")
    assert (hot.headers["x-cortex-start"], fleet.function("f/movable")["instances"][0]["host"]) == ("hot", "tall")


@pytest.mark.long
def test_a_drain_waits_for_requests_and_reports_those_that_exceed_the_grace(small: Fleet) -> None:
    body = {"model": "f/long", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with small.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: "))  # before it, keep-alives of a held stream
        drained = small.cli("host", "drain", "small")
        still = [next(lines) for _ in range(3)]

    assert drained.returncode == 1
    assert "small still serves f/long" in drained.stderr
    assert still


def test_gpu_ls_lists_the_memory_of_instances(small: Fleet) -> None:
    small.chat("f/half-a")

    listed = json.loads(small.cli("gpu", "ls", "--json").stdout)

    shown = [(d["id"], d["total_mb"], d["admitted_mb"]) for d in listed]
    assert shown == [("gpu-0", 24576, 12000), ("gpu-1", 24576, 0)]
    assert "f/half-a 12000" in small.cli("gpu", "ls").stdout


def test_the_agents_metrics_have_devices_states_and_decisions(small: Fleet) -> None:
    small.chat("f/half-a")
    address = small.records()["small"].address

    open_to_all = httpx.get(f"{address}/metrics")
    metrics = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text

    assert open_to_all.status_code == 401
    assert 'cortex_instances{model="f/half-a",node="small",state="ready"} 1.0' in metrics
    assert 'cortex_device_memory_mb{device="gpu-0",kind="admitted",node="small"} 12000.0' in metrics
    assert f'cortex_decisions_total{{node="small",what="placed"}} {small.spawned():.1f}' in metrics


@pytest.mark.long
def test_a_function_starts_where_its_weights_are_and_only_there(fleet: Fleet) -> None:
    eventually(lambda: "f/weighty" in fleet.records()["tall"].weights, what="tall to say what it holds")
    spawned = fleet.spawned()

    answer = fleet.chat("f/weighty")
    warmed = [fleet.cli("fn", "warm", "f/weighty", "--wait").returncode for _ in range(2)]

    # Small comes first by its name, and by its smaller devices, and would have to write them.
    assert "f/weighty" not in fleet.records()["small"].weights
    assert answer.json()["choices"][0]["message"]["content"] == str(demo_of(fleet.folder, "tall"))
    assert warmed == [0, 0]
    assert fleet.spawned() == spawned + 1


@pytest.mark.long
def test_a_minimum_is_started_without_a_request(fleet: Fleet) -> None:
    declared, spawned = fleet.models.read_text(), fleet.spawned()
    fleet.models.write_text(declared + fake("f/always", min=1, vram_mb=100))
    try:
        eventually(lambda: fleet.http.get("/v1/models/f/always").json().get("loaded"), within_s=20, what="the minimum")

        assert fleet.spawned() == spawned + 1
    finally:
        fleet.models.write_text(declared)
        eventually(lambda: not fleet.http.get("/v1/models/f/always").is_success, what="the catalogue to be as before")
