"""Serve one request, from its parsed body to the last byte sent.

The route returns an Exchange, which writes to the client's connection itself (`client_answer.py`), so a disconnect is
noticed at once, streaming or not. The dialect encodes the answer (`Call.reply`); the exchange decides when to send it,
and which worker serves the request.
"""

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NoReturn

from msgspec.structs import replace

from cortex.functions.catalogue import Substitute
from cortex.functions.servers import Server, max_concurrency
from cortex.platform import clock
from cortex.platform.api_keys import ANONYMOUS, Principal
from cortex.platform.record import Instance
from cortex.router.dialects import gate
from cortex.router.dialects.core import grammar
from cortex.router.dialects.core.chunks import Tokens
from cortex.router.dialects.core.errors import BadAnswer, Fault, Kind, WorkerRefusal
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.stop_strings import cut_at
from cortex.router.dialects.core.stream import Stream
from cortex.router.dialects.core.worker_errors import BREAKDOWNS, engine_died, fault_from_error, fault_from_worker
from cortex.router.errors import (
    SEE_WHY,
    Cancelled,
    NotReadyInTime,
    RequestError,
    RouterStops,
    UpstreamBroke,
    UpstreamSilent,
)
from cortex.router.fleet_view import FleetView
from cortex.router.http_answer import Client
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.request.adapters import AdapterLoads, check_adapter, with_adapter
from cortex.router.request.admission import Admission, Ticket
from cortex.router.request.assemble import ASSEMBLED, Assembly, BadStream, CutStream, streaming_request
from cortex.router.request.attendance import attend
from cortex.router.request.call import Call
from cortex.router.request.capability_checks import check_tools
from cortex.router.request.client_answer import ClientAnswer
from cortex.router.request.context_restores import ContextRestores
from cortex.router.request.context_window import Settle
from cortex.router.request.deadlines import Deadline, Deadlines
from cortex.router.request.deaths import Deaths, End, may_replay
from cortex.router.request.prompt_cache import HiddenCounts, SlotTable, slots_to_seat, with_salt, with_seat
from cortex.router.request.relay import Relay
from cortex.router.request.substitutes import Conversation, Substitutes
from cortex.router.request.suspects import Fingerprint, digest
from cortex.router.request.upstream import Answer, Broken, EngineFailed, Upstream
from cortex.router.request_record import RequestRecord, RequestRecords
from cortex.router.shutdown import stopping
from cortex.router.tracing import Tracing

Parse = Callable[[Target], Awaitable[Call]]
"""Reads the request for another target than it was read for. Raises what the first reading does."""

REPLAYS = 2
GENERATES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/infill"})
"""The paths of llama.cpp's server that work in a slot."""


class Outcome(enum.Enum):
    """What became of a request at an instance."""

    SERVED = enum.auto()
    BROKE = enum.auto()
    """The instance broke before its first byte."""
    CLOSED = enum.auto()
    """The instance is closing for another function's turn, and the request was not sent to it."""


class Exchanges:
    """What the exchanges of one router worker have in common."""

    def __init__(
        self,
        view: FleetView,
        catalogue: LiveCatalogue,
        admission: Admission,
        upstream: Upstream,
        deaths: Deaths,
        request_records: RequestRecords,
        tracing: Tracing,
        substitutes: Substitutes,
        adapters: AdapterLoads,
        restores: ContextRestores,
    ) -> None:
        self.view, self.catalogue, self.admission = view, catalogue, admission
        self.upstream, self.deaths, self.slots = upstream, deaths, SlotTable()
        self.request_records, self.tracing, self.substitutes = request_records, tracing, substitutes
        self.adapters, self.restores, self.deadlines = adapters, restores, Deadlines()


