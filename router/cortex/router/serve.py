"""Running the router: one process, or several that share one listener."""

import multiprocessing
import os
import socket
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from litestar import Litestar
from msgspec.structs import replace
from uvicorn.supervisors import Multiprocess

from cortex.functions.names import slug
from cortex.platform import log as logging
from cortex.platform import settings as settings_
from cortex.platform.leash import die_with_parent
from cortex.platform.serving import listener, systemd
from cortex.platform.settings import Settings, encode_env
from cortex.router import tallies
from cortex.router.app import create_app
from cortex.router.metrics_port import MetricsPort

log = structlog.get_logger()

BACKLOG = 2048


def serve(settings: Settings, workers: int) -> None:
    """Serve until TERM or Ctrl-C. Requests in flight get `[gateway] drain_s` to finish."""
    folder = Path(settings.gateway.metrics_dir) / slug(settings.gateway.listen)
    try:
        tallies.clear(folder)
    except OSError as error:
        log.error("metrics_not_kept", folder=str(folder), why=str(error))
    gateway = replace(settings.gateway, metrics_dir=str(folder))
    with MetricsPort(settings, folder):
        _serve(replace(settings, gateway=gateway), workers)


def _serve(settings: Settings, workers: int) -> None:
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
        factory=True,
        workers=workers,
        backlog=BACKLOG,
        date_header=True,
        timeout_graceful_shutdown=int(gateway.drain_s),
        timeout_keep_alive=75,
    )
    # With a listener of the service manager's, clients wait during our restart instead of being refused.
    opened = systemd.listeners().get("http") or socket.create_server(
        (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
    )
    opened.set_inheritable(True)
    scheme = "https" if gateway.tls_cert else "http"
    log.info("router_listens", url=f"{scheme}://{gateway.listen}", workers=workers)
    if workers > 1:
        _Parent(config, sockets=[opened]).run()
    else:
        _Single(config).run(sockets=[opened])


class _Single(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        systemd.notify("STOPPING=1")
        super().handle_exit(sig, frame)


class _Parent(Multiprocess):
    def handle_term(self) -> None:
        systemd.notify("STOPPING=1")
        super().handle_term()


def worker() -> Litestar:
    """Build the application in a worker process. It does not outlive the process that started it."""
    if multiprocessing.parent_process() is not None:
        die_with_parent()
    settings, _ = settings_.from_environment(None)
    logging.configure(settings.log)
    return create_app(settings)
