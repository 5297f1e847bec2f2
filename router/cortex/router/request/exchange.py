"""Serve one request, from its parsed body to the last byte sent.

An Exchange is an ASGI application that the route returns: the answer is sent without a framework response, and a
disconnect is noticed at once, streaming or not. The dialect encodes the answer (`Call.reply`); the exchange decides
when to send it, and which worker serves the request.
"""

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import NoReturn, Protocol, TypeVar

from litestar.types import Receive, Scope, Send
from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.servers import max_concurrency, server_of
from cortex.platform.api_keys import ANONYMOUS, Principal, Right
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Instance
from cortex.router.activation.activator import Activator
from cortex.router.activation.load_balancing import choose
from cortex.router.dialects.core import grammar
from cortex.router.dialects.core.chunks import Plain, Tokens
from cortex.router.dialects.core.errors import BadAnswer, Dialect, DialectError, Fault, Kind, envelope, in_client_terms
from cortex.router.dialects.core.stop_strings import cut_at
from cortex.router.dialects.core.stream import Stream
from cortex.router.dialects.core.worker_errors import (
    BREAKDOWNS,
    engine_died,
    fault_from_error,
    fault_from_worker,
    first_error,
)
from cortex.router.errors import SEE_WHY, Cancelled, NotReadyInTime, RequestError, UpstreamBroke, UpstreamSilent
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.request.admission import Admission, StartGate, StartWaiter, Ticket
from cortex.router.request.assemble import ASSEMBLED, Assembly, BadStream, CutStream, asked_to_stream
from cortex.router.request.attendance import attend
from cortex.router.request.capability_checks import check_tools
from cortex.router.request.context_window import Settle
from cortex.router.request.deaths import Deaths, End, may_replay
from cortex.router.request.prompt_cache import HiddenCounts, SlotTable, isolation, salted, seated, slots_to_seat
from cortex.router.request.request_record import RequestRecord, RequestRecords
from cortex.router.request.suspects import Fingerprint, digest
from cortex.router.request.upstream import Answer, Broken, EngineFailed, Upstream
from cortex.router.tracing import Tracing

T = TypeVar("T")

REPLAYS = 2
GENERATES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""The paths of llama.cpp's server that work in a slot."""
FIRST_KEEP_ALIVE_S, KEEP_ALIVE_S = 1.0, 5.0


class Outcome(enum.Enum):
    """What became of a request at an instance."""

    SERVED = enum.auto()
    BROKE = enum.auto()
    """The instance broke before its first byte."""
    CLOSED = enum.auto()
    """The instance is closing for another function's turn, and the request was not sent to it."""


class Reply(Protocol):
    """Translates a worker's whole answer into the client's dialect. Raises BadAnswer."""

    def plain(self, body: bytes) -> Plain: ...


class StreamReply(Reply, Protocol):
    """Translates a worker's stream too."""

    def stream(self, request_id: str | None = None) -> Stream: ...


class Call(Struct, frozen=True, kw_only=True):
    """A parsed request: the worker's path, the body to send, and the translation of the answer."""

    dialect: Dialect
    path: str
    body: bytes
    reply: Reply
    streams: StreamReply | None = None
    affinity: str | None = None
    cache_salt: str = ""
    """Whose prompts it may find in the worker's cache; empty: everyone's."""
    answers: int = 1
    """How many answers it requests."""
    dropped: str = ""
    """The value of the answer's `x-cortex-dropped` header."""
    settle: Settle | None = None
    """Fits the request to the chosen instance, if it may not fit."""
    fitted: Callable[[int | None, int | None], Reply] | None = None
    """Returns the reply for the output limit that the worker gets and the tokens of the prompt."""
    cuts: tuple[str, ...] = ()
    """Stop strings that cortex finds itself."""
    limit_field: str = "max_tokens"
    """The client's name for its output limit."""


class Services:
    """The services that all exchanges share."""

    def __init__(
        self,
        view: FleetView,
        activator: Activator,
        flights: InFlight,
        upstream: Upstream,
        request_records: RequestRecords,
        tracing: Tracing,
        directory: LiveCatalogue,
        deaths: Deaths,
    ) -> None:
        self.directory, self.deaths = directory, deaths
        self.view, self.activator, self.flights, self.upstream = view, activator, flights, upstream
        self.request_records, self.tracing = request_records, tracing
        self.turns, self.starts, self.slots = Admission(), StartGate(), SlotTable()


