"""API keys over HTTP: `/admin/keys…`. Only the response to creating or rotating a key contains it."""

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from cortex.platform.api_keys import ApiKey
from cortex.platform.budget import Spent
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router import api_types as api
from cortex.router.access.keyring import KeyRing
from cortex.router.access.keys import Keys, with_secret, without_digest
from cortex.router.dialects.core.wire import read
from cortex.router.errors import RecordIsAway

Http = Request[Any, Any, Any]
T = TypeVar("T")


def routes(registry: Registry, ring: KeyRing) -> list[HTTPRouteHandler]:
    """Return the routes."""
    keys = Keys(registry)

    async def answer(entries: Sequence[ApiKey]) -> api.KeysAnswer:
        spent = await _from_record(keys.spent()) if any(k.budget for k in entries) else {}
        of_budgets = {k.id: spent.get(k.id, Spent()) for k in entries if k.budget}
        return api.KeysAnswer(keys=tuple(map(without_digest, entries)), spent=of_budgets)

    @get("/admin/keys", opt={"needs": "status"})
    async def ls() -> api.KeysAnswer:
        """List every key, without secrets."""
        return await answer(await _from_record(keys.all()))

    @get("/admin/keys/{name:str}", opt={"needs": "status"})
    async def show(name: FromPath[str]) -> api.KeysAnswer:
        """Return one key and those it replaced."""
        return await answer(await _from_record(keys.keys_of(name)))

    @post("/admin/keys", status_code=201, opt={"needs": "admin", "body": api.NewKey})
    async def make(request: Http) -> api.KeySecret:
        """Create a key."""
        secret, key = await _from_record(keys.make(read(await request.body(), api.NewKey)))
        await _from_record(ring.refresh())
        return with_secret(key, secret)

    @post("/admin/keys/{name:str}", status_code=200, opt={"needs": "admin", "body": api.KeyChange})
    async def change(name: FromPath[str], request: Http) -> api.KeysAnswer:
        """Change a key's name, group or budget. Its id and its usage stay."""
        changed = await _from_record(keys.change(name, read(await request.body(), api.KeyChange)))
        await _from_record(ring.refresh())
        return await answer(changed)

    @post("/admin/keys/{name:str}/rotate", status_code=200, opt={"needs": "admin", "body": api.KeyOverlap})
    async def rotate(name: FromPath[str], request: Http) -> api.KeySecret:
        """Replace a key."""
        overlap = read(await request.body() or b"{}", api.KeyOverlap)
        secret, key = await _from_record(keys.rotate(name, overlap.overlap_s))
        await _from_record(ring.refresh())
        return with_secret(key, secret)

    @post("/admin/keys/{name:str}/revoke", status_code=200, opt={"needs": "admin"})
    async def revoke(name: FromPath[str]) -> api.RevokeAnswer:
        """Delete a key, with immediate effect."""
        revoked = await _from_record(keys.revoke(name))
        await _from_record(ring.refresh())
        return api.RevokeAnswer(revoked=tuple(k.id for k in revoked))

    return [ls, show, make, change, rotate, revoke]


async def _from_record(work: Awaitable[T]) -> T:
    try:
        return await work
    except RecordUnavailable as error:
        raise RecordIsAway(str(error), retry_after=5) from None
