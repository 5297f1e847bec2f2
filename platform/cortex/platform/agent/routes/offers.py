"""The agent's HTTP routes for its neighbours: what it offers, and the bytes.

All transfers together stay below `[agent] offer_mb_s`, and there are at most `MOST_TRANSFERS`; a neighbour that is
turned away uses another source.
"""

import os
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from litestar import Request, Response, get, post, put
from litestar.exceptions import NotFoundException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Stream

from cortex.platform.agent.loop import Agent
from cortex.platform.agent.pace import Pace
from cortex.platform.agent.routes.body import read
from cortex.platform.agent_messages import KernelOffer, KernelRequest, Neighbours, Offers
from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.weights import neighbours as neighbour_client
from cortex.platform.weights import offers as weight_offers
from cortex.platform.workers import kernel_pack
from cortex.platform.workers.process import write_private

Http = Request[Any, Any, Any]
MIB = 1024 * 1024
CHUNK = MIB
MOST_TRANSFERS = 8
NEIGHBOUR = "neighbour"
"""What a route `needs` that a neighbour's token opens, too."""
_RANGE = re.compile(r"bytes=(\d{1,15})-")


def routes(agent: Agent, pace: Pace) -> list[HTTPRouteHandler]:
    """Return `/offers` for the neighbours, and `/neighbours` for the routers."""
    own = agent.settings.agent

    @post("/kernels", opt={"needs": NEIGHBOUR}, status_code=200)
    async def kernels(request: Http) -> KernelOffer:
        """Offer the compiled code that fits a neighbour's start, as a pack."""
        return await agent.supervisor.kernels.offer(await read(request, KernelRequest))

    return [
        kernels,
        *offer_routes(Path(own.cache_dir), own.offer_mb_s, agent.supervisor.looks, pace),
        neighbours_route(neighbour_client.neighbours_file(own.state_dir), agent.supervisor.looks),
    ]


def neighbours_route(path: Path, looks: BlockingCalls) -> HTTPRouteHandler:
    """Return the route by which a router tells this host its neighbours."""

    @put("/neighbours")
    async def neighbours(request: Http) -> dict[str, int]:
        """Save the neighbours for this host's fetches, in a private file."""
        data = await read(request, Neighbours)
        content = neighbour_client.encode(data)
        await looks.look(str(path), "neighbours", partial(write_private, path, content), question=content)
        return {"neighbours": len(data.hosts)}

    return neighbours


def offer_routes(cache: Path, mb_s: int, looks: BlockingCalls, pace: Pace | None = None) -> list[HTTPRouteHandler]:
    """Return the routes for what this host offers, at a `pace` of `mb_s`; with 0, they offer nothing."""
    pace, transfers = pace or Pace(mb_s * MIB), set[object]()

    def shared() -> dict[str, Path]:
        return weight_offers.shared_files(cache) | kernel_pack.packs(cache)

    @get("/offers", opt={"needs": NEIGHBOUR})
    async def offers() -> Offers:
        """List what this host offers."""
        if not mb_s:
            return Offers()
        return Offers(weights=await looks.look(str(cache), "offers", partial(weight_offers.sizes, cache)))

    @get("/offers/{digest:str}", opt={"needs": NEIGHBOUR})
    async def offer(request: Http, digest: FromPath[str]) -> Response[Any]:
        """Send an offered file, or its end (`Range: bytes=N-`)."""
        files = await looks.look(str(cache), "offered", shared) if mb_s else {}
        if (path := files.get(digest)) is None:
            raise NotFoundException("this host offers no such file")
        if len(transfers) >= MOST_TRANSFERS:
            raise ServiceUnavailableException("this host sends as much as it may: try another")
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        offset, size = int(match[1]) if match else 0, (await looks.look(str(path), "stat", path.stat)).st_size
        if offset > size:
            raise NotFoundException("this file has fewer bytes")
        headers = {"content-length": str(size - offset)}
        if match:
            headers["content-range"] = f"bytes {offset}-{size - 1}/{size}"
        status = 206 if match else 200
        return Stream(
            send(path, offset, size), status_code=status, headers=headers, media_type="application/octet-stream"
        )

    async def send(path: Path, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield the bytes of a file from an offset; fewer when it has been cut since, which the receiver notices."""
        transfer = object()
        transfers.add(transfer)
        file = -1
        try:
            open_file = partial(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
            file = await looks.look(str(path), "open", open_file, question=object())
            while offset < size:
                await pace.wait(min(CHUNK, size - offset))
                read = partial(os.pread, file, min(CHUNK, size - offset), offset)
                chunk = await looks.look(str(path), "send", read, question=object())
                if not chunk:
                    return
                offset += len(chunk)
                yield chunk
        finally:
            transfers.discard(transfer)
            if file >= 0:
                os.close(file)

    return [offers, offer]
