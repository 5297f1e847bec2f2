"""Whether a worker's port is open, and whether its health check reports that its engine has failed."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from msgspec.structs import replace

from cortex.platform.keys import HostToken
from cortex.platform.workers.probe import Probe, opens
from tests.support.factories import an_instance

Serve = Callable[[int], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server whose health check has a status; return its address."""
    runners: list[web.AppRunner] = []

    async def start(status: int) -> str:
        async def health(_: web.Request) -> web.Response:
            return web.Response(status=status)

        app = web.Application()
        app.router.add_get("/health", health)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runners[-1].addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def probe(tmp_path: Path) -> AsyncIterator[Probe]:
    (tmp_path / "token").write_text("a-token-of-this-test")
    probe = Probe(HostToken.of_fleet(tmp_path / "token", "a"))
    yield probe
    await probe.close()


@pytest.mark.parametrize(("status", "failed"), [(200, False), (503, True), (500, True), (404, False), (401, False)])
async def test_a_server_error_of_the_health_check_is_a_failed_engine(
    probe: Probe, serve: Serve, status: int, failed: bool
) -> None:
    instance = replace(an_instance(), url=await serve(status))

    assert await probe.fails_health_check(instance) is failed


async def test_a_worker_that_does_not_answer_has_not_said_that_its_engine_failed(probe: Probe, serve: Serve) -> None:
    unused = (await serve(200)).rpartition(":")[0] + ":9"

    assert await probe.fails_health_check(replace(an_instance(), url=unused)) is False


async def test_a_port_that_opens_is_seen_at_once_and_a_closed_one_at_the_end() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        closed = await opens(url, 0.05)
        watch = asyncio.create_task(opens(url, 30.0))
        await asyncio.sleep(0)
        server.listen()
        began = time.monotonic()
        opened = await watch

    assert (closed, opened) == (False, True)
    assert time.monotonic() - began < 10.0


async def test_a_port_is_found_by_an_ipv6_address() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert await opens(f"http://[::1]:{server.getsockname()[1]}", 0.0)
