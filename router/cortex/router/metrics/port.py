"""The metrics port: one listener for all worker processes of a router, in the process that started them.

It runs beside everything else, in a thread with a loop of its own, and touches nothing the requests need. What the
workers count is read from their tallies; what is said of the fleet, from the record at the moment it is asked for, so
that it is absent rather than stale while Redis is away.
"""

import asyncio
import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from cortex.platform import clock, metrics
from cortex.platform.meter import Count, Snapshot, added, text
from cortex.platform.name_lookups import NameLookups
from cortex.platform.registry import RecordAway, Registry
from cortex.platform.settings import Settings
from cortex.platform.standing import standing
from cortex.router.metrics.tallies import gathered

log = structlog.get_logger()

STOP_S = 2.0


class MetricsPort:
    """Serves `/metrics`. Use it as a context; a port that is taken costs the metrics, not the router."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "MetricsPort":
        listen = self._settings.gateway.metrics_listen
        if not listen:
            return self
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, int(port)), family=family)
        except OSError as error:
            log.error("metrics_not_served", listen=listen, why=str(error))
            return self
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics_served", url=f"http://{listen}/metrics")
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_S)

    def _run(self, listener: socket.socket) -> None:
        """Serve until the end, and again after whatever broke it."""
        assert self._server is not None
        while not self._server.should_exit:
            try:
                asyncio.run(self._serve(self._server, listener.dup()))
            except Exception as error:
                log.error("metrics_port_broke", exc_info=error)
                time.sleep(STOP_S)
        listener.close()

    async def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        NameLookups().install(asyncio.get_running_loop())
        self._registry = Registry.of(self._settings)
        try:
            await server.serve(sockets=[listener])
        finally:
            with contextlib.suppress(RecordAway):
                await self._registry.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer GET /metrics, and nothing else."""
        found = scope["type"] == "http" and scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD")
        body = await self._metrics() if found else b"there is only /metrics here\n"
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _metrics(self) -> bytes:
        own = await asyncio.to_thread(gathered, self._folder)
        dropped = Count(metrics.DROPPED.name, (), own.dropped)
        fleet = await self._fleet()
        return await asyncio.to_thread(lambda: text(added([own, Snapshot(counts=(dropped,)), fleet])))

    async def _fleet(self) -> Snapshot:
        """Read the record: what the agents counted, and how things stand."""
        registry = self._registry
        began = time.monotonic()
        try:
            await registry.ping()
            took = Count(metrics.RECORD_PING.name, (), time.monotonic() - began)
            fleet = await registry.fleet(clock.now())
            counted = await registry.counted(fleet.hosts)
            gauges = (Count(metrics.RECORD_UP.name, (), 1), took, *standing(fleet, await registry.jobs(), clock.now()))
            return added([*counted, Snapshot(gauges=gauges)])
        except RecordAway:
            return Snapshot(gauges=(Count(metrics.RECORD_UP.name, (), 0),))
