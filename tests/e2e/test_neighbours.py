"""Weights from the neighbour: two agents on one machine, each with a cache and a certificate of its own, and a hub."""

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.platform.weights import neighbours
from tests.support.catalogues import entry
from tests.support.fleet import Fleet
from tests.support.hub import FakeHub, fake_hub
from tests.support.stack import eventually, own_redis

pytestmark = [pytest.mark.xdist_group("agents"), pytest.mark.long]

FILE = "m-Q4_K_M.gguf"
SIZE = 8_000_000
MIB = 1 << 20


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        for name in ("one", "cut"):
            running.repos[f"org/{name}"] = {FILE: random.Random(name).randbytes(SIZE), "README.md": b"x"}
        yield running


@pytest.fixture(scope="module")
def fleet(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("neighbours")
    agents = {
        name: {
            "CORTEX_AGENT__CACHE_DIR": str(folder / f"cache-{name}"),
            "CORTEX_AGENT__OFFER_MB_S": "4",
            "CORTEX_HUB__ENDPOINT": hub.url,
        }
        for name in ("a", "b")
    }
    models = "\n".join(entry(f"w/{n}", engine="llamacpp", source=f"org/{n}", quant="Q4_K_M") for n in ("one", "cut"))
    with own_redis(folder) as url, Fleet(folder, url, models, agents, tls=True) as running:
        for name in agents:
            running.start_jobs(name)
        files = [neighbours.neighbours_file(str(folder / f"state-{name}")) for name in agents]
        eventually(lambda: all(neighbours.read(f) for f in files), within_s=20, what="neighbours of both")
        yield running


def fetch(fleet: Fleet, name: str, host: str) -> dict[str, Any]:
    """Fetch a function's weights to a host; return what `cortex weights ls` says of them."""
    fleet.http.post("/admin/weights/fetch", json={"function": f"w/{name}", "host": host}).raise_for_status()
    return eventually(lambda: stored(fleet, name, host), within_s=30, what=f"w/{name} on {host}")


def stored(fleet: Fleet, name: str, host: str) -> dict[str, Any]:
    """Return the finished download of a function on a host; empty when there is none."""
    listed = fleet.http.get("/admin/weights", params={"host": host}).json()["weights"]
    return next((w for w in listed if w["kind"] == "hub" and w["functions"] == [f"w/{name}"]), {})


def test_the_second_host_takes_its_weights_from_the_first(fleet: Fleet, hub: FakeHub) -> None:
    first = fetch(fleet, "one", "a")
    second = fetch(fleet, "one", "b")

    assert (first["origins"], second["origins"]) == ({"": SIZE}, {"a": SIZE})
    assert hub.sent[FILE] == SIZE
    assert all(h.address.startswith("https://") for h in fleet.records().values())
    assert Path(second["path"]).read_bytes() == hub.repos["org/one"][FILE]
    table = fleet.cli("weights", "ls").stdout
    assert [line.split()[-2] for line in table.splitlines() if "org/one" in line] == ["hub", "a"], table


def test_the_hub_goes_on_where_a_neighbour_was_killed(fleet: Fleet, hub: FakeHub) -> None:
    fetch(fleet, "cut", "a")
    sent = hub.sent[FILE]

    def done() -> int:
        jobs = fleet.http.get("/admin/jobs", params={"host": "b"}).json()["jobs"]
        return max((j["done"] for j in jobs if "w/cut" in j["functions"]), default=0)

    fleet.http.post("/admin/weights/fetch", json={"function": "w/cut", "host": "b"}).raise_for_status()
    eventually(lambda: done() > SIZE // 8, what="a part of it")
    fleet.kill("a")
    result = eventually(lambda: stored(fleet, "cut", "b"), within_s=30, what="w/cut on b")

    assert 0 < result["origins"]["a"] < SIZE
    assert result["origins"] == {"a": result["origins"]["a"], "": SIZE - result["origins"]["a"]}
    assert hub.sent[FILE] - sent == result["origins"][""]
    assert Path(result["path"]).read_bytes() == hub.repos["org/cut"][FILE]
    assert '"event": "neighbour_ignored"' in fleet.log("jobs-b")


@pytest.mark.timeout(300)
def test_a_gibibyte_comes_from_the_neighbour_and_goes_on_after_a_cut(
    hub: FakeHub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """At the default `offer_mb_s`. Prints the rate beside that of the hub, which is on loopback, too."""
    folder, size = tmp_path_factory.mktemp("large"), 1 << 30
    hub.repos["org/large"] = {FILE: random.Random("large").randbytes(1 << 20) * 1024, "README.md": b"x"}
    agents = {
        name: {"CORTEX_AGENT__CACHE_DIR": str(folder / f"cache-{name}"), "CORTEX_HUB__ENDPOINT": hub.url}
        for name in ("a", "b")
    }
    models = entry("w/large", engine="llamacpp", source="org/large", quant="Q4_K_M")
    with own_redis(folder) as url, Fleet(folder, url, models, agents, tls=True) as fleet:
        for name in agents:
            fleet.start_jobs(name)
        files = [neighbours.neighbours_file(str(folder / f"state-{name}")) for name in agents]
        eventually(lambda: all(neighbours.read(f) for f in files), within_s=20, what="neighbours of both")

        def job(host: str) -> dict[str, Any]:
            jobs = fleet.http.get("/admin/jobs", params={"host": host}).json()["jobs"]
            return next((j for j in jobs if "w/large" in j["functions"] and j["active"]), {})

        def rate(host: str) -> float:
            """Start the fetch and return its rate in MiB/s between its first bytes and its second half."""
            fleet.http.post("/admin/weights/fetch", json={"function": "w/large", "host": host}).raise_for_status()
            first = eventually(lambda: job(host).get("done", 0), within_s=30, what="the first bytes")
            began = time.monotonic()
            half = eventually(lambda: max(0, job(host).get("done", size) - size // 2), within_s=60, what="half of it")
            return float((half + size // 2 - first) / (time.monotonic() - began) / MIB)

        of_hub = rate("a")
        eventually(lambda: stored(fleet, "large", "a"), within_s=60, what="w/large on a")
        sent, of_neighbour = hub.sent[FILE], rate("b")
        fleet.kill("jobs-b")
        partial = sum(p.stat().st_size for p in (folder / "cache-b").rglob("*.incomplete"))
        fleet.start_jobs("b")
        result = eventually(lambda: stored(fleet, "large", "b"), within_s=90, what="w/large on b")

        content = hashlib.sha256(Path(result["path"]).read_bytes()).hexdigest()
    print(
        f"1 GiB: hub on loopback {of_hub:.0f} MiB/s, neighbour {of_neighbour:.0f} MiB/s; cut at {partial / MIB:.0f} MiB"
    )
    assert content == hashlib.sha256(hub.repos.pop("org/large")[FILE]).hexdigest()
    assert result["origins"] == {"a": size}
    assert hub.sent[FILE] == sent
    assert size // 2 <= partial < size
    assert of_neighbour <= 110
