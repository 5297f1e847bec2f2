"""Every listener has a time limit for TLS handshakes and a limit of connections."""

import asyncio
import contextlib
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvicorn

from cortex.platform.serving import listener
from tests.support.stack import eventually, free_port


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Never called: no request comes."""


async def time_until_closed(port: int) -> float:
    """Connect, send nothing, and return after how many seconds the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = asyncio.get_running_loop().time()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return asyncio.get_running_loop().time() - began


def test_a_client_without_a_tls_handshake_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 0.5)
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    port = free_port()
    config = listener.config(
        app, f"127.0.0.1:{port}", cert=str(tmp_path / "cert"), key=str(tmp_path / "key"), lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, what="the listener")
        took = asyncio.run(time_until_closed(port))
    finally:
        server.should_exit = True
        thread.join()

    assert took < 9


def test_an_idle_server_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "TICK_S", 3600.0)
    server = listener.Server(listener.config(app, f"127.0.0.1:{free_port()}", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started, what="the listener")

    server.exit()
    thread.join(10)

    assert not thread.is_alive()
    server.exit()  # of no effect after the end


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_exits_at_a_signal(signal_number: signal.Signals) -> None:
    program = """if True:
        import asyncio
        from cortex.platform.serving import listener

        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            print("up", flush=True)
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            print("down", flush=True)

        listener.TICK_S = 3600.0
        listener.Server(listener.config(app, "127.0.0.1:0", lifespan="on")).run()
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        first = server.stdout.readline()
        server.send_signal(signal_number)
        rest = server.communicate(timeout=20)[0]

    assert (first, rest) == (b"up\n", b"down\n")


def test_the_connection_limit_follows_the_descriptor_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))

    config: Any = listener.config(app, "127.0.0.1:1")

    assert config.connections.most == (1024 - listener.SPARE_DESCRIPTORS) // 2
