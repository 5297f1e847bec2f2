"""One request's life, from a body that was read to the last byte sent.

It is an ASGI application of its own, returned by the route: the answer goes out without a framework response
in between, and the client's leaving is seen at once, streaming or not. Whichever ends first, the work or the
client, ends the other. What is said to the client is the dialect's business (`Call.reply`); when, and through
which worker, is decided here.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from litestar.types import Receive, Scope, Send
from msgspec import Struct

from cortex.functions.servers import server_of, slots
from cortex.platform.api_keys import ANONYMOUS, Principal
from cortex.platform.flights import Flights
from cortex.platform.record import Instance
from cortex.router.activation.activator import Activator
from cortex.router.activation.choice import choose
from cortex.router.dialects import grammar
from cortex.router.dialects.chunks import Plain, Tokens
from cortex.router.dialects.errors import Dialect, DialectError, Fault, Kind, envelope
from cortex.router.dialects.relay import Stream
from cortex.router.dialects.worker_errors import fault_from_error, fault_from_worker
from cortex.router.directory import Target
from cortex.router.refusals import Cancelled, Refusal, UpstreamBroke, UpstreamSilent
from cortex.router.request.asking import must_take
from cortex.router.request.assemble import ASSEMBLED, Assembly, BadStream, asked_to_stream
from cortex.router.request.fitting import Settle
from cortex.router.request.journey import Journey, Journeys
from cortex.router.request.turns import Starts, Turn, Turns, Waiting
from cortex.router.request.upstream import Answer, Broken, Upstream
from cortex.router.tracing import Tracing
from cortex.router.view import View

T = TypeVar("T")

REPLAYS = 2
FIRST_KEEP_ALIVE_S, KEEP_ALIVE_S = 1.0, 5.0


class Reply(Protocol):
    """Says a worker's whole answer in the client's dialect. Raises BadAnswer."""

    def plain(self, body: bytes) -> Plain: ...


class StreamReply(Reply, Protocol):
    """Says a worker's stream in the client's dialect, too."""

    def stream(self, request_id: str | None = None) -> Stream: ...


class Call(Struct, frozen=True, kw_only=True):
    """A request that was understood: what to send to which of the worker's paths, and how to say its answer."""

    dialect: Dialect
    path: str
    body: bytes
    reply: Reply
    streams: StreamReply | None = None
    affinity: str | None = None
    settle: Settle | None = None
    """Makes the body for the instance that was chosen, where that one has a say in it."""


class Services:
    """What every exchange needs; made once."""

    def __init__(
        self,
        view: View,
        activator: Activator,
        flights: Flights,
        upstream: Upstream,
        journeys: Journeys,
        tracing: Tracing,
    ) -> None:
        self.view, self.activator, self.flights, self.upstream = view, activator, flights, upstream
        self.journeys, self.tracing = journeys, tracing
        self.turns, self.starts = Turns(), Starts()


