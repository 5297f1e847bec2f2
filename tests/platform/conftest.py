"""Fixtures: a Redis for the tests of a module."""

from collections.abc import Iterator

import pytest
import redis

from tests.support.stack import own_redis


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the module's Redis."""
    with own_redis(tmp_path_factory.mktemp("r")) as address:
        yield address


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    """The module's Redis, empty and with its statistics at zero."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client
