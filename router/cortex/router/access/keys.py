"""Operations on API keys in the record. Routers use them, and the CLI without a router."""

import secrets
import time

from msgspec.structs import asdict, replace

from cortex.platform.api_keys import PREFIX, SECRET_BYTES, ApiKey, Limits, digest, keys_of, rotate
from cortex.platform.budget import Spent
from cortex.platform.registry import Registry
from cortex.platform.usage_record import UsageRecord
from cortex.router.api_types import KeyChange, KeySecret, NewKey
from cortex.router.errors import KeyNameTaken, KeyNotFound

DIGEST_LENGTH = 12
"""Characters of a digest that are shown."""


class Keys:
    """Creates, changes and deletes keys."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def all(self) -> list[ApiKey]:
        """Return every key, including replaced and expired ones."""
        return sorted(await self._registry.api_keys.all(), key=lambda k: (k.name, k.replaced, -k.created))

    async def keys_of(self, name: str) -> list[ApiKey]:
        """Return the keys of a name or id, the current one first. Raises KeyNotFound."""
        keys = keys_of(await self._registry.api_keys.all(), name)
        if not keys:
            raise KeyNotFound(f"there is no API key {name[:100]!r}")
        return keys

    async def spent(self) -> dict[str, Spent]:
        """Return what keys have spent this month, by their ids."""
        return await UsageRecord(self._registry, "").spent(time.time())

    async def make(self, request: NewKey) -> tuple[str, ApiKey]:
        """Create a key; return it, which is not stored, and its record. Raises KeyNameTaken."""
        now = time.time()
        if keys_of(await self._registry.api_keys.all(), request.name):
            raise KeyNameTaken(f"an API key '{request.name}' exists already; rotate or revoke it")
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = ApiKey(
            digest=digest(secret),
            id=f"k{secrets.token_hex(5)}",
            name=request.name,
            scope=request.scope,
            functions=request.functions,
            limits=Limits(rpm=request.rpm, tpm=request.tpm, concurrent=request.concurrent),
            budget=request.budget,
            priority=request.priority,
            group=request.group,
            created=now,
            expires=now + request.expires_s if request.expires_s else 0.0,
        )
        await self._registry.api_keys.put(key)
        return secret, key

    async def rotate(self, name: str, overlap_s: int) -> tuple[str, ApiKey]:
        """Replace the current key, which expires after the overlap. Raises KeyNotFound."""
        current = (await self.keys_of(name))[0]
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        fresh, ending = rotate(current, digest(secret), time.time(), overlap_s)
        await self._registry.api_keys.put(fresh, ending)
        return secret, fresh

    async def change(self, name: str, change: KeyChange) -> list[ApiKey]:
        """Change the name, the group or the budget of a key, with those it replaced. Its id, and so its usage, stays.
        Raises KeyNotFound or KeyNameTaken."""
        current = await self.keys_of(name)
        id = current[0].id
        if change.name is not None:
            taken = keys_of(await self._registry.api_keys.all(), change.name)
            if any(k.id != id for k in taken):
                raise KeyNameTaken(f"an API key '{change.name}' exists already")
        fields = {f: v for f, v in asdict(change).items() if v is not None}
        if fields:
            await self._registry.api_keys.change([k.digest for k in current], fields)
        return await self.keys_of(id)

    async def revoke(self, name: str) -> list[ApiKey]:
        """Delete a key with those it replaced. Raises KeyNotFound."""
        keys = await self.keys_of(name)
        await self._registry.api_keys.delete(k.digest for k in keys)
        return keys


def without_digest(key: ApiKey) -> ApiKey:
    """Return a key's record with the beginning of its digest only."""
    return replace(key, digest=key.digest[:DIGEST_LENGTH])


def with_secret(key: ApiKey, secret: str) -> KeySecret:
    """Return a new key's record with the key itself."""
    return KeySecret(**asdict(without_digest(key)), key=secret)
