"""A fleet with everything closed."""

from collections.abc import Iterator

import pytest

from tests.e2e.security.hardened import Hardened, hardened_fleet
from tests.support import last_use


@pytest.fixture(scope="session")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardened]:
    """A fleet of one host with everything closed that can be closed, and no API key."""
    with hardened_fleet(tmp_path_factory.mktemp("hardened")) as running:
        last_use.end_after("security", running.end)
        yield running
