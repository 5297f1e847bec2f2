"""Runs the router as one process, or as several that share one listener.

A router that hands over (`[gateway] hand_over`) exits at TERM, so that the next one can take over the service manager's
listener at once. Its worker processes accept no more connections, finish their requests and exit by themselves after
`drain_s` at the latest.
"""

import multiprocessing
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog
import uvicorn
from msgspec.structs import replace
from uvicorn.supervisors import Multiprocess

from cortex.functions.catalogue import CatalogueError
from cortex.functions.names import slug
from cortex.platform import log as logging
from cortex.platform import settings_file
from cortex.platform.process import garbage, standard_streams, unused_packages
from cortex.platform.process.parent_death import die_with_parent
from cortex.platform.serving import address, listener, systemd
from cortex.platform.settings import Settings, SettingsError
from cortex.platform.settings_file import encode_env
from cortex.router.batches.supervision import BatchWorker
from cortex.router.metrics import worker_counts
from cortex.router.metrics.server import MetricsServer

if TYPE_CHECKING:
    from cortex.router.dispatch import Dispatcher

log = structlog.get_logger()

BACKLOG = 2048
EXIT_GRACE_S = 15.0
"""How long after `drain_s` an orphaned worker process exits at the latest."""


class NotStarted(Exception):
    """No worker process could start. The first to exit has logged the reason."""


def serve(settings: Settings, workers: int) -> None:
    """Serve until TERM or Ctrl-C. Requests in flight get `[gateway] drain_s` to finish. Raises NotStarted."""
    folder = Path(settings.gateway.metrics_dir) / slug(settings.gateway.listen)
    try:
        worker_counts.prepare(folder)
    except OSError as error:
        log.error("metrics_not_stored", folder=str(folder), why=str(error))
    gateway = replace(settings.gateway, metrics_dir=str(folder))
    with MetricsServer(settings, folder), BatchWorker(settings):
        handed_over = _serve(replace(settings, gateway=gateway), workers)
    if handed_over:
        sys.stderr.flush()
        os._exit(0)  # a normal exit would wait for child processes


def _serve(settings: Settings, workers: int) -> bool:
    """Serve until TERM; return whether worker processes still finish their requests."""
    gateway = settings.gateway
    # uvicorn passes its children an import string; they read the settings from the environment.
    os.environ.update(encode_env(settings))
    config = listener.config(
        "cortex.router.serve:worker",
        gateway.listen,
        cert=gateway.tls_cert,
        key=gateway.tls_key,
        proxies=gateway.trusted_proxies,
        most=gateway.max_connections,
        most_per_peer=gateway.max_connections_per_peer,
        factory=True,
        workers=workers,
        backlog=BACKLOG,
        date_header=True,
        timeout_graceful_shutdown=int(gateway.drain_s),
    )
    # With the service manager's listener, clients wait during a restart instead of being refused.
    host, port = address.split(gateway.listen)
    listening = systemd.listeners().get("http") or address.create_server(host, port, backlog=BACKLOG)
    listening.set_inheritable(True)
    scheme = "https" if gateway.tls_cert else "http"
    log.info("router_listening", url=f"{scheme}://{gateway.listen}", workers=workers)
    if workers == 1 and not gateway.hand_over:
        _Single(config).run(sockets=[listening])
        return False
    parent = _Parent(config, sockets=[listening], hand_over=gateway.hand_over)
    parent.run()
    if parent.failed:
        raise NotStarted("the router's worker processes exit during startup; see the log for the reason")
    return gateway.hand_over


class _Single(listener.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        systemd.notify("STOPPING=1")
        super().handle_exit(sig, frame)


class _Parent(Multiprocess):
    """Restarts worker processes. If one exits before any has served, the parent exits too."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], *, hand_over: bool) -> None:
        super().__init__(config, sockets)
        self._hand_over = hand_over
        self._served = self.failed = False

    def keep_subprocess_alive(self) -> None:
        if not self._served and not self.should_exit.is_set():
            self.failed = any(p.exitcode is not None for p in self.processes)
            if self.failed:
                self.should_exit.set()
                return
            self._served = any(p.is_ready() for p in self.processes)
        if self._served:
            super().keep_subprocess_alive()

    def handle_term(self) -> None:
        systemd.notify("STOPPING=1")
        super().handle_term()

    def join_all(self) -> None:
        if self.failed or not self._hand_over:
            super().join_all()


def worker() -> "Dispatcher":
    """Build the application in a worker process, which exits soon after its parent. A parent does not import it."""
    garbage.collect_seldom()
    unused_packages.leave_out()
    from cortex.router.app import create_app

    standard_streams.protect()
    settings, _ = settings_file.from_environment(None)
    if parent := multiprocessing.parent_process():
        die_with_parent()
        bound_s = settings.gateway.drain_s + EXIT_GRACE_S
        threading.Thread(target=_end_after, args=(parent, bound_s), name="bound", daemon=True).start()
    logging.configure(settings.log)
    try:
        return create_app(settings)
    except (SettingsError, CatalogueError, OSError, UnicodeDecodeError) as error:
        log.error("router_not_started", why=str(error))
        sys.exit(1)


def _end_after(parent: multiprocessing.process.BaseProcess, bound_s: float) -> None:
    """Exit `bound_s` seconds after the parent has exited."""
    parent.join()
    time.sleep(bound_s)
    os._exit(1)
