"""What earlier starts took, by revision and kind of device: the ledger, read on demand and cached for `FRESH_S`."""

import contextlib
import time
from collections.abc import Mapping

from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling.ledger import Entry

FRESH_S = 2.0


class History:
    """This router's cached copy of the ledger."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ledger: Mapping[str, Entry] = {}
        self._read_at = float("-inf")

    async def ledger(self) -> Mapping[str, Entry]:
        """Return the ledger, at most `FRESH_S` old; older while the record is unavailable."""
        if time.monotonic() - self._read_at > FRESH_S:
            with contextlib.suppress(RecordUnavailable):
                self._ledger = await self._registry.ledger()
                self._read_at = time.monotonic()
        return self._ledger

    def invalidate(self) -> None:
        """Discard the cached ledger after a change."""
        self._read_at = float("-inf")
