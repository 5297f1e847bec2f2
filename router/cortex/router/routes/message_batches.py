"""`/v1/messages/batches`: a key's batches, in the form of Anthropic's API."""

import asyncio
from typing import Annotated, Any, BinaryIO

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, Parameter
from litestar.response import Stream
from msgspec import Meta, Raw, Struct

from cortex.platform.settings import Gateway
from cortex.router.access.auth import caller
from cortex.router.batches.batch import MESSAGES, Batch, Form, message_batch
from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import Folder
from cortex.router.batches.lines import on_one_line
from cortex.router.dialects.core.lenient import repair_surrogates
from cortex.router.dialects.core.wire import read
from cortex.router.errors import BadRequest, BatchNotFound
from cortex.router.routes.batches import batch_of, check_limits, new_batch, request_cancel
from cortex.router.routes.files import content_of, discard

Http = Request[Any, Any, Any]
Limit = Annotated[int, Parameter(ge=1, le=1000)]


class NewRequest(Struct, frozen=True):
    """One request of a batch."""

    custom_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    params: Raw


class NewMessageBatch(Struct, frozen=True):
    """The body of a request for a batch."""

    requests: Annotated[tuple[NewRequest, ...], Meta(min_length=1)]


def routes(folder: Folder, calls: FolderCalls, gateway: Gateway) -> list[HTTPRouteHandler]:
    """Return the routes."""

    async def own(request: Http, id: str) -> Batch:
        batch = await batch_of(folder, calls, caller(request).id, id)
        if batch.form is not Form.ANTHROPIC:
            raise BatchNotFound(id)
        return batch

    def view_of(request: Http, batch: Batch) -> dict[str, Any]:
        return message_batch(batch, str(request.base_url).rstrip("/") + gateway.root_path)

    @post("/v1/messages/batches", status_code=200, opt={"needs": "inference", "body": NewMessageBatch})
    async def make(request: Http) -> dict[str, Any]:
        """Create a batch of requests, which run when nothing else needs the hosts."""
        new, who = read(repair_surrogates(await request.body()), NewMessageBatch), caller(request)
        _check(new, gateway.batch_max_lines)
        await check_limits(folder, calls, who.id, gateway)
        batch = new_batch(who, Form.ANTHROPIC, MESSAGES)
        path, file = await calls.call(folder.begin_upload)
        try:
            await calls.call(_write, file, new)
            await calls.call(folder.add_batch, batch, path)
        finally:
            await asyncio.shield(calls.call(discard, file, path))
        return view_of(request, batch)

    @get("/v1/messages/batches", opt={"needs": "inference"})
    async def ls(
        request: Http, limit: Limit = 20, after_id: FromQuery[str] = "", before_id: FromQuery[str] = ""
    ) -> dict[str, Any]:
        """List the caller's batches, the newest first."""
        every = await calls.call(lambda: list(folder.batches(caller(request).id)))
        batches = [b for b in every if b.form is Form.ANTHROPIC]
        if before_id:
            rest = [b for b in batches if b.id[-24:] > before_id[-24:]]
            chosen = rest[-limit:]
        else:
            rest = [b for b in batches if not after_id or b.id[-24:] < after_id[-24:]]
            chosen = rest[:limit]
        return {
            "data": [view_of(request, b) for b in chosen],
            "has_more": len(rest) > limit,
            "first_id": chosen[0].id if chosen else None,
            "last_id": chosen[-1].id if chosen else None,
        }

    @get("/v1/messages/batches/{id:str}", opt={"needs": "inference"})
    async def show(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Return one batch."""
        return view_of(request, await own(request, id))

    @get("/v1/messages/batches/{id:str}/results", opt={"needs": "inference"})
    async def results(request: Http, id: FromPath[str]) -> Stream:
        """Return the results of a batch that has ended, one JSON object a line."""
        batch = await own(request, id)
        if not batch.ended:
            raise BadRequest(f"the batch {id} has not ended: its results exist when `processing_status` is `ended`")
        return await content_of(folder.content(batch.key, batch.output_file), calls, "application/x-jsonl")

    @post("/v1/messages/batches/{id:str}/cancel", status_code=200, opt={"needs": "inference"})
    async def cancel(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Cancel a batch. Requests with results keep them."""
        return view_of(request, await request_cancel(folder, calls, await own(request, id)))

    @delete("/v1/messages/batches/{id:str}", status_code=200, opt={"needs": "inference"})
    async def remove(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Delete a batch that has ended, with its results."""
        batch = await own(request, id)
        if batch.status.is_open:
            raise BadRequest(f"the batch {id} has not ended: cancel it first")
        await calls.call(folder.remove_batch, batch)
        return {"id": batch.id, "type": "message_batch_deleted"}

    return [make, ls, show, results, cancel, remove]


def _check(new: NewMessageBatch, most: int) -> None:
    """Raise BadRequest for too many requests, or for two with the same id."""
    if len(new.requests) > most:
        raise BadRequest(f"a batch may have {most} requests ([gateway] batch_max_lines)", param="requests")
    ids: set[str] = set()
    for number, request in enumerate(new.requests):
        if request.custom_id in ids:
            text = f"an earlier request has the same custom_id {request.custom_id!r}"
            raise BadRequest(text, param=f"requests.{number}.custom_id")
        ids.add(request.custom_id)


def _write(file: BinaryIO, new: NewMessageBatch) -> None:
    """Write requests as lines."""
    for request in new.requests:
        line = {"custom_id": request.custom_id, "method": "POST", "url": MESSAGES}
        file.write(msgspec.json.encode({**line, "body": on_one_line(request.params)}) + b"\n")
    file.close()
