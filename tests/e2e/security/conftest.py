"""One running cortex with a key of every kind; its tests are the callers."""

from collections.abc import Iterator

import pytest

from tests.e2e.security.keyed import Keyed, started


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A cortex of two router workers on which keys were made."""
    with started(tmp_path_factory.mktemp("keyed")) as running:
        yield running
