"""One token-count request: listed, cancellable and timed like other requests."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from cortex.functions.spec import Function
from cortex.router.errors import Cancelled, RequestError, UpstreamSilent
from cortex.router.http_answer import Client, error_answer, json_answer
from cortex.router.request.attendance import Work, attend
from cortex.router.request_record import RequestRecord, RequestRecords


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

    async def __call__(self, client: Client) -> None:
        """Serve the request until the client disconnects."""
        self._request_records.begin(self._request_record)
        try:
            await attend(self._request_record, self._serve(client), client, self._cancel)
        finally:
            self._request_records.over(self._request_record)

    async def _serve(self, client: Client) -> None:
        timeout_s = self._function.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                count = await self._count()
            await self._answer(client, count)
        except TimeoutError:
            late = f"'{self._function.id}' took longer than {timeout_s:g} s to count"
            await self._reject(client, UpstreamSilent(late))
        except RequestError as error:
            await self._reject(client, error)
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            await self._reject(client, Cancelled())

    def _cancel(self, work: Work) -> None:
        self._cancelled = True
        work.cancel()

    async def _answer(self, client: Client, count: Count) -> None:
        self._request_record.status = 200
        headers = [(b"x-cortex-function", self._function.id.encode("ascii", "replace"))]
        if count.is_estimate:
            headers.append((b"x-cortex-estimate", b"true"))
        body = msgspec.json.encode({"input_tokens": count.tokens})
        await json_answer(200, body, self._request_record.id, headers).send(client)

    async def _reject(self, client: Client, error: RequestError) -> None:
        fault = error.fault()
        self._request_record.reject(fault.status("messages"), fault.kind, error.reason)
        await error_answer(fault, "messages", self._request_record.id).send(client)
