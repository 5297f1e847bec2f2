"""Ollama's routes about models. The catalogue defines them: requests to change them are rejected.

`routes/inference.py` has the chats and embeddings.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Stream

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.functions.memo import NamedMemo
from cortex.functions.servers import server_of
from cortex.functions.spec import Engine
from cortex.platform.api_keys import Principal
from cortex.platform.record import Instance
from cortex.router.access.auth import caller
from cortex.router.api_types import DownloadView
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.errors import BadRequest, Fault, Kind, ollama_error
from cortex.router.dialects.ollama import models
from cortex.router.dialects.ollama.models import Card, Named, Progress
from cortex.router.dialects.ollama.stream import MEDIA_TYPE
from cortex.router.dispatch import Handler
from cortex.router.fleet_view import FleetView
from cortex.router.http_answer import Answering, Client, id_headers, json_answer
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.model_description import abilities, context_of
from cortex.router.overview.functions import instance_reap_at
from cortex.router.overview.snapshot import Index
from cortex.router.overview.sources import Sources
from cortex.router.request.incoming import Incoming
from cortex.router.request.intake import Intake, no_cover
from cortex.router.routes import long_lists

Http = Request[Any, Any, Any]

PULL_S = 1.0
"""Interval between lines of `/api/pull`."""
_REFUSED = {
    "create": "models are declared in the catalogue, by an operator",
    "copy": "a second name is an alias in the catalogue, which an operator adds",
    "delete": "models are removed from the catalogue by an operator; keep_alive = 0 unloads one",
    "push": "this service publishes no models",
    "blobs": "this service takes no files: models are declared in the catalogue, by an operator",
}


class Models:
    """Describes functions to Ollama's clients; `created` is the Unix time that is reported for every model."""

    def __init__(self, catalogue: LiveCatalogue, view: FleetView, sources: Sources, created: int) -> None:
        self._catalogue, self._view, self._sources, self._created = catalogue, view, sources, created
        self._listed = NamedMemo(lambda *described: msgspec.json.encode(models.list_entry(self._card(*described))))

    def find(self, name: str, who: Principal) -> Target:
        """Return the function of a name, with or without `:latest`. Raises FunctionNotFound."""
        known = self._catalogue.get(name) is not None
        return self._catalogue.resolve_for(name if known else models.without_tag(name), who)

    def card(self, name: str, target: Target) -> Card:
        """Return the description of a function under a name."""
        return self._card(name, target, *self._look_up(target))

    def _look_up(self, target: Target) -> tuple[ModelProfile | None, tuple[Instance, ...]]:
        return self._view.profile(target.base.id), self._view.ready(target.base.id, target.revision)

    def _card(self, name: str, target: Target, profile: ModelProfile | None, ready: tuple[Instance, ...]) -> Card:
        function = target.function
        serves = server_of(function).dialects
        return Card(
            name=name,
            revision=target.revision,
            created=self._created,
            is_gguf=function.engine is Engine.LLAMACPP,
            chats="chat" in serves,
            embeds="embeddings" in serves,
            abilities=abilities(function, profile, ready)["capabilities"],
            context=context_of(function, profile, ready),
        )

    def every(self, who: Principal) -> Iterator[tuple[bytes]]:
        """Return every function and alias that a caller may use, each as JSON."""
        return ((self._listed(name, t, *self._look_up(t)),) for name, t in self._catalogue.visible(who))

    def running(self, who: Principal) -> Iterator[models.Running | tuple[()]]:
        """Yield the functions with a ready instance that a caller may use, and `()` for each other name."""
        snapshot = self._sources.now()
        index = Index(snapshot)
        for name, target in self._catalogue.visible(who):
            placed = [i for _, i in index.placed.get(name, ()) if i.state is State.READY]
            if not placed or name != target.function.id:
                yield ()
                continue
            ends = [instance_reap_at(instance, snapshot, index) for instance in placed]
            yield models.running(
                self.card(name, target),
                memory_mb=sum(i.memory_mb * max(1, len(i.devices)) for i in placed),
                on_devices=any(not d.startswith("cpu") for i in placed for d in i.devices),
                ends_at=None if None in ends else max(end for end in ends if end is not None),
            )

    async def pull_progress(self, card: Card, function: str) -> AsyncIterator[Progress | Fault]:
        """Yield the progress of the fetches of a function's weights until there are none."""
        yield Progress("pulling manifest")
        watched = ""
        while True:
            downloads = await self._sources.downloads()
            active = next((d for d in downloads if d.active and function in d.functions), None)
            if active is None:
                break
            watched = active.id
            yield models.pulling(card, active.done, active.total)
            await asyncio.sleep(PULL_S)
        if _failed(watched, downloads):
            why = f"the weights of {card.name!r} were not fetched; an operator sees why: cortex jobs ls"
            yield Fault(kind=Kind.WORKER_ERROR, message=why)
            return
        yield Progress("success")


