"""Store responses, and generate them in the background: `/v1/responses` with state.

A plan says what a request continues and what is stored of its answer. The answer is written before the end of it is
sent, so that a client's next request finds it. A response in the background is a task of this worker: its client may
leave. It holds a lease in Redis while it runs, by which other workers see that it is alive, or cancel it. A response
without a lease and without an end has failed: its router died.

Values are encrypted under the caller's API key, so requests without one store nothing.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.api_keys import ANONYMOUS, Principal
from cortex.platform.cancel import cancel_tasks
from cortex.platform.registry import RecordUnavailable
from cortex.platform.response_cipher import ResponseCipher
from cortex.platform.response_record import MOST_TURNS, ResponseRecord, Write
from cortex.router.access import batch_pass
from cortex.router.access.auth import Headers, read_credentials
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.responses import stored
from cortex.router.dialects.responses.answer import Failure, Status
from cortex.router.dialects.responses.request import Reply
from cortex.router.dialects.responses.stored import ENDS, Items, Recording, State, Stored
from cortex.router.errors import RecordIsAway, RequestError, ResponseNotFound, TooManyRuns
from cortex.router.http_answer import Answering, Client, PassingClient, json_answer
from cortex.router.request.incoming import Incoming, unique_id
from cortex.router.request.intake import Body, Intake

log = structlog.get_logger()

MOST_RUNS = 16
"""Responses in the background of one key, per router worker."""
SHARE = 4
"""One response with its input may have 1/SHARE of the bytes of a key."""
WATCH_S = 1.0
RENEWAL_S = 2 * WATCH_S
"""How long a response without a lease is given to renew it, before it counts as failed."""
STALL_S = 5.0
"""How long a client that does not read its stream may hold up a response in the background, in all."""
MOST_REFERENCED = 20
"""The most stored responses whose items one request may refer to."""
CANCEL_S, LOOK_S = 5.0, 0.1
"""How long a cancellation waits for another worker, and how often it looks."""
OFF = ": answers are not stored, [gateway] responses_ttl_s is 0"
NO_KEY = ": answers are stored under the caller's API key, and this request has none"
STOPPED = "the router stopped before this response was complete"
DIED = "the router that made this response died before it was complete"


class Plan:
    """How the answer to one request is stored. `items` is JSON: all items that its model reads; `own` are those of the
    request. `reply` is set when the request has been read."""

    def __init__(self, state: State, cipher: ResponseCipher, body: bytes, own: Items, items: bytes, held: Body) -> None:
        self.state, self.cipher, self.body, self.held = state, cipher, body, held
        self.own, self.items = own, items
        self.unique = unique_id()
        self.reply: Reply | None = None

    @property
    def id(self) -> str:
        return f"resp_{self.unique}"

    def response(self, status: Status, error: Failure | None = None) -> bytes:
        """Return the response without an answer."""
        assert self.reply is not None
        return msgspec.json.encode(self.reply.answer.response(status, [], error=error))

    def value(self, response: bytes) -> bytes:
        """Return what is stored."""
        return msgspec.json.encode({"response": msgspec.Raw(response), "items": msgspec.Raw(self.items)})


class _Run(Struct):
    """A response in the background."""

    task: "asyncio.Task[None]"
    is_cancelled: bool = False


class StoredResponses:
    """Stores and reads the responses of callers, and runs those in the background. Off with a lifetime of 0."""

    def __init__(self, record: ResponseRecord, intake: Intake) -> None:
        self.record, self._intake = record, intake
        self._runs: dict[tuple[str, str], _Run] = {}
        self._beginning: list[str] = []
        """The owners of those that have begun and are no run yet."""

    @property
    def is_on(self) -> bool:
        return self.record.ttl_s > 0

    @property
    def most_of_one(self) -> int:
        """Bytes that one response with its input, or a new conversation, may have."""
        return self.record.most_bytes // SHARE

    def cipher(self, headers: Headers, who: Principal) -> ResponseCipher | None:
        """Return the cipher of a caller; None: it has sent no API key (a batch worker has none), or nothing is
        stored."""
        secret = read_credentials(headers).secret
        if not self.is_on or not secret or who.id == ANONYMOUS or secret.startswith(batch_pass.PREFIX):
            return None
        return ResponseCipher(secret)

    # Before the answer.

    async def plan(self, request: Incoming, body: bytes) -> Plan | None:
        """Return the plan for a request; None: it has no state. Raises BadRequest, ResponseNotFound or RecordIsAway."""
        if not self.is_on:
            return None  # the dialect refuses fields that need stored answers
        state = await self._intake.work(len(body), stored.read_state, body)
        cipher = self.cipher(request.headers.items(), request.caller)
        if cipher is None:
            if state.needs_store:
                raise BadRequest("not supported" + NO_KEY, state.needs_store, Kind.UNSUPPORTED)
            return None
        if not (state.store or state.needs_store):
            return None
        context = await self._context(cipher, state)
        unique = unique_id()
        own = await self._intake.work(len(body), stored.items_of, body, unique)
        known = [*context, *await self._read_items(cipher, stored.references(context, own))]

        def read() -> tuple[bytes, bytes]:
            items = stored.join_items(context, own, known)
            continues = bool(context) or items != own
            return msgspec.json.encode(items), stored.stateless(body, items if continues else None)

        items, sent = await self._intake.work(len(body), read)
        size, most = len(items), self.most_of_one
        if size > most:
            raise BadRequest(
                f"the input and the items it continues have {size} bytes, and at most {most} are stored: begin a new"
                " conversation, or send store = false",
                "input",
            )
        held = Body(self._intake, request.caller.id)
        held.count(size)
        return Plan(state, cipher, sent, own, items, held)

    async def _context(self, cipher: ResponseCipher, state: State) -> Items:
        if state.previous_response_id:
            result = await self.find(cipher, state.previous_response_id, "previous_response_id")
            if stored.status_of(result.response) not in ENDS:
                raise BadRequest("this response is not complete yet", "previous_response_id")
            return await self._intake.work(result.size, stored.context_of, result)
        if state.conversation:
            members = await self.conversation(cipher, state.conversation)
            if len(members) >= MOST_TURNS:
                raise BadRequest(f"this conversation has {MOST_TURNS} turns: begin a new one", "conversation")
            return await self._items(members)
        return []

    async def _read_items(self, cipher: ResponseCipher, responses: Sequence[str]) -> Items:
        """Return all items of stored responses, as far as the caller has these. Raises BadRequest or RecordIsAway."""
        if len(responses) > MOST_REFERENCED:
            raise BadRequest(
                f"the items referenced here are of {len(responses)} responses, and at most {MOST_REFERENCED} are read:"
                " send previous_response_id, or the items themselves",
                "input",
            )
        items: Items = []
        for id in responses:
            with contextlib.suppress(ResponseNotFound):
                result = await self.find(cipher, id)
                items += await self._intake.work(result.size, stored.context_of, result)
        return items

    async def _items(self, members: list[bytes]) -> Items:
        """Return the items of a conversation: of its turns, which follow its head."""
        return await self._intake.work(sum(map(len, members)), _items, members)

    async def find(self, cipher: ResponseCipher | None, id: str, param: str | None = None) -> Stored:
        """Return a stored response. One whose router died has failed. Raises ResponseNotFound or RecordIsAway."""
        if cipher is None:
            raise ResponseNotFound(id, param, NO_KEY if self.is_on else OFF)
        with _mapped:
            result = await self._read(cipher, id, param)
            if stored.status_of(result.response) in ENDS or await self._is_running(cipher, id):
                return result
            await asyncio.sleep(RENEWAL_S)  # Redis may have lost the lease while it was away
            is_running = await self._is_running(cipher, id)
            result = await self._read(cipher, id, param)  # the end is written before the lease ends
            if stored.status_of(result.response) in ENDS or is_running:
                return result
            result = replace(result, response=msgspec.Raw(stored.with_status(result.response, "failed", DIED)))
            await self.record.write(cipher, id, msgspec.json.encode(result), "replace")
        return result

    async def _is_running(self, cipher: ResponseCipher, id: str) -> bool:
        return (cipher.owner, id) in self._runs or await self.record.runs(cipher, id)

    async def _read(self, cipher: ResponseCipher, id: str, param: str | None) -> Stored:
        value = await self.record.read(cipher, id) if id.startswith("resp_") else None
        if value is None:
            raise ResponseNotFound(id, param)
        return msgspec.json.decode(value, type=Stored)

    async def turns(self, cipher: ResponseCipher | None, id: str) -> Items:
        """Return the items of a conversation. Raises ResponseNotFound or RecordIsAway."""
        return await self._items(await self.conversation(cipher, id))

    async def items(self, cipher: ResponseCipher | None, id: str) -> Items:
        """Return the items that the model of a response has read. Raises ResponseNotFound or RecordIsAway."""
        result = await self.find(cipher, id)
        return await self._intake.work(result.size, stored.items_read, result)

    async def conversation(self, cipher: ResponseCipher | None, id: str) -> list[bytes]:
        """Return a conversation's head and its turns. Raises ResponseNotFound or RecordIsAway."""
        if cipher is None:
            raise ResponseNotFound(id, None, NO_KEY if self.is_on else OFF)
        with _mapped:
            members = await self.record.read_list(cipher, id) if id.startswith("conv_") else []
        if not members:
            raise ResponseNotFound(id)
        return members

    async def write(self, cipher: ResponseCipher, id: str, value: bytes, how: Write) -> bool:
        """Write a value. Raises RecordIsAway."""
        with _mapped:
            return await self.record.write(cipher, id, value, how)

    async def begin(self, plan: Plan) -> None:
        """Prepare a response in the background, which counts as a run from here on: its answering has to be called.
        Raises TooManyRuns or RecordIsAway."""
        owner = plan.cipher.owner
        if sum(own == owner for own, _ in self._runs) + self._beginning.count(owner) >= MOST_RUNS:
            raise TooManyRuns(MOST_RUNS)
        self._beginning.append(owner)
        try:
            with _mapped:
                await self.record.begin(plan.cipher, plan.id)
                await self.record.write(plan.cipher, plan.id, plan.value(plan.response("in_progress")), "set")
        except BaseException:
            self._beginning.remove(owner)
            raise

    # The answer.

    def answering(self, plan: Plan, answering: Answering, request_id: str) -> Answering:
        """Return what answers a request and stores the answer."""
        if not plan.state.store:
            return answering
        if not plan.state.background:

            async def saved(client: Client) -> None:
                keeper = Keeper(client, lambda response: self._keep(plan, response, "set"), plan.held.count)
                try:
                    await answering(keeper)
                finally:
                    await keeper.finish("cancelled")

            return saved

        async def begun(client: Client) -> None:
            detached, name = Detached(client if plan.state.stream else None), (plan.cipher.owner, plan.id)
            task = asyncio.create_task(self._make(plan, answering, detached))
            self._runs[name] = _Run(task)
            self._beginning.remove(plan.cipher.owner)
            task.add_done_callback(lambda _: self._runs.pop(name, None))
            if plan.state.stream:
                await detached.wait_for(task)
            else:
                await json_answer(200, plan.response("queued"), request_id).send(client)

        return begun

    async def _make(self, plan: Plan, answering: Answering, client: "Detached") -> None:
        """Generate a response in the background."""
        keeper = Keeper(client, lambda response: self._keep(plan, response, "replace"), plan.held.count)
        watch = asyncio.create_task(self._watch(plan))
        run = self._runs[plan.cipher.owner, plan.id]
        error: Failure | None = Failure("server_error", STOPPED)
        status: Status = "failed"
        try:
            await answering(keeper)
            error = keeper.failure or error
        except asyncio.CancelledError:
            if run.is_cancelled:
                status, error = "cancelled", None
        except Exception as broke:
            log.error("background_response_broke", kind=type(broke).__name__)
        finally:
            await cancel_tasks([watch])
            await keeper.finish(status, plan.response(status, error))
            with contextlib.suppress(RecordUnavailable):
                await self.record.end(plan.cipher, plan.id)

    async def _watch(self, plan: Plan) -> None:
        """Renew a lease, and cancel its response when another worker requests it."""
        while True:
            await asyncio.sleep(WATCH_S)
            with contextlib.suppress(RecordUnavailable):
                if await self.record.is_cancelled(plan.cipher, plan.id):
                    self._stop(plan.cipher, plan.id)

    def _stop(self, cipher: ResponseCipher, id: str) -> "asyncio.Task[None] | None":
        run = self._runs.get((cipher.owner, id))
        if run is None:
            return None
        if not run.is_cancelled:  # a second cancellation would interrupt the writing of its end
            run.is_cancelled = True
            run.task.cancel()
        return run.task

    async def cancel(self, cipher: ResponseCipher | None, id: str) -> Stored:
        """Cancel a response in the background, whichever worker runs it. Raises BadRequest, ResponseNotFound or
        RecordIsAway."""
        result = await self.find(cipher, id)
        assert cipher is not None
        if not msgspec.json.decode(result.response, type=_Background).background:
            raise BadRequest("only a response in the background can be cancelled", "response_id")
        await self.stop(cipher, id)
        deadline = time.monotonic() + CANCEL_S
        while stored.status_of(result.response) not in ENDS and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            result = await self.find(cipher, id)
        return result

    async def stop(self, cipher: ResponseCipher, id: str) -> None:
        """Cancel a response in the background, if it is running. Raises RecordIsAway."""
        if (task := self._stop(cipher, id)) is not None:
            await asyncio.wait([task])
            return
        with _mapped:
            await self.record.cancel(cipher, id)

    async def delete(self, cipher: ResponseCipher | None, id: str, kind: Literal["resp", "conv"]) -> None:
        """Delete a response, or a conversation. A response that is still streamed to its client is not stored at its
        end. Raises ResponseNotFound or RecordIsAway."""
        if cipher is None:
            raise ResponseNotFound(id, None, NO_KEY if self.is_on else OFF)
        if not re.fullmatch(rf"{kind}_[A-Za-z0-9]{{1,64}}", id):
            raise ResponseNotFound(id)
        with _mapped:
            if not await self.record.delete(cipher, id):
                raise ResponseNotFound(id)
        await self.stop(cipher, id)

    async def close(self) -> None:
        """End the responses in the background, when this worker stops."""
        await cancel_tasks([run.task for run in self._runs.values()])

    async def _keep(self, plan: Plan, response: bytes, how: Write) -> None:
        """Store an answer. While Redis is away the client gets it all the same."""
        try:
            await self.record.write(plan.cipher, plan.id, plan.value(response), how)
            if plan.state.conversation:
                turn = msgspec.json.encode([*plan.own, *stored.output_of(response)])
                await self.record.write(plan.cipher, plan.state.conversation, turn, "append")
        except RecordUnavailable as error:
            log.warning("response_not_stored", why=str(error))