class Exchange:
    """Serves one request for one function."""

    def __init__(
        self,
        services: Services,
        target: Target,
        call: Call,
        request_id: str,
        caller: Principal,
        *,
        asked: str = "",
        read_s: float = 0.0,
    ) -> None:
        self._services, self._target, self._function = services, target, target.function
        self._call, self._request_id = call, request_id
        self._stream = call.streams.stream(request_id) if call.streams else None
        notices = server_of(self._function).stops_when_client_leaves
        self._streams_anyway = self._stream is None and call.path in ASSEMBLED and not notices
        streams = self._stream is not None
        self.journey = Journey(
            request_id, self._function.id, asked or self._function.id, call.dialect, streams=streams, read_s=read_s
        )
        self._caller = caller
        self.journey.who = caller.name if caller.id != ANONYMOUS else ""
        self._cancelled = False
        self._trace: Mapping[str, str] = {}
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, unless the client leaves first."""
        self._send = send
        journey = self.journey
        tasks: list[asyncio.Task[None]] = []
        self._services.journeys.begun(journey)
        try:  # from here on, whatever breaks, the journey comes to its end
            self._trace = self._services.tracing.begun(journey, scope["headers"])
            work, gone = asyncio.create_task(self._serve()), asyncio.create_task(_left(receive))
            tasks = [work, gone]
            journey.cancel = lambda: self._cancel(work)
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                journey.left, journey.fault = True, Kind.CLIENT_GONE
                journey.status = journey.status or 499
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._services.journeys.over(journey)
        if not work.cancelled():
            work.result()

    async def _serve(self) -> None:
        try:
            await self._attempts()
        except Refusal as refusal:
            self.journey.why = refusal.message
            await self._refuse(refusal.fault())
        except DialectError as error:
            await self._refuse(error.fault)
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            self.journey.why = "cancelled by an operator"
            await self._refuse(Cancelled(f"this request was {self.journey.why}").fault())

    def _cancel(self, work: asyncio.Task[None]) -> None:
        """End the request from outside: its client is told so, and the worker stops."""
        self._cancelled = True
        work.cancel()

    async def _attempts(self) -> None:
        """Try instance after instance. What broke before its first byte is replayed, twice at most."""
        for replays_left in range(REPLAYS, -1, -1):
            with self._services.starts.waiting(self._function.id, self._caller.priority) as waiting:
                instance = self._chosen()
                if instance is None:
                    instance = await self._patiently(self._awaited(waiting))
                server = must_take(self._function, instance.server, self._call.dialect, self._call.body)
                with (
                    self._services.flights.aboard(self._function.id, instance.id),
                    self._turn_at(instance, slots(self._function, server)) as turn,
                ):
                    waiting.through()
                    if await self._served_by(instance, turn, last=not replays_left):
                        return

    async def _served_by(self, instance: Instance, turn: Turn, *, last: bool) -> bool:
        """Serve it from an instance when its turn comes. False when that broke before its first byte; Refusal, if this
        was the last try."""
        placed, journey = self._services.view.placed(instance.id), self.journey
        try:
            async with asyncio.timeout(self._function.request_timeout_s):
                if turn.waits:
                    began, journey.phase = time.monotonic(), "waiting"
                    await self._patiently(turn.come())
                    journey.queued_s += time.monotonic() - began
                journey.forwarded(instance.id, placed[1] if placed else "")
                await self._forward(instance)
                return True
        except TimeoutError:
            clock = f"{self._function.request_timeout_s:g} s"
            raise UpstreamSilent(f"'{self._function.id}' took longer than {clock}") from None
        except Broken as broken:
            self._services.view.suspect(instance.id)
            journey.broke(str(broken))
            if last:
                raise UpstreamBroke(f"the worker of '{self._function.id}' broke before it answered: {broken}") from None
            return False

    def _turn_at(self, instance: Instance, many: int | None) -> AbstractContextManager[Turn]:
        function, priority = self._function, self._caller.priority
        most = priority.share(function.queue)
        return self._services.turns.at(instance.id, many, priority, most=most, name=function.id)

    def _chosen(self) -> Instance | None:
        target = self._target
        ready = self._services.view.ready(target.function.id, target.revision)
        enough = target.function.target_concurrency
        return choose(ready, self._load, self._call.affinity, enough)

    def _load(self, instance: str) -> int:
        return self._services.flights.on(instance) + self._services.view.elsewhere(instance)

    async def _awaited(self, waiting: Waiting) -> Instance:
        """Wait for an instance to come up, and for those who go first, and return it."""
        began, journey = time.monotonic(), self.journey
        journey.cold, journey.phase = True, "waiting"
        try:
            while (instance := self._chosen()) is None:
                await self._services.activator.wait_until_ready(self._target, self._caller.priority)
                await waiting.clear()
        finally:
            journey.queued_s += time.monotonic() - began
        return instance

    async def _forward(self, instance: Instance) -> None:
        """Send the request to an instance and its answer to the client.

        Raises Broken before the worker's first byte, and DialectError for an answer that is none.
        """
        settle = self._call.settle
        body = self._call.body if settle is None else await self._patiently(settle(instance, self.journey.head))
        try:
            await self._send_on(instance, body)
        except DialectError as error:
            looser = grammar.loosened(body) if self._stumbled(error.fault) else None
            if looser is None:
                raise
            await self._send_on(instance, looser)

    def _stumbled(self, fault: Fault) -> bool:
        """Whether the worker refused the request for a schema it cannot make a grammar of, and nothing was said."""
        return not self.journey.pieces and grammar.complains(fault.message)

    async def _send_on(self, instance: Instance, body: bytes) -> None:
        streamed = asked_to_stream(body) if self._streams_anyway else None
        answer = await self._patiently(
            self._services.upstream.post(instance, self._call.path, body if streamed is None else streamed, self._trace)
        )
        try:
            if answer.status != 200:
                body = await self._patiently(answer.whole())
                raise DialectError(fault_from_worker(answer.status, body, answer.retry_after))
            if self._stream is not None:
                await self._relay(answer, self._stream)
                return
            body = await (answer.whole() if streamed is None else self._assembled(answer))
            now = time.monotonic()
            self.journey.piece(now)
            plain = self._call.reply.plain(body)
            self.journey.translate_s = time.monotonic() - now
            self._spent(plain.tokens)
            await self._send_whole(200, plain.body)
        finally:
            answer.close()

    async def _assembled(self, answer: Answer) -> bytes:
        """Read a plain answer out of a worker's stream. Raises Broken: nothing has been sent yet."""
        assembly = Assembly()
        try:
            async for chunk in answer.chunks():
                assembly.feed(chunk)
            return assembly.close()
        except BadStream as bad:
            if bad.error is None:
                raise Broken(str(bad)) from None
            raise DialectError(fault_from_error(bad.error)) from None

    async def _relay(self, answer: Answer, stream: Stream) -> None:
        """Say a worker's stream as it comes. The dialect knows a whole one from one that broke off."""
        chunks, journey, clock = answer.chunks(), self.journey, time.monotonic
        try:
            chunk = await self._patiently(anext(chunks, b""))
            while chunk and not stream.over:
                now = clock()
                journey.piece(now)
                said = stream.feed(chunk)
                journey.translate_s += clock() - now
                await self._say(stream, said)
                chunk = b"" if stream.over else await anext(chunks, b"")
        except Broken as broken:
            if not journey.pieces:
                raise
            reason = f"the worker of '{self._function.id}' broke off in its answer: {broken}"
            await self._say(stream, stream.fail(Fault(kind=Kind.WORKER_ERROR, message=reason)))
        else:
            await self._say(stream, stream.close())
        finally:
            self._spent(stream.tokens)
        if stream.fault is not None:
            journey.fault = stream.fault.kind
        await self._send_body(b"", last=True)

    async def _say(self, stream: Stream, said: bytes) -> None:
        """Send what the dialect says; a fault before anything was sent still gets its proper status."""
        if stream.fault is not None and not self.journey.head:
            raise DialectError(stream.fault)
        if said:
            await self._send_head()
            await self._send_body(said)

    # Towards the client.

    async def _patiently(self, work: Awaitable[T]) -> T:
        """Await work, telling a streaming client now and then that it is not forgotten."""
        if self._stream is None:
            return await work
        task = asyncio.ensure_future(work)
        patience = FIRST_KEEP_ALIVE_S
        try:
            while not (await asyncio.wait((task,), timeout=patience))[0]:
                await self._send_head()
                await self._send_body(self._stream.ping())
                patience = KEEP_ALIVE_S
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _refuse(self, fault: Fault) -> None:
        status = fault.status(self._call.dialect)
        self.journey.fault = fault.kind
        if self.journey.head and self._stream is not None:
            await self._send_body(self._stream.fail(fault), last=True)
            return
        body = envelope(fault, self._call.dialect, self._request_id)
        await self._send_whole(status, body, [(k.encode(), v.encode()) for k, v in fault.headers().items()])

    async def _send_head(self) -> None:
        if self.journey.head:
            return
        self.journey.head, self.journey.status = True, 200
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self._told(),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_body(self, body: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _send_whole(self, status: int, body: bytes, more: list[tuple[bytes, bytes]] | None = None) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self._told(),
            *(more or []),
        ]
        self.journey.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send_body(body, last=True)

    def _told(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that say how a request was served; each SDK looks for its own request id."""
        identity, journey = self._request_id.encode(), self.journey
        return [
            (b"x-request-id", identity),
            (b"request-id", identity),
            (b"x-cortex-function", self._function.id.encode("ascii", "replace")),
            (b"x-cortex-start", b"cold" if journey.cold else b"hot"),
            (b"x-cortex-queued-ms", str(round(journey.queued_s * 1000)).encode()),
            *([(b"x-cortex-instance", journey.instance.encode())] if journey.instance else []),
        ]

    def _spent(self, tokens: Tokens) -> None:
        journey = self.journey
        journey.tokens_in, journey.tokens_out, journey.cached = tokens.input, tokens.output, tokens.cached


async def _left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