class Exchange:
    """Serves one request for one name, by the function that the name stands for when it is served."""

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
        understand: Callable[[Target], Awaitable[Call]] | None = None,
    ) -> None:
        """`understand` reads the request again for another target than it was read for; without it, the call does for
        all. It raises what the first reading does."""
        self._services, self._request_id, self._understand = services, request_id, understand
        self._call, self._stream = call, call.streams.stream(request_id) if call.streams else None
        self._target, self._function = target, target.function
        self.request_record = RequestRecord(
            request_id,
            self._function.id,
            asked or self._function.id,
            call.dialect,
            streams=self._stream is not None,
            read_s=read_s,
        )
        self._caller, self._is_operator = caller, caller.may(Right.STATUS)
        self.request_record.who = caller.name if caller.id != ANONYMOUS else ""
        self._cancelled = False
        self._deaths = 0
        """Workers that died while serving the request."""
        self._start_s = 0.0
        """Seconds of the start timeout that the request has used."""
        self._trace: Mapping[str, str] = {}
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request until the client disconnects."""
        self._send = send
        request_record = self.request_record
        self._services.request_records.begun(request_record)
        try:  # from here on, whatever breaks, the record of the request is finished
            self._trace = self._services.tracing.start(request_record, scope["headers"])
            await attend(request_record, self._serve(), receive, self._cancel)
        finally:
            self._services.request_records.over(request_record)

    async def _serve(self) -> None:
        try:
            await self._attempts()
        except RequestError as refusal:
            self.request_record.why = refusal.message
            await self._refuse(refusal.fault(operator=self._is_operator))
        except DialectError as error:
            await self._refuse(error.fault)
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            self.request_record.why = "cancelled by an operator"
            await self._refuse(Cancelled(f"this request was {self.request_record.why}").fault())

    def _cancel(self, work: asyncio.Task[None]) -> None:
        """End the request from outside: its client gets an error, and the worker stops."""
        self._cancelled = True
        work.cancel()

    async def _attempts(self) -> None:
        """Try instance after instance. What broke before its first byte is replayed, twice at most, and once at most
        where a worker died of it. What waited for a slot of an instance that is closed meanwhile waits as for a start:
        that is no try."""
        if self._services.deaths.suspects:
            self._services.deaths.admit(self._passenger())
        replays_left = REPLAYS
        while True:
            if self.request_record.tries:
                await self._look_up()
            priority = self._caller.priority
            with self._services.starts.waiting(self._function.id, priority) as waiting, ExitStack() as boarding:
                instance = self._board(boarding)
                if instance is None:
                    instance = await self._patiently(self._awaited(waiting, boarding))
                server = check_tools(self._function, instance.server, self._call.dialect, self._call.body)
                with self._turn_at(instance, max_concurrency(self._function, server)) as turn:
                    waiting.through()
                    outcome = await self._served_by(instance, turn, last=not replays_left)
            if outcome is Outcome.SERVED:
                return
            if outcome is Outcome.BROKE:
                replays_left -= 1

    async def _served_by(self, instance: Instance, turn: Ticket, *, last: bool) -> Outcome:
        """Serve the request from an instance as soon as it has a slot there. Raises RequestError when the last try
        breaks before its first byte."""
        placed, request_record = self._services.view.placed(instance.id), self.request_record
        try:
            async with asyncio.timeout(self._function.request_timeout_s):
                if turn.waits:
                    began, request_record.phase = time.monotonic(), "waiting"
                    await self._patiently(turn.wait_for_slot())
                    request_record.queued_s += time.monotonic() - began
                    if self._services.view.is_closing(instance.id):
                        return Outcome.CLOSED
                request_record.forwarded(instance.id, placed[1] if placed else "")
                with self._services.deaths.aboard.sent(instance.id, request_record):
                    await self._forward(instance)
                return Outcome.SERVED
        except TimeoutError:
            clock = f"{self._function.request_timeout_s:g} s"
            raise UpstreamSilent(f"'{self._function.id}' took longer than {clock}") from None
        except Broken as broken:
            view = self._services.view
            view.give_up(instance.id) if isinstance(broken, EngineFailed) else view.suspect(instance.id)
            task = self._services.deaths.lost(self._passenger(), instance, broken, earlier=self._deaths)
            loss = await self._patiently(asyncio.shield(task))
            self._deaths += loss.end in (End.BEFORE, End.DIED, End.HUNG)
            again = not last and may_replay(loss, self._deaths)
            request_record.broke(str(broken), replayed=again)
            if not again:
                public = f"the worker of '{self._function.id}' broke before it answered"
                raise UpstreamBroke(f"{public}: {broken}", public=public + SEE_WHY) from None
            request_record.instance = request_record.host = (
                ""  # a head that is sent while it waits names no dead instance
            )
            return Outcome.BROKE

    def _passenger(self) -> Fingerprint:
        caller, call = self._caller, self._call
        return Fingerprint(
            key=caller.id,
            who=self.request_record.who,
            function=self._function.id,
            request=self._request_id,
            digest=digest(call.path, call.body),
        )

    def _turn_at(self, instance: Instance, many: int | None) -> AbstractContextManager[Ticket]:
        function, priority = self._function, self._caller.priority
        most = priority.share(function.queue)
        return self._services.turns.at(instance.id, many, priority, most=most, name=function.id)

    def _chosen(self) -> Instance | None:
        target = self._target
        ready = self._services.view.ready(target.function.id, target.revision)
        enough = target.function.target_concurrency
        return choose(ready, self._load, self._call.affinity, enough)

    def _board(self, boarding: ExitStack) -> Instance | None:
        """Choose an instance and count the request as in flight in one step: otherwise a report in between could state
        that this router has seen a drain and has nothing in flight."""
        instance = self._chosen()
        if instance is not None:
            boarding.enter_context(self._services.flights.aboard(self._function.id, instance.id))
        return instance

    def _load(self, instance: str) -> int:
        return self._services.flights.on(instance) + self._services.view.elsewhere(instance)

    async def _awaited(self, waiting: StartWaiter, boarding: ExitStack) -> Instance:
        """Wait for an instance to start and for requests of higher priority, then count the request in flight on it.

        The start timeout covers the whole request, even if its function is edited meanwhile.
        """
        activator, request_record = self._services.activator, self.request_record
        began, used_s = time.monotonic(), self._start_s
        request_record.cold, request_record.phase = True, "waiting"
        place_at = ""
        try:
            with ExitStack() as place:
                while (instance := self._board(boarding)) is None:
                    if self._function.id != place_at:
                        place.close()
                        place.enter_context(activator.in_queue(self._function, self._caller.priority))
                        place_at = self._function.id
                        waiting.move_to(place_at)
                    deadline = began + self._function.start_timeout_s - used_s
                    await activator.wait_until_ready(self._target, deadline - time.monotonic())
                    await self._look_up()
                    try:
                        await asyncio.wait_for(waiting.clear(), deadline - time.monotonic())
                    except TimeoutError:
                        raise activator.late(self._function) from None
        finally:
            waited_s = time.monotonic() - began
            self._start_s += waited_s
            request_record.queued_s += waited_s
        return instance

    async def _look_up(self) -> None:
        """Look the name up again, and read the request for what it stands for now.

        Raises FunctionNotFound or NotAllowed, what reading raises, or NotReadyInTime for a stream that has begun in a
        way that does not fit any more.
        """
        target = self._services.directory.resolve_for(self.request_record.asked, self._caller)
        before = self._target
        if target is before:
            return
        if (target.function.id, target.revision) != (before.function.id, before.revision) and self._understand:
            self._read_as(await self._understand(target))
        self._target, self._function = target, target.function
        self.request_record.function = target.function.id

    def _read_as(self, call: Call) -> None:
        """Go on with another reading of the request. A client that has been sent the beginning of a stream is not
        sent another."""
        stream = call.streams.stream(self._request_id) if call.streams else None
        if self.request_record.head:
            if call.path != self._call.path or type(stream) is not type(self._stream) or stream is None:
                raise NotReadyInTime(
                    f"the model {self.request_record.asked[:200]!r} was changed while this stream waited for it: send "
                    "the request again",
                    retry_after=1,
                )
            stream.open()
        self._call, self._stream = call, stream

    async def _forward(self, instance: Instance) -> None:
        """Send the request to an instance and its answer to the client.

        Raises Broken before the worker's first byte, and DialectError for an answer that is none.
        """
        body = await self._fit(instance)
        try:
            await self._send_apart(instance, body)
        except DialectError as error:
            looser = grammar.loosen_request(body) if self._stumbled(error.fault) else None
            if looser is None:
                raise
            await self._send_apart(instance, looser)

    async def _fit(self, instance: Instance) -> bytes:
        """Return the body for an instance. Raises DialectError for a request that does not fit."""
        call = self._call
        if call.settle is None:
            return call.body
        fitted = await self._patiently(call.settle(instance))
        if self._stream is not None:
            self._stream.fit(fitted.max_tokens, fitted.input_tokens)
        elif call.fitted is not None:
            self._call = replace(call, reply=call.fitted(fitted.max_tokens, fitted.input_tokens))
        return fitted.body

    def _stumbled(self, fault: Fault) -> bool:
        """Whether the worker refused a schema as a grammar and has sent no piece of an answer."""
        return not self.request_record.pieces and grammar.is_grammar_error(fault.message)

    async def _send_apart(self, instance: Instance, body: bytes) -> None:
        """Send the request on, so that it finds no prompt of another key in the worker's cache."""
        salt, function, view = self._call.cache_salt, self._function, self._services.view
        if not salt:
            await self._send_on(instance, body)
            return
        match isolation(function, instance.server):
            case "salt":
                await self._send_on(instance, salted(body, salt))
            case "slots" if self._call.path in GENERATES:
                number = slots_to_seat(function, instance.server, self._call.answers, alone=view.alone)
                with self._services.slots.seat(instance.id, number, salt, body, view.company) as seat:
                    await self._send_on(instance, seated(body, seat))
            case _:
                await self._send_on(instance, body, HiddenCounts())

    async def _send_on(self, instance: Instance, body: bytes, hidden: HiddenCounts | None = None) -> None:
        streamed = asked_to_stream(body) if self._streams_anyway() else None
        answer = await self._patiently(
            self._services.upstream.post(instance, self._call.path, body if streamed is None else streamed, self._trace)
        )
        try:
            if answer.status != 200:
                await self._patiently(self._failed(instance, answer))
            if self._stream is not None:
                await self._relay(instance, answer, self._stream, hidden)
                return
            body = await (answer.whole() if streamed is None else self._assembled(answer))
            if hidden is not None:
                body = hidden.whole(body)
            now = time.monotonic()
            self.request_record.piece(now)
            plain = self._call.reply.plain(body)
            self.request_record.translate_s = time.monotonic() - now
            self._spent(plain.tokens, hidden)
            await self._send_whole(200, plain.body)
        finally:
            answer.close()

    async def _failed(self, instance: Instance, answer: Answer) -> NoReturn:
        """Raise what a worker's error comes to: Broken when the worker is about to end, else DialectError.

        vLLM's front answers for some seconds after its engine died; a replay reaches another worker.
        """
        fault = fault_from_worker(answer.status, await answer.error(), answer.retry_after)
        if answer.status in BREAKDOWNS and engine_died(fault.message):
            raise EngineFailed(f"it answered {answer.status}: its engine has failed")
        if answer.status in BREAKDOWNS and not await self._services.upstream.is_well(instance):
            raise EngineFailed(f"it answered {answer.status} and is not healthy")
        raise DialectError(fault)

    def _streams_anyway(self) -> bool:
        """Whether a plain request is streamed from the worker, which notices only then that its client has left."""
        if self._stream is not None or self._call.path not in ASSEMBLED:
            return False
        return not server_of(self._function).stops_when_client_leaves

    def _chunks(self, answer: Answer) -> AsyncIterator[bytes]:
        return cut_at(answer.chunks(), self._call.cuts) if self._call.cuts else answer.chunks()

    async def _assembled(self, answer: Answer) -> bytes:
        """Read a plain answer out of a worker's stream. Raises Broken for a cut one: nothing has been sent yet."""
        assembly = Assembly()
        try:
            async for chunk in self._chunks(answer):
                assembly.feed(chunk)
            return assembly.close()
        except CutStream as cut:
            raise Broken(str(cut)) from None
        except BadStream as bad:
            if bad.error is None:  # a healthy worker would send it again
                raise BadAnswer(f"the worker sent something that is not an answer: {bad}") from None
            raise _stream_error(fault_from_error(bad.error)) from None

    async def _relay(
        self, instance: Instance, answer: Answer, stream: Stream, hidden: HiddenCounts | None = None
    ) -> None:
        """Relay a worker's stream. The dialect tells a complete stream from a truncated one."""
        chunks, request_record, clock = self._chunks(answer), self.request_record, time.monotonic
        if hidden is not None:
            chunks = hidden.out_of(chunks)
        try:
            chunk = await self._patiently(anext(chunks, b""))
            if (fault := first_error(chunk)) and engine_died(fault.message):
                raise EngineFailed("its engine has failed")
            while chunk and not stream.over:
                now = clock()
                request_record.piece(now)
                output = stream.feed(chunk)
                request_record.translate_s += clock() - now
                await self._say(stream, output)
                chunk = b"" if stream.over else await anext(chunks, b"")
        except Broken as broken:
            if not request_record.pieces:
                raise
            self._services.deaths.lost(self._passenger(), instance, broken, earlier=self._deaths)
            reason = f"the worker of '{self._function.id}' broke off in its answer"
            request_record.why = f"{reason}: {broken}"
            reason = request_record.why if self._is_operator else reason + SEE_WHY
            await self._say(stream, stream.fail(Fault(kind=Kind.WORKER_ERROR, message=reason)))
        except BadAnswer as unreadable:
            await self._say(stream, stream.fail(unreadable.fault))
        else:
            await self._say(stream, stream.close())
        finally:
            self._spent(stream.tokens, hidden)
            request_record.rough_tokens = stream.rough_tokens
        if stream.fault is not None:
            request_record.fault = stream.fault.kind
        await self._send_body(b"", last=True)

    async def _say(self, stream: Stream, output: bytes) -> None:
        """Send what the dialect says; a fault before anything was sent still gets its proper status."""
        if stream.fault is not None and not self.request_record.head:
            raise DialectError(stream.fault)
        if output:
            await self._send_head()
            await self._send_body(output)

    # Towards the client.

    async def _patiently(self, work: Awaitable[T]) -> T:
        """Await work, with keep-alives to a streaming client."""
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
        fault = in_client_terms(fault, self._call.dialect, self._call.limit_field)
        status = fault.status(self._call.dialect)
        self.request_record.fault = fault.kind
        if self.request_record.head and self._stream is not None:
            await self._send_body(self._stream.fail(fault), last=True)
            return
        body = envelope(fault, self._call.dialect, self._request_id)
        await self._send_whole(status, body, [(k.encode(), v.encode()) for k, v in fault.headers().items()])

    async def _send_head(self) -> None:
        if self.request_record.head:
            return
        self.request_record.head, self.request_record.status = True, 200
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self._answer_headers(),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_body(self, body: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _send_whole(self, status: int, body: bytes, more: list[tuple[bytes, bytes]] | None = None) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self._answer_headers(),
            *(more or []),
        ]
        self.request_record.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send_body(body, last=True)

    def _answer_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers on how the request was served, with a request id for each SDK."""
        identity, request_record = self._request_id.encode(), self.request_record
        return [
            (b"x-request-id", identity),
            (b"request-id", identity),
            (b"x-cortex-function", self._function.id.encode("ascii", "replace")),
            (b"x-cortex-start", b"cold" if request_record.cold else b"hot"),
            (b"x-cortex-queued-ms", str(round(request_record.queued_s * 1000)).encode()),
            *([(b"x-cortex-instance", request_record.instance.encode())] if request_record.instance else []),
            *([(b"x-cortex-dropped", self._call.dropped.encode())] if self._call.dropped else []),
        ]

    def _spent(self, tokens: Tokens, hidden: HiddenCounts | None) -> None:
        request_record = self.request_record
        request_record.tokens_in, request_record.tokens_out = tokens.input, tokens.output
        request_record.cached = tokens.cached if hidden is None else hidden.cached


def _stream_error(fault: Fault) -> Broken | DialectError:
    """Return the exception for an error that a worker sent as the first of its stream."""
    return EngineFailed("its engine has failed") if engine_died(fault.message) else DialectError(fault)
