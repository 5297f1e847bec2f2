"""Redis is demoted to a replica and keeps running: all clients leave it, and nothing has to be restarted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.catalogues import entry, fake
from tests.support.stack import Stack, eventually, own_redis


@pytest.fixture
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with own_redis(tmp_path_factory.mktemp("one")) as one, own_redis(tmp_path_factory.mktemp("two")) as two:
        yield one, two


@pytest.mark.long
def test_after_a_demotion_cold_starts_work_and_warm_functions_are_served(
    tmp_path: Path, masters: tuple[str, str]
) -> None:
    one, two = masters
    address = tmp_path / "address.sock"  # leads to the master, as a virtual IP does
    address.symlink_to(one.removeprefix("unix://"))
    demo = entry("cortex/harbour", engine="llamacpp", source="demo:harbour")
    catalogue = "\n".join([fake("fake/warm"), fake("fake/cold"), demo])
    stack = Stack(tmp_path, catalogue, env={"CORTEX_REDIS_URL": f"unix://{address}"})
    try:
        stack.chat("fake/warm")
        address.unlink()
        address.symlink_to(two.removeprefix("unix://"))
        with redis.Redis.from_url(one) as old:
            old.replicaof("127.0.0.1", 1)

        warm = [stack.chat("fake/warm").status_code for _ in range(20)]
        eventually(lambda: stack.http.get("/health").json()["status"] == "ok", what="the record at the new master")
        cold = stack.chat("fake/cold").status_code
        fetch = stack.chat("cortex/harbour", max_tokens=1).status_code
        restart = "restarting it" in stack.output()
        with redis.Redis.from_url(two) as new:
            hosts = new.smembers("cortex:hosts")
    finally:
        stack.end()

    assert warm == [200] * 20
    assert (cold, fetch, restart) == (200, 200, False)
    assert hosts == {b"here"}
