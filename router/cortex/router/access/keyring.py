"""The API keys in this worker's memory: a request costs one lookup in a table of digests and no Redis call.

Bell messages and periodic full reads refresh the table. While Redis is unavailable, the last table stays in use.
Once a key has existed, an empty table grants no anonymous access: losing the record must not open the router.
"""

import asyncio
import contextlib
import time
from collections.abc import Collection
from pathlib import Path

import structlog

from cortex.platform import text_files
from cortex.platform.api_keys import LOCAL, Principal, digest, principal
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry

log = structlog.get_logger()

FULL_READ_S = 5.0
RETRY_S = 0.5


class KeyRing:
    """Maps keys to principals. `follow()` refreshes the table while the router runs."""

    def __init__(self, registry: Registry, local: str = "") -> None:
        """`local` is the key that `cortex up` created for its user, or empty."""
        self._registry = registry
        self._table: dict[str, Principal] = {}
        self._local = {digest(local): LOCAL} if local else {}
        self._digests: dict[str, str] = {}
        """Of the keys that were used since the last refresh: a digest costs more than the rest of the lookup."""
        self.loaded = False
        """Whether the record has been read once; before that, "no key exists" cannot be concluded."""
        self.has_keys = False
        """Whether the record has, or had, a key."""

    @property
    def has_local(self) -> bool:
        """Whether this machine's user has a local key; anonymous callers then may not change anything."""
        return bool(self._local)

    def find(self, secret: str) -> Principal | None:
        """Return the principal of a key; None if it is unknown or has expired."""
        return self.by_digest(self._digests.get(secret) or self._digest(secret))

    def _digest(self, secret: str) -> str:
        """Return a key's digest, and remember it until the next refresh if the key is known."""
        key = digest(secret)
        if key in self._table or key in self._local:
            self._digests[secret] = key
        return key

    def by_digest(self, key: str) -> Principal | None:
        """Return the principal of a key's digest; None if it is unknown or has expired."""
        holder = self._table.get(key) or self._local.get(key)
        return None if holder is None or (holder.expires and time.time() >= holder.expires) else holder

    def by_id(self, id: str) -> Principal | None:
        """Return the principal of a key, or of this machine's user, by id; None if it is unknown or has expired."""
        now = time.time()
        for holder in (*self._table.values(), *self._local.values()):
            if holder.id == id and not (holder.expires and now >= holder.expires):
                return holder
        return None

    def holders(self) -> Collection[Principal]:
        """Return the principals of all keys."""
        return self._table.values()

    def names(self) -> dict[str, str]:
        """Return the names of keys by id."""
        return {p.id: p.name for p in self._table.values()}

    async def refresh(self) -> None:
        """Read all keys now. Raises RecordUnavailable."""
        keys = await self._registry.api_keys.all()
        self._table, self._digests = {k.digest: principal(k) for k in keys}, {}
        self.loaded = True
        self.has_keys = self.has_keys or bool(keys)

    async def follow(self) -> None:
        """Follow the record until cancelled."""
        while True:
            with contextlib.suppress(RecordUnavailable):
                await self._listen()
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        read_at = time.monotonic()
        async for message in self._registry.bell():
            if message == SUBSCRIBED or message.startswith("key:") or time.monotonic() - read_at > FULL_READ_S:
                await self.refresh()
                read_at = time.monotonic()


def local_key(path: str) -> str:
    """Return the key of this machine's user; empty if the file cannot be read."""
    if not path:
        return ""
    try:
        return text_files.read(Path(path).expanduser()).strip()
    except OSError as error:
        log.warning("local_key_not_read", path=path, why=str(error))
        return ""
