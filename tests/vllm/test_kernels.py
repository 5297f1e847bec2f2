"""Compiled code from a neighbour: the second of two agents compiles nothing when it starts a function first."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.platform.weights import neighbours
from tests.support.catalogues import entry
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis
from tests.vllm.conftest import HOME

START_S = 580.0


@pytest.fixture(scope="module")
def fleet(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two hosts with the same engine and kind of CPU, and a cache each."""
    folder = tmp_path_factory.mktemp("kernels")
    agents = {
        name: {
            "CORTEX_AGENT__ENGINES": json.dumps([{"name": "vllm", "path": HOME}]),
            "CORTEX_AGENT__DEVICES": json.dumps([{"name": "a small cpu", "vram_mb": 6000, "kind": "cpu"}]),
            "CORTEX_AGENT__CACHE_DIR": str(folder / f"cache-{name}"),
            "CORTEX_AGENT__KERNELS_FROM": json.dumps(["*"]),
            "CORTEX_AGENT__LAUNCHER": "false",
        }
        for name in ("a", "b")
    }
    # Ahead-of-time code of this version's CPU build does not load again; what Inductor compiles does.
    compiling = {"args": ["--no-enforce-eager"], "env": {"VLLM_USE_AOT_COMPILE": "0"}}
    catalogue = entry(
        "tiny/one",
        engine="vllm",
        source=str(models / "one"),
        vram_mb=3000,
        context=256,
        tool_parser="hermes",
        idle_after_s=600,
        **compiling,
    )
    with own_redis(folder) as url, Fleet(folder, url, catalogue, agents) as running:
        files = [neighbours.neighbours_file(str(folder / f"state-{name}")) for name in agents]
        eventually(lambda: all(neighbours.read(f) for f in files), within_s=30, what="neighbours of both")
        running.http.timeout = START_S
        yield running


def start(fleet: Fleet, on: str, *, not_on: str) -> tuple[str, float, str]:
    """Start the function on a host; return the reason of `ready`, how long the engine set up, and an answer."""
    fleet.http.post(f"/admin/hosts/{on}/uncordon").raise_for_status()
    fleet.http.post(f"/admin/hosts/{not_on}/cordon").raise_for_status()
    fleet.http.post("/admin/functions/tiny/one/cool", params={"now": 1}).raise_for_status()
    eventually(lambda: not any(h.instances for h in fleet.records().values()), within_s=60, what="cold")
    answer = fleet.chat("tiny/one", max_tokens=12, temperature=0)
    assert answer.status_code == 200, answer.text
    query = {"function": "tiny/one", "what": "ready", "limit": "1"}
    (decision,) = fleet.http.get("/admin/decisions", params=query).json()["decisions"]
    (log,) = (fleet.folder / f"logs-{on}").rglob("*.log")
    (took,) = re.findall(r"init engine .* took (\d+\.\d+) s", log.read_text())
    return decision["why"], float(took), answer.json()["choices"][0]["message"]["content"]


def code(fleet: Fleet, host: str) -> dict[str, int]:
    """Return the compiled libraries in a host's cache, and when each was compiled."""
    return {p.name: int(p.stat().st_mtime) for p in (fleet.folder / f"cache-{host}").rglob("*.so")}


def test_the_second_host_compiles_nothing_at_its_first_start(fleet: Fleet) -> None:
    why_a, took_a, text_a = start(fleet, "a", not_on="b")
    compiled_by_a = eventually(lambda: code(fleet, "a"), what="compiled code")

    why_b, took_b, text_b = start(fleet, "b", not_on="a")

    print(
        f"\nengine set up: {took_a:.1f} s compiling, {took_b:.1f} s with the neighbour's code: {took_a / took_b:.1f} x"
    )
    assert "kernels from" not in why_a
    assert why_b.endswith("kernels from a"), why_b
    assert code(fleet, "b") == compiled_by_a
    assert text_a == text_b
    (stored,) = (
        w for w in fleet.http.get("/admin/weights", params={"host": "b"}).json()["weights"] if w["kind"] == "compiled"
    )
    assert set(stored["origins"]) == {"a"}
