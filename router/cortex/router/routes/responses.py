"""Stored responses and conversations of the caller's key: read, list, cancel, delete, create.

`routes/inference.py` creates responses. The ids of another key, expired ids and unknown ids get the same answer.
"""

import time
from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from msgspec import Struct

from cortex.platform.response_cipher import ResponseCipher
from cortex.router.access.auth import caller
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.lenient import repair_surrogates
from cortex.router.dialects.responses import stored
from cortex.router.dialects.responses.stored import Items
from cortex.router.request.incoming import unique_id
from cortex.router.request.stored_responses import NO_KEY, OFF, StoredResponses

Http = Request[Any, Any, Any]

PAGE = 20
MOST_NEW_ITEMS = 20


class _New(Struct):
    items: Items | None = None
    metadata: dict[str, str] | None = None


class _Head(Struct, kw_only=True):
    """A conversation, as it is stored and shown."""

    id: str
    object: str = "conversation"
    created_at: int
    metadata: dict[str, str]


def routes(responses: StoredResponses) -> list[HTTPRouteHandler]:
    """Return the routes."""

    def cipher(request: Http) -> ResponseCipher | None:
        return responses.cipher(request.scope["headers"], caller(request))

    @get("/v1/responses/{id:str}", opt={"needs": "inference"})
    async def read(request: Http, id: FromPath[str], stream: FromQuery[bool] = False) -> Response[bytes]:
        """Return a stored response, with its status if it runs in the background."""
        if stream:
            raise BadRequest("a stored response is not streamed again: ask for it without", "stream", Kind.UNSUPPORTED)
        return _json(bytes((await responses.find(cipher(request), id)).response))

    @get("/v1/responses/{id:str}/input_items", opt={"needs": "inference"})
    async def input_items(
        request: Http,
        id: FromPath[str],
        limit: FromQuery[int] = PAGE,
        order: FromQuery[str] = "desc",
        after: FromQuery[str] = "",
    ) -> Response[bytes]:
        """List the items that the model of a stored response has read."""
        return _json(stored.page(await responses.items(cipher(request), id), limit, order, after))

    @post("/v1/responses/{id:str}/cancel", opt={"needs": "inference"}, status_code=200)
    async def cancel(request: Http, id: FromPath[str]) -> Response[bytes]:
        """Cancel a response in the background."""
        return _json(bytes((await responses.cancel(cipher(request), id)).response))

    @delete("/v1/responses/{id:str}", opt={"needs": "inference"}, status_code=200)
    async def remove(request: Http, id: FromPath[str]) -> Response[bytes]:
        """Delete a stored response. One in the background is cancelled."""
        await responses.delete(cipher(request), id, "resp")
        return _json({"id": id, "object": "response", "deleted": True})

    @post("/v1/responses/compact", opt={"needs": "inference"}, status_code=200)
    async def compact() -> None:
        """Answer 404: it would be a method of a stored response of that id."""
        raise NotFoundException

    @post("/v1/conversations", opt={"needs": "inference"}, status_code=200)
    async def create(request: Http) -> Response[bytes]:
        """Begin a conversation, with items or without."""
        body = repair_surrogates(await request.body()) or b"{}"
        new = wire.read(body, _New)
        if len(new.items or ()) > MOST_NEW_ITEMS:
            raise BadRequest(f"expected at most {MOST_NEW_ITEMS} items", "items")
        key = cipher(request)
        if key is None:
            raise BadRequest("conversations are not supported" + (NO_KEY if responses.is_on else OFF))
        if len(body) > responses.most_of_one:
            raise BadRequest(
                f"the conversation has {len(body)} bytes; expected at most {responses.most_of_one}", "items"
            )
        unique = unique_id()
        head = _Head(id=f"conv_{unique}", created_at=int(time.time()), metadata=new.metadata or {})
        await responses.write(key, head.id, msgspec.json.encode(head), "create")
        if new.items:
            items = stored.items_of(msgspec.json.encode({"input": new.items}), unique)
            await responses.write(key, head.id, msgspec.json.encode(items), "append")
        return _json(head)

    @get("/v1/conversations/{id:str}", opt={"needs": "inference"})
    async def conversation(request: Http, id: FromPath[str]) -> Response[bytes]:
        """Return a conversation."""
        return _json((await responses.conversation(cipher(request), id))[0])

    @get("/v1/conversations/{id:str}/items", opt={"needs": "inference"})
    async def items(
        request: Http,
        id: FromPath[str],
        limit: FromQuery[int] = PAGE,
        order: FromQuery[str] = "desc",
        after: FromQuery[str] = "",
    ) -> Response[bytes]:
        """List the items of a conversation."""
        return _json(stored.page(await responses.turns(cipher(request), id), limit, order, after))

    @delete("/v1/conversations/{id:str}", opt={"needs": "inference"}, status_code=200)
    async def end(request: Http, id: FromPath[str]) -> Response[bytes]:
        """Delete a conversation."""
        await responses.delete(cipher(request), id, "conv")
        return _json({"id": id, "object": "conversation.deleted", "deleted": True})

    return [read, input_items, cancel, remove, compact, create, conversation, items, end]


def _json(value: object) -> Response[bytes]:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(body, media_type="application/json")
