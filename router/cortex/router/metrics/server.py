"""The metrics port: one listener for all worker processes of a router, in the process that started them.

It runs beside everything else, in a thread with a loop of its own, and touches nothing the requests need. What the
workers count is read from their tallies; what is said of the fleet, from the record at the moment it is asked for, so
that it is absent rather than stale while Redis is away.

Who may read, in this order:
(1) a caller with the secret of `[gateway] metrics_token_file`, or a key of scope status or admin, as a bearer token;
(2) on loopback, a caller that names this machine in `Host`: a page of another site cannot, DNS rebinding or not;
(3) elsewhere, everybody, where the operator chose `--insecure` and no key was made.
The port speaks plain HTTP. The metrics token exists so that no API key crosses a network for it, and so that the
metrics can be read while Redis is away.
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
from cortex.platform.api_keys import Right
from cortex.platform.cancel import cancelled
from cortex.platform.fleet_gauges import fleet_gauges
from cortex.platform.keys import same
from cortex.platform.meter import Count, Snapshot, added, text
from cortex.platform.name_lookups import NameLookups
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import listener
from cortex.platform.serving.address import is_loopback
from cortex.platform.settings import Gateway, Settings
from cortex.router.access.auth import answers_to, read_credentials
from cortex.router.access.keyring import KeyRing, local_key
from cortex.router.metrics.worker_counts import gathered

log = structlog.get_logger()

STOP_S = 2.0
MOST_CONNECTIONS, MOST_PER_PEER = 128, 64
"""Prometheus needs one or two."""
SHORTEST_TOKEN = 16
TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Serves `/metrics`. Use it as a context; a port that is taken costs the metrics, not the router."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._ring: KeyRing

    def __enter__(self) -> "MetricsServer":
        gateway = self._settings.gateway
        listen = gateway.metrics_listen
        if not listen:
            return self
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            opened = socket.create_server((host, int(port)), family=family)
        except OSError as error:
            log.error("metrics_not_served", listen=listen, why=str(error))
            return self
        config = listener.config(
            self._app,
            listen,
            most=MOST_CONNECTIONS,
            most_per_peer=MOST_PER_PEER,
            interface="asgi3",
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, args=(opened,), name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics_served", url=f"http://{listen}/metrics")
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_S)

    def _run(self, opened: socket.socket) -> None:
        """Serve until the end, and again after whatever broke it."""
        assert self._server is not None
        while not self._server.should_exit:
            try:
                self._server.run(sockets=[opened.dup()])
            except Exception as error:
                log.error("metrics_port_broke", exc_info=error)
                time.sleep(STOP_S)
        opened.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer GET /metrics, and nothing else."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        found = scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD")
        status, body = 404, b"there is only /metrics here\n"
        gateway = self._settings.gateway
        token = await asyncio.to_thread(metrics_token, gateway.metrics_token_file)
        if found and (refusal := refused(scope["headers"], self._ring, gateway, token)):
            status, body = refusal
        elif found:
            status, body = 200, await self._metrics()
        headers = [(b"content-type", TEXT), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _live(self, receive: Any, send: Any) -> None:
        """Follow the API keys for as long as the port is open."""
        await receive()
        NameLookups().install(asyncio.get_running_loop())
        registry = self._registry = Registry.of(self._settings)
        self._ring = KeyRing(registry, local_key(self._settings.local_key_file))
        following = asyncio.create_task(self._ring.follow())
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        finally:
            await cancelled([following])
            with contextlib.suppress(RecordUnavailable):
                await registry.close()
        await send({"type": "lifespan.shutdown.complete"})

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
            gauges = (
                Count(metrics.RECORD_UP.name, (), 1),
                took,
                *fleet_gauges(fleet, await registry.jobs(), clock.now()),
            )
            return added([*counted, Snapshot(gauges=gauges)])
        except RecordUnavailable:
            return Snapshot(gauges=(Count(metrics.RECORD_UP.name, (), 0),))


def metrics_token(path: str) -> str:
    """Return the secret in a file; empty when there is none that can be used: no caller then gets in by it."""
    if not path:
        return ""
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        log.error("metrics_token_not_read", path=path, why=str(error))
        return ""
    if len(token) < SHORTEST_TOKEN:
        log.error("metrics_token_too_short", path=path, least=SHORTEST_TOKEN)
        return ""
    return token


def refused(headers: Any, ring: KeyRing, gateway: Gateway, token: str) -> tuple[int, bytes] | None:
    """Return the status and text of a refusal, or None, by the numbers above."""
    shown = read_credentials(headers)
    if token and same(shown.secret, token):  # (1)
        return None
    known = ring.find(shown.secret) if shown.secret else None
    if known is not None:
        return None if known.may(Right.STATUS) else (403, b"a key of scope status or admin is needed\n")
    if is_loopback(gateway.metrics_listen):  # (2)
        if answers_to(shown.host, gateway.allowed_hosts):
            return None
        return 403, b"only this machine's own names are answered: add this one to [gateway] allowed_hosts\n"
    if not ring.known:
        return 503, b"API keys could not be read yet: Redis does not answer\n"
    if gateway.insecure and not ring.any_made:  # (3)
        return None
    return 401, b"the metrics token, or a key of scope status or admin, is needed as `Authorization: Bearer ...`\n"
