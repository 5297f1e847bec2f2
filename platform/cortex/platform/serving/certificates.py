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


def check(cert: str, key: str) -> None:
    """Raise SettingsError unless a certificate and its key belong together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(Path(cert).expanduser(), Path(key).expanduser())
    except (OSError, ssl.SSLError, ValueError) as error:
        raise SettingsError(f"the certificate {cert} with the key {key} cannot be used: {error}") from None


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
    """Load a renewed certificate into a context, until cancelled. An invalid pair leaves the old one active."""
    calls, loaded = BlockingCalls(READ_S, hint="is its mount hung?"), _marks(cert, key)

    def load() -> None:
        check(cert, key)  # a half-renewed pair must not break the context
        context.load_cert_chain(cert, key)

    while True:
        await (pause() if pause else asyncio.sleep(LOOK_S))
        try:
            marks = await calls.look(cert, "mark", partial(_marks, cert, key))
            if marks == loaded:
                continue
            await calls.look(cert, "load", load)
        except (SettingsError, OSError, ssl.SSLError) as error:
            log.warning("certificate_rejected", why=str(error))
            continue
        loaded = marks
        log.info("certificate_loaded", path=cert)


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
