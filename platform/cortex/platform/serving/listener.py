"""All listeners (router, agent, metrics port): limits, TLS and trusted proxies.

A running listener loads a certificate that is renewed on disk: new connections get it, and open ones continue.
"""

import asyncio
import contextlib
import functools
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from cortex.platform.serving import address
from cortex.platform.serving.certificates import load, with_reload
from cortex.platform.serving.connections import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER, Connections
from cortex.platform.serving.http_limits import HEAD_S, LimitedProtocol
from cortex.platform.serving.http_methods import with_head
from cortex.platform.settings import SettingsError

KEEP_ALIVE_S = 75
"""Idle time between two requests of a connection."""
TICK_S = 1.0
"""How often a server's main loop wakes: the date header has whole seconds."""
SPARE_DESCRIPTORS = 128
"""Descriptors for files, Redis and agents, in addition to connections."""
MOST_DESCRIPTORS = 65536
"""A process raises its limit of open files to this, if permitted."""


class Listener(uvicorn.Config):
    """A uvicorn configuration with connection limits, certificate reload and HEAD."""

    connections: Connections

    def load(self) -> None:
        """Load the application, in the serving process."""
        super().load()
        self.loaded_app = with_head(self.loaded_app)
        if self.is_ssl and self.ssl is not None:
            self.loaded_app = with_reload(self.loaded_app, self.ssl, str(self.ssl_certfile), str(self.ssl_keyfile))

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return the loop factory; with TLS, its loops limit a handshake to HEAD_S."""
        factory = super().get_loop_factory()
        return functools.partial(_tls_loop, factory) if factory is not None and self.is_ssl else factory


class Server(uvicorn.Server):
    """uvicorn's server with a main loop that wakes once a second, or to exit. uvicorn's wakes ten times a second."""

    _wake: Callable[[], object] | None = None

    async def main_loop(self) -> None:
        """Keep the date header current until the server should exit."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._wake = functools.partial(loop.call_soon_threadsafe, woken.set)
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await woken.wait()
        self._wake = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit in order; at a second Ctrl-C at once."""
        super().handle_exit(sig, frame)
        self.exit()

    def exit(self) -> None:
        """Exit in order. Any thread may call it."""
        self.should_exit = True
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has exited
                self._wake()


def _tls_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    loop: Any = factory()
    loop.create_server = functools.partial(loop.create_server, ssl_handshake_timeout=HEAD_S)
    typed_loop: asyncio.AbstractEventLoop = loop
    return typed_loop


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
    """Return the configuration for an application. Raises SettingsError for an unusable certificate.

    `most` and `most_per_peer` bound the connections of each process; proxies are exempt from the second.
    """
    host, port = address.split(listen)
    if bool(cert) != bool(key):
        raise SettingsError("only one of tls_cert and tls_key is set: set both")
    if cert:
        load(cert, key)
        rest |= {"ssl_certfile": str(Path(cert).expanduser()), "ssl_keyfile": str(Path(key).expanduser())}
    listener = Listener(
        app,
        host=host,
        port=port,
        http=LimitedProtocol,
        interface="asgi3",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=KEEP_ALIVE_S,
        **rest,
    )
    listener.connections = Connections(min(most, _connection_limit()), most_per_peer, proxies)
    return listener


def _connection_limit() -> int:
    """Return the connections that the descriptor limit allows; each may need a second one to a worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, (soft - SPARE_DESCRIPTORS) // 2)


async def accepts(host: str, port: int, *, within_s: float) -> bool:
    """Wait until a server accepts connections at an address. False after `within_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.close()
                    return True
                await asyncio.sleep(0.02)
    return False
