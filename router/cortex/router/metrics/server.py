"""The metrics port: one listener for all worker processes of a router, in the process that started them.

It runs in a thread with its own event loop and shares nothing with request handling. The workers' counters come from
their files; fleet metrics come from the record at the time of the scrape, so they are absent rather than stale while
Redis is unavailable.

These callers may read, in this order:
(1) with the secret of `[gateway] metrics_token_file`, or a key of scope status or admin, as a bearer token;
(2) on loopback, with a `Host` that names this machine, which excludes pages of other sites and DNS rebinding;
(3) otherwise anyone, if the operator set `--insecure` and no key exists.
The port serves plain HTTP. The metrics token keeps API keys off the network and works while Redis is unavailable.
"""

import asyncio
import contextlib
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from cortex.platform import clock, metrics, text_files
from cortex.platform.api_keys import Right
from cortex.platform.budget import budget_states
from cortex.platform.fleet_gauges import fleet_gauges
from cortex.platform.keys import same
from cortex.platform.meter import Count, Snapshot, add_up, text
from cortex.platform.name_lookups import NameLookups
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import address, listener
from cortex.platform.serving.address import is_loopback
from cortex.platform.settings import Gateway, Settings
from cortex.platform.usage_record import UsageRecord
from cortex.router.access.auth import answers_to, read_credentials
from cortex.router.access.keyring import KeyRing, local_key
from cortex.router.batches.folder import Folder
from cortex.router.metrics.batch_gauges import BatchGauges
from cortex.router.metrics.worker_counts import collect

log = structlog.get_logger()

STOP_S = 2.0
KEYS_S = 1.0
"""How old the API keys may be that a scrape is compared with: a scrape comes every few seconds."""
MOST_CONNECTIONS, MOST_PER_PEER = 128, 64
"""Prometheus needs one or two."""
SHORTEST_TOKEN = 16
TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Serves `/metrics` as a context manager. If its port is in use, the router runs without metrics."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._server: listener.Server | None = None
        self._thread: threading.Thread | None = None
        self._ring: KeyRing
        self._keys_read_at = -math.inf
        self._batches: BatchGauges

    def __enter__(self) -> "MetricsServer":
        gateway = self._settings.gateway
        listen = gateway.metrics_listen
        if not listen:
            return self
        try:
            listening = address.create_server(*address.split(listen))
        except OSError as error:
            log.error("metrics_not_served", listen=listen, why=str(error))
            return self
        config = listener.config(
            self._app,
            listen,
            most=MOST_CONNECTIONS,
            most_per_peer=MOST_PER_PEER,
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
        self._server = listener.Server(config)
        self._thread = threading.Thread(target=self._run, args=(listening,), name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics_served", url=f"http://{listen}/metrics")
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._thread is not None:
            self._server.exit()
            self._thread.join(STOP_S)

    def _run(self, listening: socket.socket) -> None:
        """Serve until `__exit__`; restart the server after an exception."""
        assert self._server is not None
        while not self._server.should_exit:
            try:
                self._server.run(sockets=[listening.dup()])
            except Exception as error:
                log.error("metrics_port_failed", exc_info=error)
                time.sleep(STOP_S)
        listening.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer `GET /metrics`; 404 for everything else."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        is_metrics = scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD")
        status, body = 404, b"not found: this port serves /metrics only\n"
        gateway = self._settings.gateway
        token = await asyncio.to_thread(metrics_token, gateway.metrics_token_file)
        if is_metrics:
            await self._read_keys()
        if is_metrics and (error := rejection(scope["headers"], self._ring, gateway, token)):
            status, body = error
        elif is_metrics:
            status, body = 200, await self._metrics()
        headers = [(b"content-type", TEXT), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _lifespan(self, receive: Any, send: Any) -> None:
        """Connect to the record while the port is open."""
        await receive()
        NameLookups().install(asyncio.get_running_loop())
        registry = self._registry = Registry.of(self._settings)
        self._ring = KeyRing(registry, local_key(self._settings.local_key_file))
        self._batches = BatchGauges(Folder.of(self._settings.gateway))
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        finally:
            self._batches.close()
            with contextlib.suppress(RecordUnavailable):
                await registry.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _read_keys(self) -> None:
        """Read the API keys, if they were read more than `KEYS_S` ago. The last ones apply while Redis is away."""
        if time.monotonic() - self._keys_read_at > KEYS_S:
            with contextlib.suppress(RecordUnavailable):
                await self._ring.refresh()
            self._keys_read_at = time.monotonic()

    async def _metrics(self) -> bytes:
        own = await asyncio.to_thread(collect, self._folder)
        dropped = Count(metrics.DROPPED.name, (), own.dropped)
        batches, fleet = await asyncio.gather(self._batches.read(), self._fleet())
        parts = [own, Snapshot(counts=(dropped,), gauges=batches), fleet]
        return await asyncio.to_thread(lambda: text(add_up(parts)))

    async def _fleet(self) -> Snapshot:
        """Read the agents' counters and the fleet gauges from the record."""
        registry = self._registry
        started = time.monotonic()
        try:
            await registry.ping()
            ping = Count(metrics.RECORD_PING.name, (), time.monotonic() - started)
            fleet = await registry.fleet(clock.now())
            agent_counts = await registry.read_counts(fleet.hosts)
            budgets = {h.id: h.budget for h in self._ring.holders() if h.budget}
            spent = await UsageRecord(registry, "").spent(clock.now()) if budgets else {}
            gauges = (
                Count(metrics.RECORD_UP.name, (), 1),
                ping,
                *fleet_gauges(fleet, await registry.jobs(), clock.now()),
                *(Count(metrics.BUDGETS.name, (s,), n) for s, n in budget_states(budgets, spent).items()),
            )
            return add_up([*agent_counts, Snapshot(gauges=gauges)])
        except RecordUnavailable:
            return Snapshot(gauges=(Count(metrics.RECORD_UP.name, (), 0),))


def metrics_token(path: str) -> str:
    """Return the secret in a file; empty if it is missing or too short, and then no token is accepted."""
    if not path:
        return ""
    try:
        token = text_files.read(Path(path).expanduser()).strip()
    except (OSError, UnicodeDecodeError) as error:
        log.error("metrics_token_not_read", path=path, why=str(error))
        return ""
    if len(token) < SHORTEST_TOKEN:
        log.error("metrics_token_too_short", path=path, least=SHORTEST_TOKEN)
        return ""
    return token


def rejection(headers: Any, ring: KeyRing, gateway: Gateway, token: str) -> tuple[int, bytes] | None:
    """Return status and text if the caller may not read; the numbers refer to the module's docstring."""
    credentials = read_credentials(headers)
    if token and same(credentials.secret, token):  # (1)
        return None
    caller = ring.find(credentials.secret) if credentials.secret else None
    if caller is not None:
        return None if caller.may(Right.STATUS) else (403, b"this needs a key of scope status or admin\n")
    if is_loopback(gateway.metrics_listen):  # (2)
        if answers_to(credentials.host, gateway.allowed_hosts):
            return None
        return 403, b"Host does not name this machine: add the name to [gateway] allowed_hosts\n"
    if not ring.loaded:
        return 503, b"API keys are not loaded yet: Redis does not answer\n"
    if gateway.insecure and not ring.has_keys:  # (3)
        return None
    return 401, b"send the metrics token, or a key of scope status or admin, as `Authorization: Bearer ...`\n"
