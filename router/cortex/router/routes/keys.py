"""API keys over HTTP: `/admin/keys…`. Only the response to creating or rotating a key contains it."""

import secrets
import time
from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from cortex.platform.api_keys import (
    PREFIX,
    SECRET_BYTES,
    ApiKey,
    Count,
    Glob,
    Group,
    Limits,
    Name,
    Priority,
    Scope,
    digest,
    keys_named,
    rotated,
)
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.access.keyring import KeyRing
from cortex.router.dialects.core.wire import read
from cortex.router.errors import KeyNameTaken, KeyNotFound, RecordIsAway

Http = Request[Any, Any, Any]


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/keys`."""

    name: Name
    scope: Scope = Scope.INFERENCE
    functions: tuple[Glob, ...] = ()
    rpm: Count = 0
    tpm: Count = 0
    concurrent: Count = 0
    priority: Priority = Priority.NORMAL
    group: Group = ""
    expires_s: Count = 0


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/keys/{name}`."""

    group: Group


class Overlap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /admin/keys/{name}/rotate`."""

    overlap_s: Count = 0


class Keys:
    """Operations on API keys in the record. The CLI also uses it without a router."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def all(self) -> list[ApiKey]:
        """Return every key, including replaced and expired ones."""
        return sorted(await self._registry.keys(), key=lambda k: (k.name, k.replaced, -k.created))

    async def named(self, name: str) -> list[ApiKey]:
        """Return the keys of a name or id, the current one first. Raises KeyNotFound."""
        keys = keys_named(await self._registry.keys(), name)
        if not keys:
            raise KeyNotFound(f"there is no API key {name[:100]!r}")
        return keys

    async def make(self, request: NewKey) -> tuple[str, ApiKey]:
        """Create a key; return it, which is not stored, and its record. Raises KeyNameTaken."""
        now = time.time()
        if keys_named(await self._registry.keys(), request.name):
            raise KeyNameTaken(f"an API key '{request.name}' exists already; rotate or revoke it")
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = ApiKey(
            digest=digest(secret),
            id=f"k{secrets.token_hex(5)}",
            name=request.name,
            scope=request.scope,
            functions=request.functions,
            limits=Limits(rpm=request.rpm, tpm=request.tpm, concurrent=request.concurrent),
            priority=request.priority,
            group=request.group,
            created=now,
            expires=now + request.expires_s if request.expires_s else 0.0,
        )
        await self._registry.put_keys(key)
        return secret, key

    async def rotate(self, name: str, overlap_s: int) -> tuple[str, ApiKey]:
        """Replace the current key, which expires after the overlap. Raises KeyNotFound."""
        current = (await self.named(name))[0]
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        fresh, ending = rotated(current, digest(secret), time.time(), overlap_s)
        await self._registry.put_keys(fresh, ending)
        return secret, fresh

    async def change(self, name: str, change: Change) -> list[ApiKey]:
        """Move a key, with those it replaced, to another group. Raises KeyNotFound."""
        current = await self.named(name)
        await self._registry.group_keys([k.digest for k in current], change.group)
        return await self.named(name)

    async def revoke(self, name: str) -> list[ApiKey]:
        """Delete a key with those it replaced. Raises KeyNotFound."""
        keys = await self.named(name)
        await self._registry.drop_keys(k.digest for k in keys)
        return keys


def routes(registry: Registry, ring: KeyRing) -> list[HTTPRouteHandler]:
    """Return the routes."""
    keys = Keys(registry)

    @get("/admin/keys", opt={"needs": "status"})
    async def ls() -> dict[str, Any]:
        """List every key, without secrets."""
        return {"keys": [public_fields(k) for k in await _from_record(keys.all())]}

    @get("/admin/keys/{name:str}", opt={"needs": "status"})
    async def show(name: str) -> dict[str, Any]:
        """Return one key and those it replaced."""
        return {"keys": [public_fields(k) for k in await _from_record(keys.named(name))]}

    @post("/admin/keys", status_code=201, opt={"needs": "admin"})
    async def make(request: Http) -> dict[str, Any]:
        """Create a key."""
        secret, key = await _from_record(keys.make(read(await request.body(), NewKey)))
        await _from_record(ring.refresh())
        return {"key": secret, **public_fields(key)}

    @post("/admin/keys/{name:str}", status_code=200, opt={"needs": "admin"})
    async def change(name: str, request: Http) -> dict[str, Any]:
        """Change a key's group."""
        changed = await _from_record(keys.change(name, read(await request.body(), Change)))
        await _from_record(ring.refresh())
        return {"keys": [public_fields(k) for k in changed]}

    @post("/admin/keys/{name:str}/rotate", status_code=200, opt={"needs": "admin"})
    async def rotate(name: str, request: Http) -> dict[str, Any]:
        """Replace a key."""
        overlap = read(await request.body() or b"{}", Overlap)
        secret, key = await _from_record(keys.rotate(name, overlap.overlap_s))
        await _from_record(ring.refresh())
        return {"key": secret, **public_fields(key)}

    @post("/admin/keys/{name:str}/revoke", status_code=200, opt={"needs": "admin"})
    async def revoke(name: str) -> dict[str, Any]:
        """Delete a key, with immediate effect."""
        revoked = await _from_record(keys.revoke(name))
        await _from_record(ring.refresh())
        return {"revoked": [k.id for k in revoked]}

    return [ls, show, make, change, rotate, revoke]


def public_fields(key: ApiKey) -> dict[str, Any]:
    """Return a key's record without its full digest."""
    described: dict[str, Any] = to_builtins(replace(key, digest=key.digest[:12]))
    return described


async def _from_record(work: Any) -> Any:
    try:
        return await work
    except RecordUnavailable as error:
        raise RecordIsAway(str(error), retry_after=5) from None
