"""`/status` and what belongs to it. Reading needs the right `status`; what the page does, it does by `/admin`."""

import asyncio
import gzip
from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from cortex.functions.names import nearest
from cortex.platform.api_keys import Right
from cortex.router.access.auth import caller
from cortex.router.errors import HostNotFound, NoCapacity, NoKey, NotAllowed
from cortex.router.routes.instances import Run, Text
from cortex.router.runtime import Runtime
from cortex.router.shutdown import stopping
from cortex.router.status import assets, functions, hosts, login, logs
from cortex.router.status.live import Live, TooManyWatch
from cortex.router.status.page import picture
from cortex.router.status.planning import function_named, planned
from cortex.router.status.render import page, render
from cortex.router.status.snapshot import Index
from cortex.router.status.sources import Sources

Http = Request[Any, Any, Any]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
READ: dict[str, Any] = {"opt": {"needs": "status"}, "response_headers": HEADERS}
SMALL = 32 * 1024
"""A page up to this size is sent as it is."""


def routes(runtime: Runtime) -> list[HTTPRouteHandler]:
    """Return the page's routes."""
    sources = Sources(runtime)
    live = Live(sources.known, stopping)

    @get("/status", exception_handlers={NoKey: login.to_login, NotAllowed: login.to_login}, **READ)
    async def status(request: Http) -> Response[Any]:
        """Show the page; it is whole without its scripts. Made in a thread: a large fleet's takes a while."""
        may, cookie = may_act(request), login.logged_in(request)
        known = await sources.known()
        text = await asyncio.to_thread(lambda: page(picture(known), may_act=may, logged_in=cookie))
        if len(text) < SMALL or "gzip" not in request.headers.get("accept-encoding", ""):
            return _html(text)
        packed = await asyncio.to_thread(gzip.compress, text.encode(), 3)
        packing = {"content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(packed, media_type="text/html", headers=packing)

    @get("/status/live", **READ)
    async def events() -> Stream:
        """Send what changes, as server-sent events."""
        watching = live.watch()
        try:
            first = await anext(watching)
        except TooManyWatch as error:
            raise NoCapacity(str(error), retry_after=30) from None

        async def told() -> Any:
            yield first
            async for event in watching:
                yield event

        return Stream(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @get("/status/function/{name:path}", **READ)
    async def function(request: Http, name: str) -> Response[str]:
        """Show everything about one function."""
        known = await sources.known()
        index = Index(known.fleet)
        shown = functions.details(function_named(runtime, name.lstrip("/"), index), known, index)
        return _html(render("function.html", known.now, it=shown, may_act=may_act(request)))

    @get("/status/host/{name:str}", **READ)
    async def host(request: Http, name: str) -> Response[str]:
        """Show everything about one host."""
        known = await sources.known()
        record = known.fleet.record(name)
        if record is None:
            raise HostNotFound(name, nearest(name, known.fleet.hosts))
        shown = hosts.details(record, known, Index(known.fleet))
        return _html(render("machine.html", known.now, it=shown, may_act=may_act(request)))

    @get("/status/log", opt={"needs": "admin"}, response_headers=HEADERS)
    async def log(
        function: str, host: str = "", instance: str = "", run: Run = "current", grep: Text = ""
    ) -> Response[str]:
        """Show what a worker wrote. For those who may act: a worker may have written what others asked it."""
        shown = await logs.log(runtime, function, host, instance, run, grep)
        return _html(render("log.html", it=shown, host=host))

    @get("/status/plan", **READ)
    async def plan(request: Http, do: str, function: str = "", host: str = "") -> Response[str]:
        """Show what an action would do, before it is done."""
        shown = await planned(runtime, do, function=function, host=host)
        return _html(render("plan.html", it=shown, may_act=may_act(request)))

    @get("/status/assets/{name:str}", opt={"needs": "nothing"})
    async def file(name: str) -> Response[bytes]:
        """Serve a file of the page. Its name says what is in it, so it may be kept for ever."""
        found = assets.asset(name)
        if found is None:
            return Response(b"", status_code=404)
        kept = {**HEADERS, "cache-control": "public, max-age=31536000, immutable"}
        return Response(found.body, media_type=found.media_type, headers=kept)

    return [status, events, function, host, log, plan, file, *login.routes(runtime, HEADERS)]


def may_act(request: Http) -> bool:
    """Whether whoever looks may change something, too."""
    return caller(request).may(Right.ADMIN)


def _html(text: str) -> Response[str]:
    return Response(text, media_type="text/html")
