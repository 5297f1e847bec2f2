"""A worker's activity, from its metrics and its connections."""

import asyncio
import subprocess
import sys

import pytest
from aiohttp import web

from cortex.platform.workers import activity
from cortex.platform.workers.activity import connections, look, requests_running, tokens

CONNECTS = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))):
    print("connected", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("metrics", "running"),
    [
        (b'vllm:num_requests_running{model_name="m"} 2.0\nvllm:num_requests_waiting{model_name="m"} 1.0\n', 3),
        (b"# HELP x\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n", 1),
        (b'vllm:num_requests_running{model_name="m"} 0.0\n', 0),
        (b"http_requests_total 7\n", None),
        (b"", None),
    ],
)
def test_the_request_count_is_read_from_an_engines_metrics(metrics: bytes, running: int | None) -> None:
    assert requests_running(metrics) == running


@pytest.mark.parametrize("count", [b"1e999", b"1.2.3", b"e"])
def test_an_invalid_count_raises_value_error(count: bytes) -> None:
    with pytest.raises(ValueError, match=r"count|float"):
        requests_running(b"llamacpp:requests_processing " + count + b"\n")


def connected(port: int) -> "subprocess.Popen[bytes]":
    """A process that has a connection to a port, until its standard input ends."""
    other = subprocess.Popen([sys.executable, "-c", CONNECTS, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout
    other.stdout.readline()
    return other


async def test_the_agents_own_connections_do_not_count() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, own = await asyncio.open_connection("127.0.0.1", port)
    before = connections(port)
    other = await asyncio.to_thread(connected, port)

    assert (before, connections(port)) == (0, 1)
    await asyncio.to_thread(other.communicate)
    own.close()
    server.close()


async def test_a_silent_worker_has_no_request_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "LOOK_S", 0.1)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    view = await look(f"http://127.0.0.1:{port}", ["key"])

    assert view.running is None
    server.close()


async def test_metrics_are_requested_with_the_key_that_the_worker_accepts() -> None:
    async def metrics(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer earlier":
            return web.Response(status=401)
        return web.Response(text="vllm:num_requests_running 2.0\nvllm:prompt_tokens_total 7\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    view, counts = await look(url, ["current", "earlier"]), await tokens(url, ["current", "earlier"])
    stranger = await look(url, ["current"])
    await runner.cleanup()

    assert (view.running, counts) == (2, (b"7",))
    assert stranger.running is None
