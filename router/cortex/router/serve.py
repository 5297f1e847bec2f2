"""Running the router: one process, or several that share one listener.

A router that hands over (`[gateway] hand_over`) ends at TERM, so that the next one can take over the listener that the
service manager holds, and leaves its worker processes to what they hold: they accept nothing more, finish, and end by
themselves after `drain_s` at the latest. Nobody waits for the longest stream.
"""

import multiprocessing
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from litestar import Litestar
from msgspec.structs import replace
from uvicorn.supervisors import Multiprocess

from cortex.functions.catalogue import CatalogueError
from cortex.functions.names import slug
from cortex.platform import log as logging
from cortex.platform import settings as settings_
from cortex.platform import standard_streams
from cortex.platform.parent_death import die_with_parent
from cortex.platform.serving import listener, systemd
from cortex.platform.settings import Settings, SettingsError, encode_env
from cortex.router.app import create_app
from cortex.router.metrics import worker_counts
from cortex.router.metrics.server import MetricsServer

log = structlog.get_logger()

BACKLOG = 2048
LAST_WORDS_S = 15.0
"""How much longer than `drain_s` a worker process takes at most that nobody waits for."""


class NotStarted(Exception):
    """No worker process could be started. The first that ended has said why."""


def serve(settings: Settings, workers: int) -> None:
    """Serve until TERM or Ctrl-C. Requests in flight get `[gateway] drain_s` to finish. Raises NotStarted."""
    folder = Path(settings.gateway.metrics_dir) / slug(settings.gateway.listen)
    try:
        worker_counts.begin(folder)
    except OSError as error:
        log.error("metrics_not_kept", folder=str(folder), why=str(error))
    gateway = replace(settings.gateway, metrics_dir=str(folder))
    with MetricsServer(settings, folder):
        handed_over = _serve(replace(settings, gateway=gateway), workers)
    if handed_over:
        sys.stderr.flush()
        os._exit(0)  # what Python does at an exit waits for child processes


def _serve(settings: Settings, workers: int) -> bool:
    """Serve until the end; return whether worker processes still finish what they hold."""
    gateway = settings.gateway
    host, _, port = gateway.listen.rpartition(":")
    host = host.strip("[]")
    # uvicorn hands its children an import string; they find the settings in the environment.
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
    # With a listener of the service manager's, clients wait during our restart instead of being refused.
    opened = systemd.listeners().get("http") or socket.create_server(
        (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
    )
    opened.set_inheritable(True)
    scheme = "https" if gateway.tls_cert else "http"
    log.info("router_listens", url=f"{scheme}://{gateway.listen}", workers=workers)
    if workers == 1 and not gateway.hand_over:
        _Single(config).run(sockets=[opened])
        return False
    parent = _Parent(config, sockets=[opened], hand_over=gateway.hand_over)
    parent.run()
    if parent.failed:
        raise NotStarted("the router's worker processes end as they start; the log says why")
    return gateway.hand_over


class _Single(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        systemd.notify("STOPPING=1")
        super().handle_exit(sig, frame)


class _Parent(Multiprocess):
    """Keeps worker processes alive. One that ends before any has served would end again: so does the parent."""

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


def worker() -> Litestar:
    """Build the application in a worker process. It does not outlive the process that started it for long."""
    standard_streams.protect()
    settings, _ = settings_.from_environment(None)
    if parent := multiprocessing.parent_process():
        die_with_parent()
        bound_s = settings.gateway.drain_s + LAST_WORDS_S
        threading.Thread(target=_end_after, args=(parent, bound_s), name="bound", daemon=True).start()
    logging.configure(settings.log)
    try:
        return create_app(settings)
    except (SettingsError, CatalogueError, OSError, UnicodeDecodeError) as error:
        log.error("router_not_started", why=str(error))
        sys.exit(1)


def _end_after(parent: multiprocessing.process.BaseProcess, bound_s: float) -> None:
    """End this process so long after its parent, come what may: nobody else watches it then."""
    parent.join()
    time.sleep(bound_s)
    os._exit(1)
