"""The API keys in this worker's memory: one look into a table of digests per request, none into Redis.

The table follows the record by the bell, and by a full reading now and then. When Redis goes away the last table
stands. Once a key has been seen, a table that comes back empty opens nothing: a record that was lost must not
let everybody in.
"""

import asyncio
import contextlib
import time
from pathlib import Path

import structlog

from cortex.platform.api_keys import LOCAL, Principal, digest, principal
from cortex.platform.registry import RecordUnavailable, Registry

log = structlog.get_logger()

FULL_READ_S = 5.0
RETRY_S = 0.5


class KeyRing:
    """Who comes with which key. `follow()` keeps it fresh for as long as the router runs."""

    def __init__(self, registry: Registry, local: str = "") -> None:
        """`local` is the key that `cortex up` made for its own user, or nothing."""
        self._registry = registry
        self._table: dict[str, Principal] = {}
        self._local = {digest(local): LOCAL} if local else {}
        self.known = False
        """Whether the record has ever been read: until then nobody can say that there is no key."""
        self.any_made = False
        """Whether there is, or has been, a key that somebody made."""

    @property
    def has_local(self) -> bool:
        """Whether this machine's own user has a key, so that changes are not for everybody."""
        return bool(self._local)

    def find(self, secret: str) -> Principal | None:
        """Return who comes with a key, or None when nobody does (any more)."""
        return self.of(digest(secret))

    def of(self, known_as: str) -> Principal | None:
        """Return who comes with the key of a digest, or None."""
        found = self._table.get(known_as) or self._local.get(known_as)
        return None if found is None or (found.expires and time.time() >= found.expires) else found

    async def refresh(self) -> None:
        """Read all keys now. Raises RecordUnavailable."""
        keys = await self._registry.keys()
        self._table = {k.digest: principal(k) for k in keys}
        self.known = True
        self.any_made = self.any_made or bool(keys)

    async def follow(self) -> None:
        """Follow the record for ever."""
        while True:
            with contextlib.suppress(RecordUnavailable):
                await self.refresh()
                await self._listen()
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        read = time.monotonic()
        async for changed in self._registry.bell():
            if changed.startswith("key:") or time.monotonic() - read > FULL_READ_S:
                await self.refresh()
                read = time.monotonic()


def local_key(path: str) -> str:
    """Return the key of this machine's user, or nothing when there is no such file."""
    if not path:
        return ""
    try:
        return Path(path).expanduser().read_text().strip()
    except OSError as error:
        log.warning("local_key_not_read", path=path, why=str(error))
        return ""
