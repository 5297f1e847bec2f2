"""The answer to one request, on its way to the client: keep-alives while the client waits, then a stream, a whole body
or an error. The dialect encodes it; what it becomes is the exchange's decision.
"""

import asyncio
from collections.abc import Callable

from cortex.platform.api_keys import Principal, Right
from cortex.router.dialects.core.errors import Dialect, in_client_terms
from cortex.router.dialects.core.stream import EVENTS, Stream
from cortex.router.errors import RequestError
from cortex.router.http_answer import Client, error_answer, id_headers
from cortex.router.request_record import RequestRecord

FIRST_KEEP_ALIVE_S, KEEP_ALIVE_S = 1.0, 5.0


class ClientAnswer:
    """Writes one answer. Its `stream` is None for an answer that is sent whole, and may change until `has_begun`."""

    __slots__ = (
        "_caller", "_dialect", "_keep_alive", "_record", "_why_waiting", "client", "dropped", "has_begun", "stream",
    )  # fmt: skip

    def __init__(
        self, request_record: RequestRecord, caller: Principal, dialect: Dialect, stream: Stream | None, dropped: str
    ) -> None:
        """`dropped` names the fields that no worker gets."""
        self.client: Client
        self.stream, self.dropped, self.has_begun = stream, dropped, False
        self._record, self._caller, self._dialect = request_record, caller, dialect
        self._keep_alive: asyncio.TimerHandle | None = None
        self._why_waiting: Callable[[], str] | None = None

    @property
    def is_for_operator(self) -> bool:
        """Whether its errors name hosts and instances."""
        return self._caller.may(Right.STATUS)

    def resume_pings(self, why_waiting: Callable[[], str]) -> None:
        """Send keep-alives to a streaming client from now on, while it waits for the first piece of its answer.
        `why_waiting` returns the reason that they give, or ""."""
        if self.stream is not None and self._keep_alive is None:
            self._why_waiting = why_waiting
            self._ping_after(FIRST_KEEP_ALIVE_S)

    def stop_pings(self) -> None:
        """Send no more keep-alives."""
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = self._why_waiting = None  # else it would be a cycle of references

    def _ping_after(self, seconds: float) -> None:
        self._keep_alive = asyncio.get_running_loop().call_later(seconds, self._ping)

    def _ping(self) -> None:
        if self.stream is not None and self._why_waiting is not None:
            self._begin()
            self.client.write(self.stream.ping(self._why_waiting()))
            self._ping_after(KEEP_ALIVE_S)

    def start_stream(self) -> None:
        """Send the head, unless a keep-alive has. No keep-alives follow: the answer's pieces do."""
        if self._keep_alive is not None:
            self.stop_pings()
        if not self.has_begun:
            self._begin()

    async def end_stream(self, stream: Stream) -> None:
        """End the client's stream. One that failed and cannot tell it ends with its connection: it must not look
        complete."""
        if stream.fault is not None and not stream.tells_errors:
            self.client.abort()
        else:
            await self.client.end()

    async def send_whole(self, body: bytes) -> None:
        """Send a whole answer."""
        self._record.status = 200
        identity = id_headers(self._record.id)
        await self.client.send(200, [(b"content-type", b"application/json"), *identity, *self._headers()], body)

    async def reject(self, error: RequestError, limit_field: str) -> None:
        """Send an error: as the stream's last event once the stream has begun, else as a whole answer. `limit_field` is
        the client's name for its output limit."""
        self.stop_pings()  # none may begin a stream while the key's share is settled
        record, dialect = self._record, self._dialect
        fault = in_client_terms(error.fault(operator=self.is_for_operator), dialect, limit_field)
        if self.has_begun and self.stream is not None:
            record.reject(200, fault.kind, error.reason)
            self.client.write(self.stream.fail(fault))
            await self.end_stream(self.stream)
            return
        record.reject(fault.status(dialect), fault.kind, error.reason)
        await error_answer(fault, dialect, record.id, [*self._headers(), *error.headers]).send(self.client)

    def _begin(self) -> None:
        """Send the head of a stream once."""
        if self.has_begun:
            return
        self.has_begun, self._record.status = True, self._record.status or 200
        headers = [
            (b"content-type", EVENTS if self.stream is None else self.stream.media_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *id_headers(self._record.id),
            *self._headers(),
        ]
        self.client.start(200, headers)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers on how the request was served."""
        record, function = self._record, self._record.function.encode("ascii", "replace")
        return [
            (b"x-cortex-function", function),
            (b"x-cortex-start", record.start.encode()),
            (b"x-cortex-queued-ms", str(round(record.queued_s * 1000)).encode()),
            *([(b"x-cortex-context", b"restored %d" % record.restored)] if record.restored else []),
            *([(b"x-cortex-instance", record.instance.encode())] if record.instance else []),
            *([(b"x-cortex-substitute", function)] if record.substitute_for else []),
            *([(b"x-cortex-dropped", self.dropped.encode())] if self.dropped else []),
        ]
