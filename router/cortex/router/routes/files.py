"""`/v1/files`: a key's files, in the form of OpenAI's API: the input and the results of batches."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, Parameter
from litestar.response import Stream

from cortex.platform.settings import Gateway
from cortex.router.access.auth import caller
from cortex.router.batches.batch import StoredFile, openai_file
from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import Folder, new_id
from cortex.router.batches.upload import Upload
from cortex.router.errors import BadRequest, FileNotStored, KeyFull

Http = Request[Any, Any, Any]
PURPOSE = "batch"
PIECE = 1024 * 1024
SHORTEST_TTL_S = 3600
Limit = Annotated[int, Parameter(ge=1, le=10_000)]


def routes(folder: Folder, calls: FolderCalls, gateway: Gateway) -> list[HTTPRouteHandler]:
    """Return the routes."""

    async def stored_file(request: Http, id: str) -> StoredFile:
        file = await calls.call(folder.known_file, caller(request).id, id)
        if file is None:
            raise FileNotStored(id)
        return file

    @post("/v1/files", status_code=200, opt={"needs": "inference"}, request_max_body_size=None)
    async def upload(request: Http) -> dict[str, Any]:
        """Store a file. The form has the fields `purpose`, which is `batch`, and `file`."""
        key, now = caller(request).id, time.time()
        size = request.headers.get("content-length", "")
        await check_space(folder, calls, key, gateway, (int(size) if size.isdecimal() else 0) - PIECE)
        form = Upload(request.headers.get("content-type", ""), gateway.file_max_mb << 20)
        path, file = await calls.call(folder.begin_upload)
        try:
            await _receive(request, form, file, calls)
            if form.fields.get("purpose") != PURPOSE:
                raise BadRequest(f"`purpose` must be `{PURPOSE}`", param="purpose")
            entry = StoredFile(
                id=new_id("file-", now),
                key=key,
                name=form.name,
                purpose=PURPOSE,
                size=form.size,
                created=now,
                expires=now + _ttl_s(form.fields, gateway.batch_ttl_s),
            )
            await check_space(folder, calls, key, gateway, form.size)  # other uploads may have completed meanwhile
            await calls.call(folder.add_file, entry, path)
        finally:
            await asyncio.shield(calls.call(discard, file, path))
        return openai_file(entry)

    @get("/v1/files", opt={"needs": "inference"})
    async def ls(
        request: Http,
        purpose: FromQuery[str] = "",
        limit: Limit = 10_000,
        after: FromQuery[str] = "",
        order: FromQuery[str] = "desc",
    ) -> dict[str, Any]:
        """List the caller's files."""
        files = await calls.call(lambda: list(folder.files(caller(request).id)))
        chosen = [f for f in files if purpose in ("", f.purpose)]
        return page([openai_file(f) for f in (reversed(chosen) if order == "asc" else chosen)], after, limit)

    @get("/v1/files/{id:str}", opt={"needs": "inference"})
    async def show(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Return one file."""
        return openai_file(await stored_file(request, id))

    @get("/v1/files/{id:str}/content", opt={"needs": "inference"})
    async def content(request: Http, id: FromPath[str]) -> Stream:
        """Return a file's content."""
        file = await stored_file(request, id)
        return await content_of(folder.content(file.key, file.id), calls, "application/octet-stream")

    @delete("/v1/files/{id:str}", status_code=200, opt={"needs": "inference"})
    async def remove(request: Http, id: FromPath[str]) -> dict[str, Any]:
        """Delete a file. A batch that reads it continues."""
        file = await stored_file(request, id)
        await calls.call(folder.remove_file, file.key, file.id)
        return {"id": file.id, "object": "file", "deleted": True}

    return [upload, ls, show, content, remove]


async def check_space(folder: Folder, calls: FolderCalls, key: str, gateway: Gateway, size: int = 0) -> None:
    """Raise KeyFull for a key that may not store `size` bytes more."""
    taken = await calls.call(folder.size_of, key)
    if taken + max(0, size) >= gateway.files_of_key_mb << 20:
        raise KeyFull(gateway.files_of_key_mb)


def page(entries: Iterable[dict[str, Any]], after: str, limit: int) -> dict[str, Any]:
    """Return a page of a list: at most `limit` entries after the one with the id `after`."""
    rest = list(entries)
    if after:
        ids = [e["id"] for e in rest]
        rest = rest[ids.index(after) + 1 :] if after in ids else []
    data = rest[:limit]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, "has_more": len(rest) > limit, **ends}


async def content_of(path: Path, calls: FolderCalls, media_type: str) -> Stream:
    """Return a file as an answer. Raises FileNotStored."""
    file = await calls.call(path.open, "rb")

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while piece := await calls.call(file.read, PIECE):
                yield piece
        finally:
            file.close()

    return Stream(pieces(), media_type=media_type)


async def _receive(request: Http, form: Upload, file: BinaryIO, calls: FolderCalls) -> None:
    """Write the form's file as it arrives."""
    pending: list[bytes] = []
    size = 0
    async for data in request.stream():
        for piece in form.feed(data):
            pending.append(piece)
            size += len(piece)
        if size >= PIECE:
            await calls.call(file.writelines, pending)
            pending, size = [], 0
    form.close()
    await calls.call(_write_rest, file, pending)


def _write_rest(file: BinaryIO, pending: list[bytes]) -> None:
    file.writelines(pending)
    file.close()


def discard(file: BinaryIO, path: Path) -> None:
    """Close an upload, and remove it unless it has become a file."""
    try:
        file.close()
    finally:
        path.unlink(missing_ok=True)


def _ttl_s(fields: dict[str, str], most: float) -> float:
    """Return the lifetime of a file: `expires_after[seconds]`, at most the setting `most`."""
    seconds = fields.get("expires_after[seconds]", "")
    if not seconds:
        return most
    if not seconds.isdecimal() or float(seconds) < SHORTEST_TTL_S:
        raise BadRequest(
            f"`expires_after[seconds]` must be a number of at least {SHORTEST_TTL_S}", param="expires_after"
        )
    return min(most, float(seconds))
