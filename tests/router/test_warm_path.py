"""What a warm request may cost, counted and not timed: calls to Redis, tasks, decoded chunks, calls and memory for each
chunk. A count that rises shows a change that a noisy clock hides."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import msgspec
import pytest
import redis
import uvicorn

from cortex.platform.serving import listener
from cortex.platform.serving.known_heads import KnownHeads
from cortex.platform.settings import Settings
from cortex.router.app import create_app
from cortex.router.dialects.chat.stream import ChatStream, Reply
from cortex.router.dialects.core import chunks
from cortex.router.request.relay import Relay
from cortex.router.request.worker_connections import WorkerConnection, WorkerConnections
from cortex.router.request.worker_response import WorkerResponse
from cortex.router.request_record import RequestRecord
from tests.bench import servers
from tests.bench.__main__ import Bench
from tests.support.incoming import ReadingClient
from tests.support.stack import free_port, own_redis
from tests.support.until import until

PLAIN = b'{"model":"bench/model","messages":[{"role":"user","content":"Hello!"}]}'
STREAM = b'{"model":"bench/model","stream":true,"messages":[{"role":"user","content":"Hello!"}]}'
CALLS_PER_CHUNK, CALLS_PER_WHOLE_CHUNK = 20, 4
"""Python functions that a chunk runs from the worker's connection to the client's."""
BYTES_PER_CHUNK = 64
"""Memory that is still held for each chunk after it was passed on."""


@asynccontextmanager
async def served(app: Any, port: int, *, lifespan: str = "off") -> AsyncIterator[None]:
    server = uvicorn.Server(listener.config(app, f"127.0.0.1:{port}", lifespan=lifespan))
    server.config.load()
    task = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit, server.force_exit = True, lifespan == "off"
        await task


@asynccontextmanager
async def a_router(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Yield the address of a router in this process whose worker is ready."""
    monkeypatch.setattr(gc, "freeze", lambda: None)  # this process goes on with other tests
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(servers, "PAUSE_S", 0)
    with own_redis(folder) as redis_url:
        bench = await asyncio.to_thread(Bench, folder, redis_url, ())
        bench.worker, port = free_port(), free_port()
        bench.say()
        settings = Settings(
            models_config=str(folder / "models.toml"),
            token_file=str(folder / "fleet.token"),
            redis=msgspec.convert({"url": redis_url}, type(Settings().redis)),
        )
        async with (
            served(servers.worker, bench.worker),
            served(create_app(settings), port, lifespan="on"),
        ):
            yield f"http://127.0.0.1:{port}/v1/chat/completions"


