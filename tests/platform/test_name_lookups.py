"""A name that does not resolve holds up nothing but what needs that name."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvloop

from cortex.platform.bounded_resolver import Infos
from cortex.platform.name_lookups import NameLookups

SHORT_S = 0.2


@pytest.fixture
def resolve() -> Iterator[Callable[..., Infos]]:
    """A resolver for which `hangs.test` blocks and every other name is this machine."""
    over = threading.Event()

    def look_up(host: str, *rest: Any) -> Infos:
        if host == "hangs.test":
            over.wait()
        return list(socket.getaddrinfo("127.0.0.1", *rest))

    yield look_up
    over.set()


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    await writer.drain()
    writer.close()


@LOOPS
def test_a_name_that_hangs_leaves_other_names_and_the_executor_alone(
    run: Callable[..., Any], resolve: Callable[..., Infos]
) -> None:
    async def scene() -> tuple[set[str], str, str, int]:
        lookups = NameLookups(resolve, within_s=SHORT_S)
        lookups.install(asyncio.get_running_loop())
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        hung = [asyncio.create_task(asyncio.open_connection("hangs.test", port)) for _ in range(40)]
        async with server, httpx.AsyncClient(trust_env=False) as http:
            got = await http.get(f"http://other.test:{port}/")
            threaded = await asyncio.to_thread(lambda: "free")
            results = await asyncio.gather(*hung, return_exceptions=True)
        return {str(r) for r in results}, got.text, threaded, lookups.under_way()

    failures, text, threaded, threads = run(scene())

    assert text == "hello"
    assert threaded == "free"
    assert failures == {f"[Errno {socket.EAI_AGAIN}] no answer to the lookup of hangs.test"}
    assert threads == 1


@LOOPS
def test_addresses_are_not_looked_up(run: Callable[..., Any]) -> None:
    def refuse(*_: Any) -> Infos:
        raise AssertionError("an address was looked up")

    async def scene() -> str:
        NameLookups(refuse).install(asyncio.get_running_loop())
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            peer: str = writer.get_extra_info("peername")[0]
            writer.close()
        return peer

    assert run(scene()) == "127.0.0.1"


@LOOPS
def test_every_address_of_a_name_is_tried(run: Callable[..., Any]) -> None:
    def two(host: str, port: int, *rest: Any) -> Infos:
        return [*socket.getaddrinfo("127.0.0.9", port, *rest), *socket.getaddrinfo("127.0.0.1", port, *rest)]

    async def scene() -> str:
        NameLookups(two).install(asyncio.get_running_loop())
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection("both.test", server.sockets[0].getsockname()[1])
            peer: str = writer.get_extra_info("peername")[0]
            writer.close()
        return peer

    assert run(scene()) == "127.0.0.1"


async def test_a_name_that_does_not_exist_is_refused_as_the_resolver_refuses_it() -> None:
    def unknown(*_: Any) -> Infos:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(socket.gaierror, match="not known"):
        await NameLookups(unknown).getaddrinfo("nowhere.test", 80)
