"""The deployment's Redis users, on a real server: what they wrote outlives it, and the default user may not enter."""

from pathlib import Path

import pytest
import redis

from tests.support.secured_redis import local_redis


def test_a_transaction_outlives_the_server(tmp_path: Path) -> None:
    with local_redis(tmp_path) as first, redis.Redis.from_url(first.admin_url) as client:
        client.pipeline(transaction=True).set("cortex:key:one", "1").sadd("cortex:keys", "one").execute()

    with local_redis(tmp_path) as second, redis.Redis.from_url(second.admin_url, decode_responses=True) as client:
        loaded = client.get("cortex:key:one"), client.smembers("cortex:keys")

    assert loaded == ("1", {"one"})


@pytest.mark.parametrize("password", ["", "any"])
def test_the_default_user_may_not_enter(tmp_path: Path, password: str) -> None:
    with local_redis(tmp_path) as running, running.anonymous() as client:
        with pytest.raises(redis.AuthenticationError, match="required"):
            client.get("cortex:key:one")
        with pytest.raises(redis.AuthenticationError, match=r"invalid|WRONGPASS"):
            client.execute_command("AUTH", "default", password)
