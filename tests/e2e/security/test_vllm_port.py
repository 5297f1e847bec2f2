"""What a stranger gets at a vLLM worker's own port. The engine here opens its paths as vLLM does; `tests/vllm` has the
real one."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import small_vllm
from tests.support.catalogues import entry
from tests.support.fleet import Fleet
from tests.support.stack import own_redis

pytestmark = pytest.mark.xdist_group("vllm-port")
PATHS = ("/health", "/metrics", "/invocations", "/tokenize", "/pooling", "/score", "/collective_rpc", "/v1/models")


def engine(folder: Path) -> Path:
    """Write a virtual environment in which vLLM seems to be installed."""
    (folder / "bin").mkdir(parents=True)
    has = json.dumps({"versions": {"vllm": "0.32.0"}, "modules": ["vllm"]})
    for name, line in {"python": f"echo '{has}'", "vllm": f'exec {sys.executable} {small_vllm.__file__} "$@"'}.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("vllm")
    weights = folder / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    catalogue = entry("small", engine="vllm", source=str(weights), vram_mb=500)
    agent = {
        "CORTEX_AGENT__ENGINES": json.dumps([{"name": "vllm", "path": str(engine(folder / "engine"))}]),
        "CORTEX_AGENT__DEVICES": json.dumps([{"name": "cpu", "vram_mb": 4000, "kind": "cpu"}]),
        "CORTEX_AGENT__LAUNCHER": "false",
    }
    with own_redis(folder) as url, Fleet(folder, url, catalogue, {"a": agent}) as running:
        yield running


def test_every_path_of_a_worker_needs_its_key(fleet: Fleet) -> None:
    answer = fleet.chat("small")
    (instance,) = fleet.records()["a"].instances
    with httpx.Client(base_url=instance.url, trust_env=False) as stranger:
        statuses = {(m, path): stranger.request(m, path).status_code for path in PATHS for m in ("GET", "POST")}

    assert answer.status_code == 200, answer.text
    assert instance.server == "vllm"
    assert set(statuses.values()) == {401}