class Exchange:
    """Serves one request for one name, by the function that the name stands for when it is served."""

    def __init__(
        self,
        exchanges: Exchanges,
        target: Target,
        call: Call,
        request_id: str,
        caller: Principal,
        *,
        name: str = "",
        read_s: float = 0.0,
        parse: Parse | None = None,
        headers: Mapping[bytes, bytes] = MappingProxyType({}),
        conversation: Conversation | None = None,
    ) -> None:
        """`call` is the request as `parse` reads it for the target; without `parse` it fits every target. With a
        `conversation`, the substitute of its name may answer."""
        self._headers, self._exchanges, self._parse, self._call = headers, exchanges, parse, call
        stream = call.streams.stream(request_id) if call.streams else None
        self.target, self._name, self.priority = target, name or target.function.id, caller.priority
        self.request_record = RequestRecord(
            request_id, target.function.id, self._name, call.dialect, streams=stream is not None, read_s=read_s
        )
        self._client_answer = ClientAnswer(self.request_record, caller, call.dialect, stream, call.dropped)
        self._caller, self.is_batch = caller, caller.is_batch
        self.request_record.key = caller.id
        self.request_record.who = caller.name if caller.id != ANONYMOUS else ""
        self._cancelled: RequestError | None = None
        self._conversation, self._declined = conversation, False
        """`_declined`: the substitute cannot answer this request."""
        self._is_model_known = parse is None or exchanges.view.profile(target.base.id) is not None
        self._deaths = 0
        """Workers that died while they served the request."""
        self._start_s = 0.0
        """Seconds of the start timeout that the request has used."""
        self._trace: Mapping[str, str] = {}
        self._server: Server
        """What the instance runs that the request is sent to."""

    @property
    def affinity(self) -> str | None:
        """What requests that share a prefix have in common."""
        return self._call.affinity

    async def __call__(self, client: Client) -> None:
        """Serve the request until the client disconnects."""
        self._client_answer.client, request_record = client, self.request_record
        self._exchanges.request_records.begin(request_record)
        try:  # from here on, whatever breaks, the record of the request is finished
            self._trace = self._exchanges.tracing.start(request_record, self._headers)
            self._client_answer.resume_pings(self._why_waiting)
            await attend(request_record, self._serve(), client, self._cancel)
        finally:
            self._client_answer.stop_pings()
            self._exchanges.request_records.over(request_record)

    async def _serve(self) -> None:
        try:
            await self._attempts()
        except RequestError as error:
            await self._client_answer.reject(error, self._call.limit_field)
        except asyncio.CancelledError:
            reason = self._cancelled
            if reason is None and stopping() and not self._client_answer.client.is_lost:
                reason = RouterStops()
            if reason is None:
                raise
            await self._client_answer.reject(reason, self._call.limit_field)

    def _cancel(self, work: asyncio.Task[None]) -> None:
        """End the request from outside: its client gets an error, and the worker stops."""
        self._cancelled = self._cancelled or Cancelled()
        work.cancel()

    def give_way(self, error: RequestError) -> bool:
        """End a line of a batch, which is then sent again; False: its answer has begun, or it ends already."""
        request_record = self.request_record
        if request_record.cancel is None or request_record.pieces or self._cancelled is not None:
            return False
        self._cancelled = error
        request_record.cancel()
        return True

    async def _attempts(self) -> None:
        """Try instance after instance. A request that broke before its first byte is replayed, at most twice, and at
        most once if a worker died of it. One whose instance closes while it waits for a slot waits again as for a
        start, which is no attempt."""
        self._refuse_suspects()
        replays_left = REPLAYS
        while True:
            if replays_left < REPLAYS:
                await self.look_up()
            try:
                with self._exchanges.admission.ticket(self) as ticket:
                    instance = ticket.board() or await self._board_soon(ticket)
                    if instance is None and await self._substitute():
                        continue
                    if instance is None:
                        instance = await self._wait_for_start(ticket)
                        await self._read_for_known_model()
                    function = self.target.function
                    if self.target.has_adapter and not await self._wait_for_adapter(instance):
                        continue
                    self._server = check_tools(function, instance.server, self._call.dialect, self._call.body)
                    ticket.join_queue(instance.id, max_concurrency(function, self._server))
                    outcome = await self._serve_from(instance, ticket, last=not replays_left)
            except RequestError as error:
                is_deadly = isinstance(error, UpstreamBroke) and self._deaths > 0
                if is_deadly or not self.request_record.substitute_for or self._client_answer.has_begun:
                    raise
                self._declined = True  # the requested function decides then
                await self.look_up()
                self._client_answer.resume_pings(self._why_waiting)
                continue
            if outcome is Outcome.SERVED:
                if self._conversation is not None:
                    self._exchanges.substitutes.remember(self._conversation, function.id)
                return
            if outcome is Outcome.BROKE:
                replays_left -= 1

    async def _board_soon(self, ticket: Ticket) -> Instance | None:
        """Wait `within_s` for an instance that should be ready by then, if a substitute would answer otherwise."""
        substitute = self._possible_substitute()
        if substitute is None or not substitute[1].within_s:
            return None
        exchanges, target, within_s = self._exchanges, self.target, substitute[1].within_s
        function = target.base.id
        instances = [i for h in exchanges.view.fleet.records() for i in h.instances if i.function == function]
        expected_s = await exchanges.substitutes.ready_in_s(target, instances, clock.now())
        if expected_s is None or expected_s > within_s:
            return None
        self._client_answer.stop_pings()  # the head says which function answers
        try:
            async with asyncio.timeout(within_s):
                return await self._wait_for_start(ticket)
        except (TimeoutError, RequestError):
            return None
        finally:
            self._client_answer.resume_pings(self._why_waiting)

    def _possible_substitute(self) -> tuple[Target, Substitute] | None:
        """Return the function that may answer while the request's own is not ready; None: the request waits for that,
        because its name has no substitute, or that is not ready, or may not answer this conversation."""
        if self._conversation is None or self._declined:
            return None
        if self._client_answer.has_begun or self.request_record.substitute_for:
            return None
        substitute = self._exchanges.catalogue.substitute(self._name, self._caller)
        if substitute is None:
            return None
        target = substitute[0]
        if not self._exchanges.substitutes.may_answer(self._conversation, target.function.id):
            return None
        return substitute if self._exchanges.view.ready(target.base.id, target.revision) else None

    async def _substitute(self) -> bool:
        """Go on with the substitute, and have the request's own function started; False: there is none. An instance of
        the substitute that is gone when it is needed leaves the request to its own function."""
        if self.request_record.substitute_for:
            self._declined = True
            await self.look_up()
            return True
        substitute, own = self._possible_substitute(), self.target
        if substitute is None or self._parse is None:
            return False
        self._client_answer.stop_pings()  # the head says which function answers
        try:
            call = await self._parse(substitute[0])
        except RequestError:
            self._declined = True
            return False
        finally:
            self._client_answer.resume_pings(self._why_waiting)
        self._exchanges.admission.activator.warm(own)
        self._read_as(call)
        self.target = substitute[0]
        self.request_record.function, self.request_record.substitute_for = self.target.function.id, own.function.id
        self._refuse_suspects()
        return True

    async def _serve_from(self, instance: Instance, ticket: Ticket, *, last: bool) -> Outcome:
        """Serve the request from an instance as soon as it has a slot there. Raises RequestError when the last attempt
        breaks before its first byte."""
        function, view, deaths = self.target.function, self._exchanges.view, self._exchanges.deaths
        placed, request_record = view.place_of(instance.id), self.request_record
        try:
            with Deadline(self._exchanges.deadlines, function.request_timeout_s):
                if ticket.must_wait:
                    began, request_record.phase = time.monotonic(), "waiting"
                    await ticket.wait_for_slot()
                    request_record.queued_s += time.monotonic() - began
                    if view.is_closing(instance.id):
                        return Outcome.CLOSED
                request_record.forward(instance.id, placed[1] if placed else "", instance.path)
                self._exchanges.admission.in_flight.keep(instance.id, self._call.keep_s)
                with deaths.open_requests.track(instance.id, request_record):
                    await self._forward(instance)
                return Outcome.SERVED
        except TimeoutError:
            raise UpstreamSilent(f"'{function.id}' took longer than {function.request_timeout_s:g} s") from None
        except Broken as broken:
            view.give_up(instance.id) if isinstance(broken, EngineFailed) else view.suspect(instance.id)
            task = deaths.investigate(self._fingerprint(), instance, broken, earlier=self._deaths)
            loss = await asyncio.shield(task)
            self._deaths += loss.end in (End.BEFORE, End.DIED, End.HUNG)
            form = self._call.form
            can_replay = form is None or form.upload.may_be_sent_again
            again = not last and can_replay and may_replay(loss, self._deaths)
            request_record.broke(str(broken), replayed=again)
            if not again:
                public = f"the worker of '{function.id}' broke before it answered"
                raise UpstreamBroke(f"{public}: {broken}", public=public + SEE_WHY) from None
            # A head that is sent while the request waits names no dead instance.
            request_record.instance = request_record.host = request_record.path = ""
            return Outcome.BROKE

    def _refuse_suspects(self) -> None:
        """Raise Suspected if workers of the function that would answer died of requests like this one."""
        if self._exchanges.deaths.suspects:
            self._exchanges.deaths.admit(self._fingerprint())

    def _fingerprint(self) -> Fingerprint:
        caller, call = self._caller, self._call
        body = call.body if call.form is None else call.form.upload.sample
        return Fingerprint(
            key=caller.id,
            who=self.request_record.who,
            function=self.target.function.id,
            request=self.request_record.id,
            digest=digest(call.path, body),
        )

    async def _wait_for_start(self, ticket: Ticket) -> Instance:
        """Wait for an instance, and count the time."""
        self.request_record.cold = True
        with self._waiting():
            return await ticket.wait_for_start(self._start_s)

    async def _wait_for_adapter(self, instance: Instance) -> bool:
        """Wait until an instance has the function's adapter, and count the time as that of a start; False: the instance
        has left."""
        left_s = self.target.function.start_timeout_s - self._start_s
        with self._waiting():
            return await self._exchanges.adapters.wait(self.target, instance, left_s)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time as one of the start timeout and of the queue."""
        began, self.request_record.phase = time.monotonic(), "waiting"
        try:
            yield
        finally:
            waited_s = time.monotonic() - began
            self._start_s += waited_s
            self.request_record.queued_s += waited_s

    async def look_up(self) -> None:
        """Look the name up again, and read the request for what it stands for now.

        Raises FunctionNotFound or NotAllowed, what reading raises, or NotReadyInTime for a stream that has begun in a
        way that does not fit any more.
        """
        target = self._exchanges.catalogue.resolve_for(self._name, self._caller)
        before = self.target
        if target is before:
            return
        if (target.function.id, target.revision) != (before.function.id, before.revision) and self._parse:
            self._read_as(await self._parse(target))
        self.target = target
        self.request_record.function, self.request_record.substitute_for = target.function.id, ""

    async def _read_for_known_model(self) -> None:
        """Read the request again if it was read before its model was known: what a model cannot do is refused after a
        cold start as it is on a warm one. Raises what reading raises."""
        if self._is_model_known or self._parse is None:
            return
        self._is_model_known = self._exchanges.view.profile(self.target.base.id) is not None
        if self._is_model_known:
            self._read_as(await self._parse(self.target))

    def _read_as(self, call: Call) -> None:
        """Go on with another reading of the request. A client that has been sent the beginning of a stream is not
        sent another."""
        stream = call.streams.stream(self.request_record.id) if call.streams else None
        if self._client_answer.has_begun:
            if call.path != self._call.path or type(stream) is not type(self._client_answer.stream) or stream is None:
                raise NotReadyInTime(
                    f"the model {self._name[:200]!r} was changed while this stream waited for it: send "
                    "the request again",
                    retry_after=1,
                )
            stream.open()
        self._call, self._client_answer.stream, self._client_answer.dropped = call, stream, call.dropped

    async def _forward(self, instance: Instance) -> None:
        """Send the request to an instance and its answer to the client.

        Raises Broken before the worker's first byte, WorkerRefusal or BadAnswer.
        """
        if not self._call.path:
            await self._client_answer.send_whole(self._call.reply.plain(b"").body)
            return
        if self.target.has_adapter:
            check_adapter(self.target, instance)
        body = self._call.body if self._call.settle is None else await self._fit(instance, self._call.settle)
        if self._call.path in GENERATES:
            body = with_adapter(body, self.target, instance)
        # The request finds no prompt of another key in the worker's cache.
        send = self._send_to_seat if self._is_seated else self._send_with_salt
        try:
            await send(instance, body)
        except WorkerRefusal as error:
            looser = grammar.loosen_request(body) if body and self._refuses_schema(error.message) else None
            if looser is None:
                raise
            await send(instance, looser)

    async def _fit(self, instance: Instance, settle: Settle) -> Body:
        """Return the body for an instance. Raises ContextExceeded for a request that does not fit."""
        call = self._call
        fitted = await settle(instance)
        if self._client_answer.stream is not None:
            self._client_answer.stream.fit(fitted.max_tokens, fitted.input_tokens)
        elif call.fitted is not None:
            self._call = replace(call, reply=call.fitted(fitted.max_tokens, fitted.input_tokens))
        return fitted.body

    def _refuses_schema(self, message: str) -> bool:
        """Whether the worker refused a schema as a grammar and has sent no piece of an answer."""
        return not self.request_record.pieces and grammar.is_grammar_error(message)

    @property
    def _is_seated(self) -> bool:
        """Whether the request gets one of its server's slots."""
        call, function = self._call, self.target.function
        is_apart = bool(call.cache_salt) or function.keep_context
        return is_apart and self._server.isolation == "slots" and call.path in GENERATES

    async def _send_to_seat(self, instance: Instance, body: Body) -> None:
        """Send the request on, to a slot without a prompt of another key."""
        salt, function, view = self._call.cache_salt, self.target.function, self._exchanges.view
        number = slots_to_seat(function, self._server, self._call.answers)
        if function.keep_context:
            restores, record = self._exchanges.restores, self.request_record
            async with restores.seat(instance, number, salt, body, record) as seated_body:
                await self._send_on(instance, seated_body)
            return
        number = number if view.alone else None
        with self._exchanges.slots.seat(instance.id, number, salt, body, view.company) as seat:
            await self._send_on(instance, with_seat(body, seat))

    def _send_with_salt(self, instance: Instance, body: Body) -> Awaitable[None]:
        """Send the request on with the salt of its key. Where no server takes one, cached tokens are not reported."""
        salt = self._call.cache_salt
        if not salt:
            return self._send_on(instance, body)
        if self._server.isolation == "salt":
            return self._send_on(instance, with_salt(body, salt))
        return self._send_on(instance, body, HiddenCounts())

    async def _send_on(self, instance: Instance, body: Body, hidden: HiddenCounts | None = None) -> None:
        streamed = streaming_request(body) if self._streams_anyway() else None
        sent = body if streamed is None else streamed
        call = self._call
        answer = await self._exchanges.upstream.post(
            instance,
            call.path,
            call.form or sent,
            self._trace,
            keeps_chunked=self._server.keeps_connections,
            is_read_whole=streamed is None and self._client_answer.stream is None and call.media is None,
        )
        try:
            if answer.status != 200:
                await self._raise_failure(instance, answer)
            if call.form is not None:
                self._client_answer.dropped = gate.header(call.form.upload.form.dropped)
            if call.media is not None:
                self._client_answer.stream = call.media.stream(answer.content_type)
                self.request_record.streams = self._client_answer.stream is not None
            if self._client_answer.stream is not None:
                await self._relay(instance, answer, self._client_answer.stream, hidden)
                return
            body = await (answer.whole() if streamed is None else self._assemble(answer))
            if hidden is not None:
                body = hidden.whole(body)
            now = time.monotonic()
            self.request_record.piece(now)
            plain = self._call.reply.plain(body)
            self.request_record.translate_s = time.monotonic() - now
            self._spent(plain.tokens, hidden)
            await self._client_answer.send_whole(plain.body)
        finally:
            answer.close()

    async def _raise_failure(self, instance: Instance, answer: Answer) -> NoReturn:
        """Raise what a worker's error comes to: Broken when the worker is about to end, else WorkerRefusal.

        vLLM's front answers for some seconds after its engine died; a replay reaches another worker.
        """
        fault = fault_from_worker(answer.status, await answer.error(), answer.retry_after)
        if answer.status in BREAKDOWNS and engine_died(fault.message):
            raise EngineFailed(f"it answered {answer.status}: its engine has failed")
        if answer.status in BREAKDOWNS and not await self._exchanges.upstream.is_well(instance):
            raise EngineFailed(f"it answered {answer.status} and is not healthy")
        raise WorkerRefusal(fault)

    def _streams_anyway(self) -> bool:
        """Whether a plain request is streamed from the worker, which notices only then that its client has left."""
        if self._client_answer.stream is not None or self._call.path not in ASSEMBLED:
            return False
        return not self._server.stops_when_client_leaves

    def _chunks(self, answer: Answer) -> AsyncIterator[bytes]:
        return cut_at(answer.chunks(), self._call.cuts) if self._call.cuts else answer.chunks()

    async def _assemble(self, answer: Answer) -> bytes:
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
        request_record = self.request_record
        client_answer = self._client_answer
        start, cuts = client_answer.start_stream, self._call.cuts
        relay = Relay(client_answer.client, stream, request_record, start, hidden=hidden, cuts=cuts)
        try:
            await answer.pass_to(relay)
            relay.close()
        except Broken as broken:
            if not request_record.pieces:
                raise
            self._exchanges.deaths.investigate(self._fingerprint(), instance, broken, earlier=self._deaths)
            reason = f"the worker of '{self.target.function.id}' broke off in its answer"
            request_record.why = f"{reason}: {broken}"
            reason = request_record.why if self._client_answer.is_for_operator else reason + SEE_WHY
            relay.say(stream.fail(Fault(kind=Kind.WORKER_ERROR, message=reason)))
        except BadAnswer as unreadable:
            relay.say(stream.fail(unreadable.fault()))
        finally:
            self._spent(stream.tokens, hidden)
            request_record.rough_tokens = stream.rough_tokens
        if stream.fault is not None:
            request_record.fault = stream.fault.kind
        await self._client_answer.end_stream(stream)

    def _why_waiting(self) -> str:
        """Return why no host has room for the request; empty if one may have."""
        refusal = self._exchanges.admission.activator.refusal(self.target)
        return "" if refusal is None else refusal.fault(operator=self._client_answer.is_for_operator).message

    def _spent(self, tokens: Tokens, hidden: HiddenCounts | None) -> None:
        request_record = self.request_record
        request_record.tokens_in, request_record.tokens_out = tokens.input, tokens.output
        request_record.audio_s, request_record.characters = tokens.audio_s, tokens.characters
        request_record.images = tokens.images
        request_record.cached = tokens.cached if hidden is None else hidden.cached


def _stream_error(fault: Fault) -> Broken | WorkerRefusal:
    """Return the exception for an error that a worker sent as the first of its stream."""
    return EngineFailed("its engine has failed") if engine_died(fault.message) else WorkerRefusal(fault)
