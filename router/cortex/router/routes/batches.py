"""`/v1/batches`: a key's batches, in the form of OpenAI's API; `/admin/batches`: those of all keys."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, Parameter
from msgspec import Meta, Struct

from cortex.platform.api_keys import Principal
from cortex.platform.settings import Gateway
from cortex.router.access.auth import caller
from cortex.router.batches.batch import ENDPOINTS, WINDOW_S, Batch, BatchesAnswer, Form, openai_batch
from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import BadName, Folder, new_id
from cortex.router.dialects.core.wire import read
from cortex.router.errors import BadRequest, BatchNotFound, FileNotStored, TooManyBatches
from cortex.router.routes.files import check_space, page

Http = Request[Any, Any, Any]
MOST_OPEN = 100
"""Maximum number of open batches of a key."""
Limit = Annotated[int, Parameter(ge=1, le=100)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
MoreLimit = Annotated[int, Parameter(ge=1, le=1000)]


class NewBatch(Struct, frozen=True):
    """The body of a request for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"] = "24h"
    metadata: Metadata | None = None


def routes(folder: Folder, calls: FolderCalls, gateway: Gateway) -> list[HTTPRouteHandler]:
    """Return the routes."""

    async def own(request: Http, id: str) -> Batch:
        return await batch_of(folder, calls, caller(request).id, id)

    async def batch_by_id(id: str) -> Batch:
        batch = await calls.call(_look_up, lambda: folder.find(id))
        if batch is None:
            raise BatchNotFound(id)
        return batch

    @post("/v1/batches", status_code=200, opt={"needs": "inference", "body": NewBatch})
    async def make(request: Http) -> dict[str, Any]:
        """Create a batch from a file. Its lines run when nothing else needs the hosts."""
        new, who = read(await request.body(), NewBatch), caller(request)
        if new.endpoint not in ENDPOINTS:
            raise BadRequest(f"`endpoint` must be one of {', '.join(ENDPOINTS)}", param="endpoint")
        file = await calls.call(folder.known_file, who.id, new.input_file_id)
        if file is None:
            raise FileNotStored(new.input_file_id)
        await check_limits(folder, calls, who.id, gateway)
        batch = new_batch(who, Form.OPENAI, new.endpoint, file.id, new.metadata)
        await calls.call(folder.add_batch, batch, folder.content(who.id, file.id))
        return openai_batch(batch)

    @get("/v1/batches", opt={"needs": "inference"})
    async def ls(request: Http, limit: Limit = 20, after: FromQuery[str] = "") -> dict[str, Any]:
        """List the caller's batches, the newest first."""
        batches = await calls.call(lambda: [openai_batch(b) for b in folder.batches(caller(request).id)])
        return page(batches, after, limit)

    @get("/v1/batches/{id:str}", opt={"needs": "inference"})
    async def show(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Return one batch."""
        return openai_batch(await own(request, id))

    @post("/v1/batches/{id:str}/cancel", status_code=200, opt={"needs": "inference"})
    async def cancel(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Cancel a batch. Lines with results keep them."""
        return openai_batch(await request_cancel(folder, calls, await own(request, id)))

    @get("/admin/batches", opt={"needs": "status"})
    async def every(limit: MoreLimit = 100, after: FromQuery[str] = "") -> BatchesAnswer:
        """List the batches of all keys, the newest first, or the next ones after the batch with the id `after`."""
        return BatchesAnswer(await calls.call(folder.newest, limit, after))

    @get("/admin/batches/{id:str}", opt={"needs": "status"})
    async def of_any_key(id: FromPath[str]) -> BatchesAnswer:
        """Return one batch of any key."""
        return BatchesAnswer((await batch_by_id(id),))

    @post("/admin/batches/{id:str}/cancel", status_code=200, opt={"needs": "admin"})
    async def stop(id: FromPath[str]) -> BatchesAnswer:
        """Cancel a batch of any key."""
        return BatchesAnswer((await request_cancel(folder, calls, await batch_by_id(id)),))

    return [make, ls, show, cancel, every, of_any_key, stop]


async def batch_of(folder: Folder, calls: FolderCalls, key: str, id: str) -> Batch:
    """Return a key's batch. Raises BatchNotFound."""
    batch = await calls.call(_look_up, lambda: folder.known_batch(key, id))
    if batch is None:
        raise BatchNotFound(id)
    return batch


async def request_cancel(folder: Folder, calls: FolderCalls, batch: Batch) -> Batch:
    """Request the cancellation of a batch and return it. One that has ended does not change."""
    if batch.status.is_open:
        await calls.call(folder.request_cancel, batch)
    return await batch_of(folder, calls, batch.key, batch.id)


async def check_limits(folder: Folder, calls: FolderCalls, key: str, gateway: Gateway) -> None:
    """Raise TooManyBatches for a key that has `MOST_OPEN` open batches, or KeyFull."""
    names = await calls.call(folder.open_batches)
    if sum(owner == key for owner, _ in names) >= MOST_OPEN:
        raise TooManyBatches(MOST_OPEN)
    await check_space(folder, calls, key, gateway)


def new_batch(
    who: Principal, form: Form, endpoint: str, input_file: str = "", metadata: dict[str, str] | None = None
) -> Batch:
    """Return a new batch of a caller."""
    now = time.time()
    return Batch(
        id=new_id("batch_" if form is Form.OPENAI else "msgbatch_", now),
        key=who.id,
        who=who.name,
        form=form,
        endpoint=endpoint,
        input_file=input_file,
        output_file=new_id("file-", now),
        error_file=new_id("file-", now),
        created=now,
        expires=now + WINDOW_S,
        metadata=metadata or {},
    )


def _look_up(look: Callable[[], Batch | None]) -> Batch | None:
    try:
        return look()
    except BadName:
        return None
