"""Lookups of host names that delay only the code that needs the name.

asyncio looks names up in its default executor and uvloop in two threads of libuv's pool, so a few hung lookups block
all others. Here each name is looked up in its own thread, one lookup per name at a time, bounded in time and number
(`blocking_calls.py`). Addresses are not looked up.

Blocking code, such as RQ's worker and the CLI, uses `bounded_resolver.py`.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.bounded_resolver import LOOK_UP_S, Infos, is_address


class NameLookups:
    """The name lookups of one event loop. `resolve` blocks, like `socket.getaddrinfo`."""

    def __init__(self, resolve: Callable[..., Infos] | None = None, *, within_s: float = LOOK_UP_S) -> None:
        self._resolve = resolve
        self._looks = BlockingCalls(within_s)

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Infos:
        """Return a name's addresses as `loop.getaddrinfo` does. Raises socket.gaierror, also after the time limit."""
        if is_address(host):
            return socket.getaddrinfo(host, port, family, type, proto, flags)
        look_up = partial(self._resolve or socket.getaddrinfo, host, port, family, type, proto, flags)
        try:
            question = (port, int(family), int(type), proto, flags)
            return await self._looks.look(str(host), f"name {question}", look_up, question=question)
        except NoAnswer:
            raise socket.gaierror(socket.EAI_AGAIN, f"no answer to the lookup of {host}") from None

    def under_way(self) -> int:
        """Return the number of running lookups, each in its own thread."""
        return self._looks.under_way()

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Replace the name lookups of a loop, for all its connections."""
        connect = loop.create_connection

        async def create_connection(
            factory: Any, host: Any = None, port: Any = None, **options: Any
        ) -> tuple[Any, Any]:
            if host is None or is_address(host):
                return await connect(factory, host, port, **options)
            infos = await self.getaddrinfo(
                host,
                port,
                family=options.get("family", 0),
                type=socket.SOCK_STREAM,
                proto=options.get("proto", 0),
                flags=options.pop("flags", 0),
            )
            if options.get("ssl") and options.get("server_hostname") is None:
                options["server_hostname"] = host
            failure: OSError | None = None
            for address in dict.fromkeys(info[4][0] for info in infos):
                try:
                    return await connect(factory, address, port, **options)
                except OSError as error:
                    failure = failure or error
            raise failure or OSError(f"the name {host} has no address")

        # Set on this loop only; libraries call these methods whatever the loop's class.
        loop.getaddrinfo = self.getaddrinfo  # type: ignore[method-assign]
        loop.create_connection = create_connection  # type: ignore[method-assign,assignment]
