"""A running cortex with a key of every kind."""

from collections.abc import Iterator

import pytest

from tests.e2e.security.hardened import Hardened, hardened_fleet
from tests.e2e.security.keyed import Keyed, started
from tests.support import last_use


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A cortex of two router workers on which keys were made."""
    with started(tmp_path_factory.mktemp("keyed")) as running:
        last_use.end_after("security", running.stack.end)
        yield running


@pytest.fixture(scope="session")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardened]:
    """A fleet of one host with everything closed that can be closed, and no API key."""
    with hardened_fleet(tmp_path_factory.mktemp("hardened")) as running:
        last_use.end_after("security", running.end)
        yield running