def _items(members: list[bytes]) -> Items:
    """Return the items of a conversation: of its turns, which follow its head."""
    return [item for turn in members[1:] for item in msgspec.json.decode(turn, type=Items)]


def _failure(status: int, body: bytes) -> Failure:
    """Return the failure that an error's body tells, which may be a worker's own and say nothing."""
    value: Any = None
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = msgspec.json.decode(body)
    error = value.get("error") if isinstance(value, dict) else None
    code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
    return Failure(
        code if isinstance(code, str) and code else "server_error",
        message if isinstance(message, str) and message else f"the request ended with status {status}",
    )


class _Background(Struct):
    background: bool = False


class Keeper(PassingClient):
    """A client whose answer is stored before its end is sent. `finish` stores the part of one that broke off."""

    def __init__(self, client: Client, keep: Callable[[bytes], Awaitable[None]], count: Callable[[int], None]) -> None:
        """`count` counts bytes that are held for the client's key; it raises RequestError if that is too much."""
        super().__init__(client)
        self._keep, self._count, self._recording = keep, count, Recording()
        self._saving: asyncio.Future[Any] | None = None
        self.failure: Failure | None = None

    async def send(self, status: int, headers: Any, body: bytes) -> None:
        if status == 200:
            await self._save(body)
        else:
            self.failure = _failure(status, body)
        await self._client.send(status, headers, body)

    @property
    def write_chunk(self) -> None:
        return None  # the recording needs the events without framing

    def write(self, data: bytes) -> None:
        if self.failure is None:
            try:
                self._count(len(data))
                self._recording.feed(data)
            except RequestError as error:  # the client gets its answer all the same
                log.warning("response_not_stored", why=str(error))
                self.failure = Failure("server_error", f"the answer is not stored: {error}")
                self._recording = Recording()
        self._client.write(data)

    async def end(self) -> None:
        if (response := self._recording.response("incomplete")) is not None:
            await self._save(response)
        await self._client.end()

    async def finish(self, status: Status, otherwise: bytes | None = None) -> None:
        """Store what was streamed, or `otherwise`, if nothing is stored yet. Returns when it is written."""
        if self._saving is not None:
            await asyncio.wait([self._saving])
        elif (response := self._recording.response(status) or otherwise) is not None:
            await self._save(response)

    async def _save(self, response: bytes) -> None:
        """Store a response. A client that leaves meanwhile does not interrupt that; `finish` waits for it."""
        self._saving = asyncio.ensure_future(self._keep(response))
        await asyncio.shield(self._saving)


