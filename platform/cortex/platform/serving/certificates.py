"""Certificates of listeners: whether a pair can be used, and a pair that is renewed under a running listener."""

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
"""How long the files may take to be read."""


def check(cert: str, key: str) -> None:
    """Raise SettingsError unless a certificate and its key belong together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(Path(cert).expanduser(), Path(key).expanduser())
    except (OSError, ssl.SSLError, ValueError) as error:
        raise SettingsError(f"the certificate {cert} with the key {key} cannot be used: {error}") from None


def following(app: Any, context: ssl.SSLContext, cert: str, key: str) -> Any:
    """Return the application, which follows a certificate for as long as it lives."""

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
    """Take a renewed certificate into a context, for ever. One that does not stand leaves the old one in force."""
    looks, seen = BlockingCalls(READ_S, hint="is its mount hung?"), _marks(cert, key)

    def load() -> None:
        check(cert, key)  # a pair that is half renewed must not break the context
        context.load_cert_chain(cert, key)

    while True:
        await (pause() if pause else asyncio.sleep(LOOK_S))
        try:
            marks = await looks.look(cert, "mark", partial(_marks, cert, key))
            if marks == seen:
                continue
            await looks.look(cert, "load", load)
        except (SettingsError, OSError, ssl.SSLError) as error:
            log.warning("certificate_not_taken", why=str(error))
            continue
        seen = marks
        log.info("certificate_taken", path=cert)


def _marks(*paths: str) -> tuple[tuple[int, int, int], ...]:
    found = []
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 (a mark, not a path)
        except OSError:
            found.append((0, 0, 0))
            continue
        found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(found)
