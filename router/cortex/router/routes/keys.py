"""API keys over HTTP: `/admin/keys…`. A key itself is in one answer only, that of its making."""

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


class Wanted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    """What can be done with keys, over the record. The CLI uses it, too, where no router runs yet."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def all(self) -> list[ApiKey]:
        """Return every key, those that were rotated or have expired included."""
        return sorted(await self._registry.keys(), key=lambda k: (k.name, k.replaced, -k.created))

    async def named(self, name: str) -> list[ApiKey]:
        """Return the keys of a name or id, the current one first. Raises KeyNotFound."""
        found = keys_named(await self._registry.keys(), name)
        if not found:
            raise KeyNotFound(f"there is no API key {name[:100]!r}")
        return found

    async def make(self, wanted: Wanted) -> tuple[str, ApiKey]:
        """Make a key; return it, this once, and its record. Raises KeyNameTaken."""
        now = time.time()
        if keys_named(await self._registry.keys(), wanted.name):
            raise KeyNameTaken(f"there is an API key '{wanted.name}' already; rotate or revoke it")
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = ApiKey(
            digest=digest(secret),
            id=f"k{secrets.token_hex(5)}",
            name=wanted.name,
            scope=wanted.scope,
            functions=wanted.functions,
            limits=Limits(rpm=wanted.rpm, tpm=wanted.tpm, concurrent=wanted.concurrent),
            priority=wanted.priority,
            group=wanted.group,
            created=now,
            expires=now + wanted.expires_s if wanted.expires_s else 0.0,
        )
        await self._registry.put_keys(key)
        return secret, key

    async def rotate(self, name: str, overlap_s: int) -> tuple[str, ApiKey]:
        """Make another key in the place of the current one, which ends after the overlap. Raises KeyNotFound."""
        current = (await self.named(name))[0]
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        fresh, ending = rotated(current, digest(secret), time.time(), overlap_s)
        await self._registry.put_keys(fresh, ending)
        return secret, fresh

    async def change(self, name: str, change: Change) -> list[ApiKey]:
        """Put a key, with those it was rotated from, into another group. Raises KeyNotFound."""
        current = await self.named(name)
        await self._registry.group_keys([k.digest for k in current], change.group)
        return await self.named(name)

    async def revoke(self, name: str) -> list[ApiKey]:
        """Delete a key with those it was rotated from. Raises KeyNotFound."""
        found = await self.named(name)
        await self._registry.drop_keys(k.digest for k in found)
        return found


def routes(registry: Registry, ring: KeyRing) -> list[HTTPRouteHandler]:
    """Return the routes."""
    keys = Keys(registry)

    @get("/admin/keys", opt={"needs": "status"})
    async def ls() -> dict[str, Any]:
        """List every key, without the keys themselves."""
        with_record = await _reached(keys.all())
        return {"keys": [shown(k) for k in with_record]}

    @get("/admin/keys/{name:str}", opt={"needs": "status"})
    async def show(name: str) -> dict[str, Any]:
        """Show one key and those it was rotated from."""
        return {"keys": [shown(k) for k in await _reached(keys.named(name))]}

    @post("/admin/keys", status_code=201, opt={"needs": "admin"})
    async def make(request: Http) -> dict[str, Any]:
        """Make a key."""
        secret, key = await _reached(keys.make(read(await request.body(), Wanted)))
        await _reached(ring.refresh())
        return {"key": secret, **shown(key)}

    @post("/admin/keys/{name:str}", status_code=200, opt={"needs": "admin"})
    async def change(name: str, request: Http) -> dict[str, Any]:
        """Change a key's group."""
        changed = await _reached(keys.change(name, read(await request.body(), Change)))
        await _reached(ring.refresh())
        return {"keys": [shown(k) for k in changed]}

    @post("/admin/keys/{name:str}/rotate", status_code=200, opt={"needs": "admin"})
    async def rotate(name: str, request: Http) -> dict[str, Any]:
        """Make another key in the place of one."""
        overlap = read(await request.body() or b"{}", Overlap)
        secret, key = await _reached(keys.rotate(name, overlap.overlap_s))
        await _reached(ring.refresh())
        return {"key": secret, **shown(key)}

    @post("/admin/keys/{name:str}/revoke", status_code=200, opt={"needs": "admin"})
    async def revoke(name: str) -> dict[str, Any]:
        """Delete a key; it opens nothing from now on."""
        gone = await _reached(keys.revoke(name))
        await _reached(ring.refresh())
        return {"revoked": [k.id for k in gone]}

    return [ls, show, make, change, rotate, revoke]


def shown(key: ApiKey) -> dict[str, Any]:
    """Return what may be seen of a key: nothing that opens anything."""
    described: dict[str, Any] = to_builtins(replace(key, digest=key.digest[:12]))
    return described


async def _reached(work: Any) -> Any:
    try:
        return await work
    except RecordUnavailable as error:
        raise RecordIsAway(str(error), retry_after=5) from None