class Detached:
    """The client of a response in the background: it passes everything on to the real one while that is connected.

    A client that does not read holds the response up for `STALL_S` in all; then it is cut off, and may poll."""

    def __init__(self, client: Client | None) -> None:
        self._client, self._left = client, asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._patience_s, self._stalled = STALL_S, 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._resume: Callable[[], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.is_lost = False
        if client is not None:
            client.on_lost = self._lose

    def _lose(self) -> None:
        resume, self._client, self._resume = self._resume, None, None
        self._end_stall()
        self._left.set()
        if resume is not None:
            resume()

    def _begin_stall(self) -> None:
        if self._stall is None:
            self._stalled = self._loop.time()
            self._stall = self._loop.call_later(max(0.0, self._patience_s), self._cut_off)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
            self._patience_s -= self._loop.time() - self._stalled

    def _cut_off(self) -> None:
        if (client := self._client) is not None:
            client.on_lost = None
            self._lose()
            client.abort()

    async def wait_for(self, task: "asyncio.Task[None]") -> None:
        """Return when the task has ended or the real client has left."""
        left = asyncio.create_task(self._left.wait())
        try:
            await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_tasks([left])

    @property
    def on_writable(self) -> Callable[[], None] | None:
        return self._resume

    @on_writable.setter
    def on_writable(self, call: Callable[[], None] | None) -> None:
        if self._client is None:
            return
        self._resume, self._client.on_writable = call, self._go_on if call else None
        if call:
            self._begin_stall()
        else:
            self._end_stall()

    def _go_on(self) -> None:
        self._end_stall()
        if self._resume is not None:
            self._resume()

    @property
    def is_full(self) -> bool:
        return self._client is not None and self._client.is_full

    async def drain(self) -> None:
        if self._client and self._client.is_full:
            self._begin_stall()
            try:
                await self._client.drain()
            finally:
                self._end_stall()

    async def send(self, status: int, headers: Any, body: bytes) -> None:
        if self._client:
            await self._client.send(status, headers, body)

    def start(self, status: int, headers: Any) -> None:
        if self._client:
            self._client.start(status, headers)

    def write(self, data: bytes) -> None:
        if self._client:
            self._client.write(data)

    @property
    def write_chunk(self) -> Callable[[bytes], None] | None:
        return self._client.write_chunk if self._client else None

    async def end(self) -> None:
        if self._client:
            await self._client.end()

    def hold_back(self) -> None:
        """Do nothing: the request has been read."""

    def abort(self) -> None:
        if self._client:
            self._client.abort()


class _Mapped:
    """Maps the errors of the record."""

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RecordUnavailable):
            raise RecordIsAway(f"stored answers cannot be reached: {error}", retry_after=2) from None


_mapped = _Mapped()
