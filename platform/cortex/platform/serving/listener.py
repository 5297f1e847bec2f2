"""What every listener has in common (router, agent, metrics port): limits, TLS, and whom it believes about clients.

A certificate that is renewed on disk is taken into the running listener: new connections get the new one, and those
that are open go on.
"""

import asyncio
import functools
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from cortex.platform.serving.certificates import check, following
from cortex.platform.serving.connections import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER, Connections
from cortex.platform.serving.http_limits import HEAD_S, LimitedProtocol
from cortex.platform.settings import SettingsError

KEEP_ALIVE_S = 75
"""Between two requests of one connection."""
SPARE_DESCRIPTORS = 128
"""What a process opens beside its connections: files, Redis, agents."""
MOST_DESCRIPTORS = 65536
"""A process raises its own limit of open files to this, where it may."""


class Listener(uvicorn.Config):
    """A configuration with limits of its own, whose certificate follows its files."""

    connections: Connections

    def load(self) -> None:
        """Load it, in the process that serves."""
        super().load()
        if self.is_ssl and self.ssl is not None:
            self.loaded_app = following(self.loaded_app, self.ssl, str(self.ssl_certfile), str(self.ssl_keyfile))

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return what makes the loop: with TLS, one that gives a handshake no more time than a head."""
        factory = super().get_loop_factory()
        return functools.partial(_hasty_loop, factory) if factory is not None and self.is_ssl else factory


def _hasty_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    loop: Any = factory()
    loop.create_server = functools.partial(loop.create_server, ssl_handshake_timeout=HEAD_S)
    made: asyncio.AbstractEventLoop = loop
    return made


def config(
    app: Any,
    listen: str,
    *,
    cert: str = "",
    key: str = "",
    proxies: Sequence[str] = (),
    most: int = MAX_CONNECTIONS,
    most_per_peer: int = MAX_CONNECTIONS_PER_PEER,
    **rest: Any,
) -> uvicorn.Config:
    """Return how to serve an application. Raises SettingsError for a certificate that cannot be used.

    `most` and `most_per_peer` bound the connections of each process; proxies are exempt from the second.
    """
    host, _, port = listen.rpartition(":")
    if bool(cert) != bool(key):
        raise SettingsError("a certificate needs its key, and a key its certificate: give tls_cert and tls_key")
    if cert:
        check(cert, key)
        rest |= {"ssl_certfile": str(Path(cert).expanduser()), "ssl_keyfile": str(Path(key).expanduser())}
    made = Listener(
        app,
        host=host.strip("[]"),
        port=int(port),
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=KEEP_ALIVE_S,
        **rest,
    )
    made.connections = Connections(min(most, _room()), most_per_peer, proxies)
    return made


def _room() -> int:
    """Return how many connections the descriptors of a process allow; each may need another to a worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, (soft - SPARE_DESCRIPTORS) // 2)
