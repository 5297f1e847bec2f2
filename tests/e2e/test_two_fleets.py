"""Two fleets at one Redis: the second is rejected with the reason, or uses its own prefix."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from cortex.platform.keys import fleet_mark
from tests.support.catalogues import entry, fake
from tests.support.stack import CORTEX, Stack, eventually, free_port, own_redis

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("r")) as url:
        yield url


@contextlib.contextmanager
def part_of_cortex(folder: Path, redis_url: str, *command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a part of cortex whose token is its own; yield it and a router's address."""
    (folder / "models.toml").write_text(fake("fake/one"))
    listen = f"127.0.0.1:{free_port()}"
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
        "CORTEX_REDIS_URL": redis_url,
        "CORTEX_MODELS_CONFIG": str(folder / "models.toml"),
        "CORTEX_GATEWAY__LISTEN": listen,
        "CORTEX_GATEWAY__METRICS_LISTEN": "",
        "CORTEX_AGENT__LISTEN": f"127.0.0.1:{free_port()}",
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    process = subprocess.Popen([*CORTEX, *command], env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield process, f"http://{listen}"
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("command", ["agent", "router", "jobs"])
def test_a_process_of_another_fleet_does_not_start(tmp_path: Path, redis_url: str, command: str) -> None:
    with redis.Redis.from_url(redis_url) as record:
        record.delete("cortex:fleet")
        record.sadd("cortex:fleet", fleet_mark("another token"))

    with part_of_cortex(tmp_path, redis_url, command) as (process, _):
        _, errors = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "refusing to start: Redis holds the record of a fleet with another token" in errors
    assert "`[redis] prefix`" in errors


def test_a_router_reports_that_its_redis_belongs_to_another_fleet(tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'r.sock'}"
    with own_redis(tmp_path), redis.Redis.from_url(url) as client:
        client.sadd("cortex:fleet", fleet_mark("another token"))
    with (
        part_of_cortex(tmp_path, url, "router") as (_, address),
        httpx.Client(base_url=address, trust_env=False) as http,
    ):

        def record() -> str:
            with contextlib.suppress(httpx.HTTPError):
                return str(http.get("/health").json()["record"])
            return ""

        eventually(lambda: record() == "away", within_s=30, what="the router to be up without Redis")
        with own_redis(tmp_path), redis.Redis.from_url(url) as client:
            text = eventually(lambda: view if "another token" in (view := record()) else "", what="/health")
            names = client.execute_command("KEYS", "*")

    assert "`[redis] prefix`" in text
    assert names == [b"cortex:fleet"]


@pytest.mark.long
def test_two_fleets_with_different_prefixes_share_only_redis(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with own_redis(tmp_path_factory.mktemp("r")) as url, contextlib.ExitStack() as ends:
        stacks = []
        for prefix in ("cortex", "staging_2"):
            env = {"CORTEX_REDIS_URL": url, "CORTEX_REDIS__PREFIX": prefix}
            demo = entry("cortex/harbour", engine="llamacpp", source="demo:harbour")
            stack = Stack(tmp_path_factory.mktemp(prefix), f"{fake('fake/one', '--answer', prefix)}\n{demo}", env=env)
            ends.callback(stack.end)
            stacks.append(stack)
        answers = [s.chat("fake/one").json()["choices"][0]["message"]["content"] for s in stacks]
        fetches = [s.chat("cortex/harbour", max_tokens=1).status_code for s in stacks]
        stacks[0].cli("fn", "cool", "fake/one")
        warm = [s.state("fake/one") for s in stacks]
        with redis.Redis.from_url(url, decode_responses=True) as client:
            names = set(client.keys())
            queues = client.smembers("rq:queues")

    assert answers == ["cortex", "staging_2"]
    assert fetches == [200, 200]
    assert warm == ["cold", "ready"]
    assert queues == {"rq:queue:cortex-here", "rq:queue:staging_2-here"}
    assert {n.partition(":")[0] for n in names} == {"cortex", "staging_2", "rq"}
