"""Weights from the neighbour: two agents on one machine, each with a cache of its own, and a hub."""

import random
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
    with own_redis(folder) as url, Fleet(folder, url, models, agents) as running:
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
