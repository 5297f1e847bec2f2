"""The routes below `/status`. They need the right `status`; the page acts through `/admin`."""

import asyncio
import gzip
import time
from typing import Any

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect, Stream

from cortex.functions.names import nearest
from cortex.platform.api_keys import Right
from cortex.platform.registry import RecordUnavailable
from cortex.platform.usage_record import UsageRecord
from cortex.router.access.auth import caller
from cortex.router.errors import HostNotFound, NoCapacity, NoKey, NotAllowed, RecordIsAway
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.overview.planning import Planner, function_named
from cortex.router.overview.snapshot import Index
from cortex.router.overview.sources import Sources
from cortex.router.overview.worker_logs import Grep, Run, WorkerLogs
from cortex.router.shutdown import stopping
from cortex.router.status import assets, functions, hosts, login, logs
from cortex.router.status.live import Live, TooManyWatchers
from cortex.router.status.page import picture
from cortex.router.status.plans import card
from cortex.router.status.render import HEADERS, page, render
from cortex.router.status.usage import GROUPS, SPANS, Group, Span, usage_page

Http = Request[Any, Any, Any]

READ: dict[str, Any] = {"opt": {"needs": "status"}, "response_headers": HEADERS}
SMALL = 32 * 1024
"""Bytes of the largest page that is sent without compression."""


def routes(
    catalogue: LiveCatalogue, sources: Sources, planner: Planner, worker_logs: WorkerLogs, usage: UsageRecord
) -> list[HTTPRouteHandler]:
    """Return the page's routes, without those of the login."""
    live = Live(sources.snapshot, stopping)

    @get("/status", exception_handlers={NoKey: login.to_login, NotAllowed: login.to_login}, **READ)
    async def status(request: Http) -> Response[Any]:
        """Show the page, complete without scripts. A thread renders it, because a large fleet takes a while."""
        if login.ends_in_slash(request):
            return Redirect("../status")
        may, cookie = may_act(request), login.has_session(request)
        snapshot = await sources.snapshot()
        text = await asyncio.to_thread(lambda: page(picture(snapshot), may_act=may, logged_in=cookie).encode())
        if len(text) < SMALL or "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(text, media_type="text/html")
        packed = await asyncio.to_thread(gzip.compress, text, 3)
        headers = {"content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(packed, media_type="text/html", headers=headers)

    @get("/status/usage", exception_handlers={NoKey: _to_login, NotAllowed: _to_login}, **READ)
    async def show_usage(request: Http, by: FromQuery[Group] = "key", span: FromQuery[Span] = "week") -> Response[Any]:
        """Show what requests used. A thread renders it, because a year has many rows."""
        if login.ends_in_slash(request):
            return Redirect("../usage")
        now = time.time()
        try:
            names, rows = await usage.names(), await usage.read(now - SPANS[span], now, now)
        except RecordUnavailable as error:
            raise RecordIsAway(str(error), retry_after=5) from None
        return _html(
            await asyncio.to_thread(
                lambda: render(
                    "usage.html", it=usage_page(rows, by, span, now, names), groups=GROUPS, spans=tuple(SPANS)
                )
            )
        )

    @get("/status/live", **READ)
    async def live_events() -> Stream:
        """Send the page's changes as server-sent events."""
        events = live.watch()
        try:
            first = await anext(events)
        except TooManyWatchers as error:
            raise NoCapacity(str(error), retry_after=30) from None

        async def stream() -> Any:
            yield first
            async for event in events:
                yield event

        return Stream(stream(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @get("/status/function/{name:path}", **READ)
    async def function(request: Http, name: FromPath[str]) -> Response[str]:
        """Show the details of one function."""
        snapshot = await sources.snapshot()
        index = Index(snapshot)
        content = functions.details(function_named(name.lstrip("/"), catalogue, index), snapshot, index)
        return _html(render("function.html", snapshot.now, it=content, may_act=may_act(request)))

    @get("/status/host/{name:str}", **READ)
    async def host(request: Http, name: FromPath[str]) -> Response[str]:
        """Show the details of one host."""
        snapshot = await sources.snapshot()
        record = snapshot.fleet.record(name)
        if record is None:
            raise HostNotFound(name, nearest(name, snapshot.fleet.hosts))
        content = hosts.details(record, snapshot, Index(snapshot))
        return _html(render("machine.html", snapshot.now, it=content, may_act=may_act(request)))

    @get("/status/log", opt={"needs": "admin"}, response_headers=HEADERS)
    async def log(
        function: FromQuery[str],
        host: FromQuery[str] = "",
        instance: FromQuery[str] = "",
        run: FromQuery[Run] = "current",
        grep: Grep = "",
    ) -> Response[str]:
        """Show a worker's log. For admins only: it may contain prompts."""
        content = await logs.log(worker_logs, function, host, instance, run, grep)
        return _html(render("log.html", it=content, host=host))

    @get("/status/plan", **READ)
    async def plan(
        request: Http, do: FromQuery[str], function: FromQuery[str] = "", host: FromQuery[str] = ""
    ) -> Response[str]:
        """Show the plan of an action."""
        planned = planner.on_function(do, function) if function else planner.on_host(do, host)
        return _html(render("plan.html", it=card(await planned), may_act=may_act(request)))

    @get("/status/assets/{name:str}", opt={"needs": "nothing"})
    async def static_file(name: FromPath[str]) -> Response[bytes]:
        """Serve a static file. Its name has a hash of its content, so caches never expire it."""
        file = assets.asset(name)
        if file is None:
            return Response(b"", status_code=404)
        headers = {**HEADERS, "cache-control": "public, max-age=31536000, immutable"}
        return Response(file.body, media_type=file.media_type, headers=headers)

    return [status, show_usage, live_events, function, host, log, plan, static_file]


def may_act(request: Http) -> bool:
    """Whether the caller may make changes."""
    return caller(request).may(Right.ADMIN)


def _to_login(request: Http, _: Exception) -> Response[Any]:
    """Redirect an unauthorized browser from a page below `/status` to the login form."""
    return Redirect("../login" if login.ends_in_slash(request) else "../status/login", status_code=303)


def _html(text: str) -> Response[str]:
    return Response(text, media_type="text/html")
