"""HTTP to simulated workers: the part of aiohttp's ClientSession that cortex uses, over the simulated network.

A worker checks its key, lists its one model, reports how many requests it works on, and answers requests after a while
with the name of the function it runs. A connection breaks when the worker or its host ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from cortex.platform.workers import canary
from cortex.platform.workers.checkpoint_driver import CudaState
from cortex.router.request.worker_connections import Headers
from cortex.router.request.worker_response import ConnectionFailed, NotConnected, Sink
from tests.simulation.machine import Machine
from tests.simulation.network import Cut, Network
from tests.simulation.virtual_time import OUTSIDE, PROCESS, VirtualLoop, settle
from tests.simulation.worker import Worker

CONNECT_S = 5.0
CANARY = canary.TEXT.encode()
STREAM_WORDS = 4
CONTROL = ("/sleep", "/wake_up", "/is_sleeping")
JSON = {"Content-Type": "application/json"}


class Fabric:
    """All machines, and the network between them and the routers."""

    checks_keys = True
    """Whether workers check the keys of requests."""

    def __init__(self, loop: VirtualLoop, network: Network, machines: dict[str, Machine]) -> None:
        self.loop, self.network, self.machines = loop, network, machines
        self.service_s: Callable[[Worker, bytes], float] = lambda _worker, _body: 1.0
        self.counts_requests: Callable[[Worker], bool] = lambda _: True

    def worker_at(self, url: str) -> tuple[Machine, Worker | None]:
        """Return the machine and the worker at a URL such as `http://host-a:20000/v1/models`."""
        host, _, port = url.split("/")[2].partition(":")
        return self.machines[host], self.machines[host].at(int(port))


class Session:
    """Connections from one place."""

    def __init__(self, fabric: Fabric, place: str) -> None:
        self._fabric, self._place = fabric, place

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def get(self, url: str, *, headers: dict[str, str], timeout: Any = None, **_: Any) -> "_Call":
        """Request a page."""
        return _Call(_bounded(self._request("GET", url, headers, b""), timeout))

    def post(
        self, url: str, *, headers: dict[str, str], data: bytes = b"", json: Any = None, timeout: Any = None, **_: Any
    ) -> "_Call":
        """Send a request."""
        body = data if json is None else msgspec.json.encode(json)
        return _Call(_bounded(self._request("POST", url, headers, body), timeout))

    def request(
        self, method: str, url: str, *, headers: dict[str, str], json: Any = None, timeout: Any = None, **_: Any
    ) -> "_Call":
        """Send a request of a method."""
        body = b"" if json is None else msgspec.json.encode(json)
        return _Call(_bounded(self._request(method, url, headers, body), timeout))

    async def close(self) -> None:
        """Close all connections."""

    async def _request(self, method: str, url: str, headers: dict[str, str], body: bytes) -> "Response":
        fabric = self._fabric
        machine, _ = fabric.worker_at(url)
        outward = await self._leg(self._place, machine.name)
        if outward is Cut.REFUSED:
            raise _refused(url)
        if outward is Cut.SILENT:
            await asyncio.sleep(CONNECT_S)
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}")
        _, worker = fabric.worker_at(url)
        if worker is None:
            raise _refused(url)
        if worker.cuda is not CudaState.RUNNING:  # it does nothing until the driver lets it go on
            if b'"number"' in body:
                worker.machine.on_refusal(worker, self._place)
            await _until_running(worker)
        if url.partition("?")[0].endswith(CONTROL):  # an engine moves its memory and answers these one after the other
            while worker.alive and worker.moving:
                await _until_settled(worker)
        if worker.hung or not worker.alive:
            await _until_ended(worker)
            raise aiohttp.ServerDisconnectedError()
        if not worker.ready:
            raise _refused(url)
        status, pieces, work_s = self._answer(worker, method, url, headers, body)
        if worker.hung:  # on its way to a tier or back
            await _until_ended(worker)
            raise aiohttp.ServerDisconnectedError()
        response = Response(self, worker, status, pieces)
        response.begin(work_s, self._place if b'"number"' in body else "")
        if method == "GET" or url.partition("?")[0].endswith(CONTROL):
            await response.arrived[-1]
        back = await self._leg(machine.name, self._place)
        if isinstance(back, Cut):
            if back is Cut.SILENT:
                await _until_ended(worker)
            response.close()
            raise aiohttp.ServerDisconnectedError()
        return response

    def _answer(
        self, worker: Worker, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[bytes], float]:
        """Return the status, the body in pieces, and the seconds until the last of them."""
        path = "/" + url.split("/", 3)[3]
        if self._fabric.checks_keys and headers.get("Authorization") != f"Bearer {worker.key}":
            return 401, [b'{"error": "wrong key"}'], 0.0
        match method, path:
            case "GET", "/health":
                return 200, [b"{}"], 0.0
            case "GET", "/v1/models" if worker.asleep:
                return 503, [b"{}"], 0.0
            case "GET", "/v1/models":
                return 200, [msgspec.json.encode({"data": [{"id": worker.function.id}]})], 0.0
            case "GET", "/metrics":
                if not self._fabric.counts_requests(worker):
                    return 404, [b""], 0.0
                return 200, [b"llamacpp:requests_processing %d\n" % len(worker.open)], 0.0
            case "GET", "/is_sleeping":
                return 200, [msgspec.json.encode({"is_sleeping": worker.asleep})], 0.0
            case "POST", "/wake_up":
                return _moved(worker.wake())
            case "POST", _ if path.partition("?")[0] == "/sleep":
                return _moved(worker.sleep())
            case _ if worker.asleep:
                worker.machine.on_refusal(worker, self._place)
                return 503, [b'{"error": {"message": "this worker sleeps"}}'], 0.0
            case _ if CANARY in body:
                computed = f"{worker.function.id} {worker.revision}{' damaged' * worker.damaged}"
                return 200, [msgspec.json.encode({"choices": [{"message": {"content": computed}}]})], 0.05
            case _ if worker.damaged and b'"number"' in body:
                worker.machine.on_damage(worker)
                return 500, [b"{}"], 0.0
            case _ if b'"stream":true' in body:
                return 200, streamed(worker.function.id), self._fabric.service_s(worker, body)
            case _:
                answer = {"model": worker.function.id, "revision": worker.revision, "instance": worker.instance}
                return 200, [msgspec.json.encode(answer)], self._fabric.service_s(worker, body)

    async def _leg(self, sender: str, receiver: str) -> float | Cut:
        if sender == receiver:
            await asyncio.sleep(0.0001)
            return 0.0
        leg = self._fabric.network.leg(sender, receiver)
        if isinstance(leg, float):
            await asyncio.sleep(leg)
        elif leg is Cut.REFUSED:
            await asyncio.sleep(0.0005)
        return leg

    def reachable(self, worker: Worker) -> bool:
        """Whether the rest of an answer arrives."""
        return not self._fabric.network.is_cut(self._place, worker.machine.name)


class Connections:
    """The router's connections for requests: its own client, with its own errors."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def post(self, origin: str, path: str, body: bytes, headers: Headers, **_: object) -> "Response":
        """Send a request. Raises ConnectionFailed."""
        try:
            return await self._session.post(origin + path, headers=dict(headers), data=body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(str(error)) from error
        except aiohttp.ClientError as error:
            raise ConnectionFailed("Server disconnected") from error

    async def close(self) -> None:
        """Close all connections."""


class Response:
    """An answer, whose pieces come while the worker does the work."""

    def __init__(self, session: Session, worker: Worker, status: int, pieces: list[bytes]) -> None:
        self.status, self.headers, self.content = status, JSON, self
        self.content_length = len(b"".join(pieces))
        self._session, self._worker, self._pieces = session, worker, pieces
        self.arrived: list[asyncio.Future[bytes]] = [worker.loop.create_future() for _ in pieces]
        self._read = 0
        self._mark = object()

    def begin(self, work_s: float, client: str) -> None:
        """Let the worker begin. A client that closes the answer, or crashes, stops it."""
        worker = self._worker
        worker.when_ended(self._broke)
        PROCESS.get().ended.add_done_callback(lambda _: self.close(), context=OUTSIDE)
        if work_s:
            worker.open[self._mark] = client
        for number in range(len(self._pieces)):
            if work_s:
                worker.loop.outside(work_s * (number + 1) / len(self._pieces), self._arrive, number)
            else:
                self._arrive(number)

    def _arrive(self, number: int) -> None:
        worker, last = self._worker, number == len(self._pieces) - 1
        if worker.hung and self.status == 200 and self._mark in worker.open:
            return  # the end of the worker breaks it
        if last:
            worker.open.pop(self._mark, None)
        earlier = number == 0 or self.arrived[number - 1].done()  # no byte arrives before a lost one
        if earlier and not self.arrived[number].done() and self._session.reachable(worker):
            self.arrived[number].set_result(self._pieces[number])

    def _broke(self) -> None:
        self._worker.open.pop(self._mark, None)
        for piece in self.arrived:
            if not piece.done():
                piece.set_exception(aiohttp.ServerDisconnectedError())
                piece.exception()

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        while piece := await self.read(0):
            yield piece

    async def whole(self, most: int) -> bytes:
        """Return the body."""
        return b"".join([piece async for piece in self.iter_any()])

    async def pass_to(self, sink: Sink, most: int) -> None:
        """Pass the body on piece by piece."""
        async for piece in self.iter_any():
            sink.take(piece)
            if sink.over:
                return

    async def read(self, _: int) -> bytes:
        """Return the next piece of the body, and at its end nothing."""
        if self._read == len(self.arrived):
            return b""
        piece = await self.arrived[self._read]
        self._read += 1
        return piece

    def close(self) -> None:
        """Close the connection; the worker stops."""
        self._worker.open.pop(self._mark, None)
        for piece in self.arrived:
            if not piece.done():
                piece.cancel()


def _moved(takes_s: float | None) -> tuple[int, list[bytes], float]:
    """Return the answer of a worker that sleeps or wakes, or refuses to."""
    return (500, [b"{}"], 0.0) if takes_s is None else (200, [b"{}"], takes_s)


def streamed(function: str) -> list[bytes]:
    """Return a chat stream in pieces. Its text names the function, since a router puts the client's name for it into
    `model`."""

    def frame(delta: dict[str, str], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": function, "choices": [choice]}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    words = [frame({"content": f"{function} "}, None) for _ in range(STREAM_WORDS)]
    return [*words, frame({}, "stop") + b"data: [DONE]\n\n"]


class _Call:
    """A request that can be awaited, or entered."""

    def __init__(self, work: Coroutine[Any, Any, Response]) -> None:
        self._work = work
        self._response: Response | None = None

    def __await__(self) -> Generator[Any, Any, Response]:
        return self._work.__await__()

    async def __aenter__(self) -> Response:
        response = self._response = await self._work
        return response

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()


async def _bounded(work: Coroutine[Any, Any, Response], limits: Any) -> Response:
    total = getattr(limits, "total", None)
    if total is None:
        return await work
    async with asyncio.timeout(total):
        return await work


async def _until_ended(worker: Worker) -> None:
    ended: asyncio.Future[None] = worker.loop.create_future()
    worker.when_ended(lambda: settle(ended, None))
    with suppress(TimeoutError):
        await ended


async def _until_running(worker: Worker) -> None:
    running: asyncio.Future[None] = worker.loop.create_future()
    worker.when_running(lambda: settle(running, None))
    await running


async def _until_settled(worker: Worker) -> None:
    settled: asyncio.Future[None] = worker.loop.create_future()
    worker.when_settled(lambda: settle(settled, None))
    await settled


def _refused(url: str) -> aiohttp.ClientConnectorError:
    error = OSError(111, f"Connect call failed {url}")
    return aiohttp.ClientConnectorError(_KEY, error)


_KEY: Any = aiohttp.client_reqrep.ConnectionKey("worker", 0, False, True, None, None, None)
