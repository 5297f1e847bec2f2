"""Asking workers how they are: over real connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from cortex.platform.keys import FleetToken, host_token, worker_key
from cortex.router.activation import probe as probing
from cortex.router.activation.probe import Probe, Pulse, judge
from tests.support.factories import HOST, an_instance
from tests.support.stack import free_port

TOKEN = "a-token-of-the-fleet"
KEY = f"Bearer {worker_key(host_token(TOKEN, HOST), 'one')}"
OURS = {"object": "list", "data": [{"id": "org/model"}]}


@asynccontextmanager
async def a_worker(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/v1/models", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def pulse_at(url: str, folder: Path) -> Pulse:
    (folder / "token").write_text(TOKEN)
    token = FleetToken(folder / "token")
    probe = Probe(lambda i: token.worker_keys([i.host], i.id))
    try:
        return await probe.pulse(an_instance("one", url=url, host=HOST))
    finally:
        await probe.close()


async def ours(request: web.Request) -> web.StreamResponse:
    return web.json_response(OURS) if request.headers["Authorization"] == KEY else web.Response(status=401)


async def of_another_key(request: web.Request) -> web.StreamResponse:
    return web.Response(status=401)


async def of_another_model(request: web.Request) -> web.StreamResponse:
    return web.json_response({"data": [{"id": "org/other"}]})


async def unwell(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def elsewhere(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/"})


async def without_end(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" " * 65536)


@pytest.mark.parametrize(
    ("answer", "pulse"),
    [
        (ours, Pulse.WELL),
        (of_another_key, Pulse.GONE),
        (of_another_model, Pulse.GONE),
        (without_end, Pulse.GONE),
        (unwell, Pulse.SILENT),
        (elsewhere, Pulse.SILENT),
    ],
)
async def test_a_worker_is_known_by_its_key_and_its_model(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], pulse: Pulse, tmp_path: Path
) -> None:
    async with a_worker(answer) as url:
        assert await pulse_at(url, tmp_path) is pulse


async def test_a_port_that_is_closed_is_gone(tmp_path: Path) -> None:
    assert await pulse_at(f"http://127.0.0.1:{free_port()}", tmp_path) is Pulse.GONE


async def test_a_worker_that_does_not_answer_in_time_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "PROBE_S", 0.1)
    over = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    async with a_worker(late) as url:
        assert await pulse_at(url, tmp_path) is Pulse.SILENT
        over.set()


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"data": 1}', b"\xff\xfe", b'{"data": [{"id": "x"}]}'])
def test_what_does_not_list_the_function_is_not_it(body: bytes) -> None:
    assert judge(body, "org/model") is Pulse.GONE
