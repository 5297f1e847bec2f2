"""One token-count request: listed, cancellable and timed like other requests."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from cortex.functions.spec import Function
from cortex.router.errors import Cancelled, RequestError, UpstreamSilent
from cortex.router.request.attendance import Work, attend
from cortex.router.request.http_answer import send_error, send_json
from cortex.router.request.request_record import RequestRecord, RequestRecords


class Count(Struct, frozen=True):
    """The number of tokens in a prompt, and whether it is an estimate."""

    tokens: int
    is_estimate: bool


class TokenCount:
    """Serves the request. `count` raises RequestError."""

    def __init__(
        self,
        request_records: RequestRecords,
        function: Function,
        request_record: RequestRecord,
        count: Callable[[], Awaitable[Count]],
    ) -> None:
        self._request_records, self._function, self._request_record, self._count = (
            request_records,
            function,
            request_record,
            count,
        )
        self._cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request until the client disconnects."""
        self._request_records.begun(self._request_record)
        try:
            await attend(self._request_record, self._serve(send), receive, self._cancel)
        finally:
            self._request_records.over(self._request_record)

    async def _serve(self, send: Send) -> None:
        timeout_s = self._function.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                count = await self._count()
            await self._answer(send, count)
        except TimeoutError:
            await self._reject(send, UpstreamSilent(f"'{self._function.id}' took longer than {timeout_s:g} s to count"))
        except RequestError as error:
            await self._reject(send, error)
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            await self._reject(send, Cancelled())

    def _cancel(self, work: Work) -> None:
        self._cancelled = True
        work.cancel()

    async def _answer(self, send: Send, count: Count) -> None:
        self._request_record.status = 200
        headers = [(b"x-cortex-function", self._function.id.encode("ascii", "replace"))]
        if count.is_estimate:
            headers.append((b"x-cortex-estimate", b"true"))
        await send_json(
            send, 200, msgspec.json.encode({"input_tokens": count.tokens}), self._request_record.id, headers
        )

    async def _reject(self, send: Send, error: RequestError) -> None:
        fault = error.fault()
        self._request_record.rejected(fault.status("messages"), fault.kind, error.reason)
        await send_error(send, fault, "messages", self._request_record.id)