async def ask(http: aiohttp.ClientSession, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    async with http.post(url, data=body, headers=headers) as answer:
        text = await answer.read()
    assert answer.status == 200, text


@pytest.mark.parametrize("body", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_a_warm_request_makes_no_task_beside_its_own_and_no_call_to_redis(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[str] = []
    loop = asyncio.get_running_loop()

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> "asyncio.Task[Any]":
        if is_request(asyncio.current_task()):
            tasks.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **more)

    async with a_router(tmp_path, monkeypatch) as url, aiohttp.ClientSession() as http:
        await ask(http, url, body)
        calls: list[object] = []
        execute = redis.asyncio.Redis.execute_command

        def execute_counted(self: Any, *args: Any, **options: Any) -> Any:
            if is_request(asyncio.current_task()):
                calls.append(args)
            return execute(self, *args, **options)  # type: ignore[no-untyped-call]

        monkeypatch.setattr(redis.asyncio.Redis, "execute_command", execute_counted)
        loop.set_task_factory(make)
        for _ in range(20):
            await ask(http, url, body)
        loop.set_task_factory(None)

    assert (calls, tasks) == ([], [])


def is_request(task: "asyncio.Task[Any] | None") -> bool:
    """Whether this is the task in which a server handles a request."""
    return task is not None and "run_asgi" in task.get_coro().__qualname__  # type: ignore[union-attr]


# Chunks, from the worker's connection to the client's


class _Transport:
    """The worker's end of nothing."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _Deaf(ReadingClient):
    """Keeps nothing."""

    def write(self, data: bytes) -> None: ...


class Wire:
    """A worker's connection whose stream is relayed to a client."""

    def __init__(self) -> None:
        self.connection = WorkerConnection("http://w", Mock(spec=WorkerConnections, heads=KnownHeads()), 1 << 18)
        self.connection.connection_made(_Transport())  # type: ignore[arg-type]
        self.response: WorkerResponse = self.connection.send(b"", b"")
        self.client = client = _Deaf()
        record = RequestRecord("r", "f", "f", "chat", streams=True, read_s=0.0)
        stream = ChatStream(Reply(id="c", model="alias", usage_is_ours=True))
        self._relay = Relay(client, stream, record, lambda: None)
        record.status = 200
        self.connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._task = asyncio.ensure_future(self.response.pass_to(self._relay, 1 << 30))

    def send(self, chunk: bytes) -> None:
        self.connection.data_received(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    await asyncio.sleep(0)
    for chunk in servers.STREAM[:3]:
        wire.send(chunk)
    yield wire
    await wire.end()


def calls_of(run: Callable[[], None]) -> list[str]:
    """Return the Python functions that are called, in order."""
    calls: list[str] = []

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    gc.disable()  # a collection would run other tests' finalizers
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


async def test_a_chunk_runs_few_functions_and_no_coroutine_task_or_timer(wire: Wire) -> None:
    chunk = servers.STREAM[1]
    framed = b"%x\r\n%b\r\n" % (len(chunk), chunk)
    loop = asyncio.get_running_loop()
    scheduled = len(loop._ready), len(loop._scheduled)  # type: ignore[attr-defined]

    calls = calls_of(lambda: wire.connection.data_received(framed))[1:]

    assert len(calls) <= CALLS_PER_CHUNK, calls
    assert (len(loop._ready), len(loop._scheduled)) == scheduled  # type: ignore[attr-defined]


async def test_a_chunk_for_a_client_that_takes_chunks_is_not_parsed(wire: Wire) -> None:
    chunk = servers.STREAM[1]
    framed = b"%x\r\n%b\r\n" % (len(chunk), chunk)
    sent: list[bytes] = []
    wire.client.write_chunk = sent.append
    wire.connection.data_received(framed)

    calls = calls_of(lambda: wire.connection.data_received(framed))[1:]
    together = calls_of(lambda: wire.connection.data_received(framed * 5))[1:]

    assert len(calls) <= CALLS_PER_WHOLE_CHUNK, calls
    assert len(together) <= CALLS_PER_WHOLE_CHUNK + 2, together
    assert [len(data) for data in sent] == [len(sent[0])] * 2 + [len(sent[0]) * 5]


async def test_chunks_that_arrive_together_run_what_one_runs_but_for_the_parser(wire: Wire) -> None:
    chunk = servers.STREAM[1]
    framed = b"%x\r\n%b\r\n" % (len(chunk), chunk)

    one = calls_of(lambda: wire.connection.data_received(framed))
    five = calls_of(lambda: wire.connection.data_received(framed * 5))

    assert len(five) - len(one) <= 4 * 5, (one, five)


async def test_a_worker_has_ended_only_an_answer_that_it_completes_itself() -> None:
    def relay(*, cuts: tuple[str, ...] = ()) -> Relay:
        record = RequestRecord("r", "f", "f", "chat", streams=True, read_s=0.0)
        record.status = 200
        return Relay(_Deaf(), ChatStream(Reply(id="c", model="alias")), record, lambda: None, cuts=cuts)

    complete, broken, cut = relay(), relay(), relay(cuts=("word",))
    for sink in (complete, cut):
        sink.take(b"".join(servers.STREAM))
    broken.take(servers.STREAM[0])
    broken.take(b'data: {"error": {"message": "no"}}\n\n')

    assert [sink.over for sink in (complete, broken, cut)] == [True] * 3
    assert [sink.has_ended for sink in (complete, broken, cut)] == [True, False, False]


async def test_no_chunk_of_words_is_decoded(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(chunks, "decode_strict", decoded.append)

    for chunk in servers.STREAM[1:-3] * 10:
        wire.send(chunk)

    assert decoded == []


async def test_a_stream_of_any_length_holds_no_memory_for_its_chunks(wire: Wire) -> None:
    number, chunk = 2000, servers.STREAM[1]
    tracemalloc.start()
    try:
        wire.send(chunk)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(number):
            wire.send(chunk)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert (after - before) / number < BYTES_PER_CHUNK
