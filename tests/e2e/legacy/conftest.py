"""Two agents with a Redis: one on a CPU, and one with declared GPUs. Workers are fake engines, and llama.cpp."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.legacy.agents import GPUS_MB, HELD, Agent, later
from tests.support.catalogues import fake, gguf
from tests.support.stack import own_redis


@pytest.fixture(scope="package")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="package")
def agent(tmp_path_factory: pytest.TempPathFactory, redis_url: str, weights: Path) -> Iterator[Agent]:
    """An agent on a CPU that waits 20 s for requests in flight."""
    folder = tmp_path_factory.mktemp("agents") / "cpu"
    cpu = [{"name": "some CPU", "vram_mb": 64_000, "kind": "cpu"}]
    running = Agent(folder, redis_url, "cpu", drain_grace_s=20, devices=cpu)
    running.apply_catalogue(
        "\n".join(
            [
                gguf("tiny/alpha", str(weights / "alpha.gguf")),
                fake("fake/slow", "--load-s", "0.6"),
                fake("fake/crowd", "--load-s", "0.4"),
                fake("fake/left", "--load-s", "0.6"),
                fake("fake/dies", "--crash-on-load", "3", "--crash-message", "no such tokenizer"),
                fake("fake/waited-for", "--tps", HELD, "--tokens", "3"),
                fake("fake/streams", "--tps", HELD, "--tokens", "3"),
                fake("fake/moody"),
                fake("fake/tardy", "--hang", "serving", request_timeout_s=0.3),
                fake("fake/idle", "--tps", HELD, "--tokens", "3", idle_after_s=0.6),
                fake("fake/again"),
                fake("fake/ends", "--crash-after", "1"),
            ]
        )
    )
    yield running
    running.end()


@pytest.fixture(scope="package")
def gpus(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Agent]:
    """An agent with four declared GPUs and a short grace for requests in flight. A start hangs on one of the GPUs."""
    folder = tmp_path_factory.mktemp("agents") / "gpus"
    devices = [{"name": f"GPU {size}", "vram_mb": size} for size in GPUS_MB]
    quick = {"drain_grace_s": 0.3, "stop_grace_s": 0.3, "start_ceiling_s": 6}
    running = Agent(folder, redis_url, "gpus", devices=devices, reserve_mb=0, **quick)
    running.apply_catalogue(
        "\n".join(
            [
                fake("fake/pair", vram_mb=20_000, min_devices=2, min_device_vram_mb=24_000),
                fake("fake/large", vram_mb=60_000),
                fake("fake/first", vram_mb=40_000),
                fake("fake/second", vram_mb=40_000),
                fake("fake/elsewhere", pinned_on=["another"]),
                fake("fake/held", "--tps", HELD, "--tokens", "3"),
                fake("fake/routed", vram_mb=1),
                fake("fake/stubborn", "--ignore-term", vram_mb=1),
                fake("fake/stuck", "--hang", "loading", vram_mb=GPUS_MB[-1]),
            ]
        )
    )
    running.stuck = later(running.load, "fake/stuck")
    yield running
    running.end()