def _failed(id: str, downloads: Sequence[DownloadView]) -> bool:
    return any(d.id == id and d.state in ("failed", "stopped") for d in downloads)


def handlers(describes: Models, intake: Intake) -> dict[str, Handler]:
    """Return the routes with a body, by path. All are POST."""

    async def read_name(request: Incoming) -> Named:
        held = await intake.body(request, no_cover)
        try:
            result = wire.read(held.bytes, Named)
        finally:
            held.release()
        if not result.of:
            raise BadRequest("expected a name", "model")
        return result

    async def show(request: Incoming) -> Answering:
        """Describe a model."""
        name = (await read_name(request)).of
        described = models.show_answer(describes.card(name, describes.find(name, request.caller)))
        return json_answer(200, msgspec.json.encode(described), request.id).send

    async def pull(request: Incoming) -> Answering:
        """Report the fetches of a model's weights that run; none is begun."""
        wanted = await read_name(request)
        target = describes.find(wanted.of, request.caller)
        lines = describes.pull_progress(describes.card(wanted.of, target), target.base.id)
        return _stream(lines, request.id) if wanted.stream else _last(lines, request.id)

    return {"/api/show": show, "/api/pull": pull}


def _stream(lines: AsyncIterator[Progress | Fault], id: str) -> Answering:
    async def answer(client: Client) -> None:
        client.start(200, [(b"content-type", MEDIA_TYPE), (b"cache-control", b"no-cache"), *id_headers(id)])
        async for line in lines:
            if client.is_lost:
                return
            client.write(msgspec.json.encode(ollama_error(line) if isinstance(line, Fault) else line) + b"\n")
            await client.drain()
        await client.end()

    return answer


def _last(lines: AsyncIterator[Progress | Fault], id: str) -> Answering:
    async def answer(client: Client) -> None:
        last: Progress | Fault = Progress("success")
        async for line in lines:
            last = line
            if client.is_lost:
                return
        fails = isinstance(last, Fault)
        body = msgspec.json.encode(ollama_error(last) if isinstance(last, Fault) else last)
        await json_answer(502 if fails else 200, body, id).send(client)

    return answer


def routes(describes: Models) -> list[HTTPRouteHandler]:
    """Return the routes without a body, and those that are refused."""

    @get("/api/version", opt={"needs": "inference"})
    async def version() -> dict[str, str]:
        """Name the version of Ollama's API."""
        return {"version": models.API_VERSION}

    @get("/api/tags", opt={"needs": "inference"})
    async def tags(request: Http) -> Stream:
        """List every function and alias that the caller may use."""
        return long_lists.answer("models", describes.every(caller(request)))

    @get("/api/ps", opt={"needs": "inference"})
    async def ps(request: Http) -> Stream:
        """List the functions that are ready."""
        return long_lists.answer("models", describes.running(caller(request)))

    @post("/api/create", opt={"needs": "inference"}, status_code=200)
    async def create() -> None:
        """Refuse to create a model."""
        raise _refusal("create")

    @post("/api/copy", opt={"needs": "inference"}, status_code=200)
    async def copy() -> None:
        """Refuse to copy a model."""
        raise _refusal("copy")

    @post("/api/push", opt={"needs": "inference"}, status_code=200)
    async def push() -> None:
        """Refuse to publish a model."""
        raise _refusal("push")

    @delete("/api/delete", opt={"needs": "inference"}, status_code=200)
    async def remove() -> None:
        """Refuse to delete a model."""
        raise _refusal("delete")

    @post("/api/blobs/{digest:str}", opt={"needs": "inference"}, status_code=200)
    async def blobs(digest: FromPath[str]) -> None:
        """Refuse a file."""
        raise _refusal("blobs")

    return [version, tags, ps, create, copy, push, remove, blobs]


def _refusal(action: str) -> BadRequest:
    return BadRequest(f"{action}: {_REFUSED[action]}", kind=Kind.UNSUPPORTED)
