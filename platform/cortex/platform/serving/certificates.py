"""Certificates of listeners: validation, and reload of a renewed pair in a running listener."""

import asyncio
import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.settings import SettingsError

log = structlog.get_logger()

LOOK_S = 2.0
READ_S = 10.0
"""Time limit for reading the files."""


def load(cert: str, key: str) -> ssl.SSLContext:
    """Return a server's context with a certificate and its key. Raises SettingsError unless they belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(Path(cert).expanduser(), Path(key).expanduser())
    except (OSError, ssl.SSLError, ValueError) as error:
        raise SettingsError(f"the certificate {cert} with the key {key} cannot be used: {error}") from None
    return context


def with_reload(app: Any, context: ssl.SSLContext, cert: str, key: str) -> Any:
    """Return the application with a task that reloads a renewed certificate during its lifespan."""

    async def with_certificate(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        task = asyncio.create_task(follow(context, cert, key))
        try:
            await app(scope, receive, send)
        finally:
            task.cancel()

    return with_certificate


async def follow(context: ssl.SSLContext, cert: str, key: str, *, pause: Callable[[], Any] | None = None) -> None:
    """Give new connections of a context the renewed certificate, until cancelled.

    An invalid pair leaves the old one active. A renewed pair gets a context of its own: a context that handshakes use
    has no key between the load of its certificate and the load of its key.
    """
    calls, loaded = BlockingCalls(READ_S, hint="is its mount hung?"), _marks(cert, key)
    while True:
        await (pause() if pause else asyncio.sleep(LOOK_S))
        try:
            marks = await calls.look(cert, "mark", partial(_marks, cert, key))
            if marks == loaded:
                continue
            renewed = await calls.look(cert, "load", partial(load, cert, key))
        except (SettingsError, OSError, ssl.SSLError) as error:
            log.warning("certificate_rejected", why=str(error))
            continue
        loaded = marks
        # OpenSSL calls this for each handshake, with or without a server name.
        context.sni_callback = partial(_switch, renewed)
        log.info("certificate_loaded", path=cert)


def _switch(renewed: ssl.SSLContext, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
    connection.context = renewed


def _marks(*paths: str) -> tuple[tuple[int, int, int], ...]:
    marks = []
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 (a mark, not a path)
        except OSError:
            marks.append((0, 0, 0))
            continue
        marks.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(marks)
