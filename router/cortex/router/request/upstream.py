"""The data plane's way to workers: the instance's key, the proof of who answers, and errors by what a replay may do.

Requests go over `worker_connections.py`; the proofs, which are rare, over aiohttp. Only this module maps their errors.
"""

import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Protocol

import aiohttp

from cortex.platform import worker_http
from cortex.platform.record import Instance
from cortex.platform.worker_http import ANSWER_BYTES, STREAM_BYTES, Unreadable
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.large_object import Body, LargeObject
from cortex.router.request.worker_connections import Headers, WorkerConnections
from cortex.router.request.worker_response import BodyTooLong, ConnectionWasReset, NotConnected, Sink, WorkerResponse

IDLE_S = 4.0
"""How long an idle connection stays open: less than at workers (five seconds for uvicorn and llama-server), because a
request on a closing connection is lost."""
READ_BYTES = 256 * 1024


class Broken(Exception):
    """The connection to the worker failed, or its answer is truncated."""

    sent_at = 0.0
    """When the request was sent, by the monotonic clock."""


class NotReached(Broken):
    """No connection could be made: the request has not been sent."""


class NotRead(Broken):
    """The connection was reset before an answer: the worker has not read all of the request."""


class EngineFailed(Broken):
    """The worker's engine has failed while its API server still answers; its process exits soon."""


class Stranger(Broken):
    """The process at the address is not the expected instance: it rejects the key or has another model."""


class Outgoing(Protocol):
    """A body in pieces, of `size` bytes if that is known."""

    @property
    def content_type(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    def pieces(self) -> AsyncIterator[bytes]: ...


class Relaying(Sink, Protocol):
    """A sink for which one can wait until it has room."""

    async def drain(self) -> None: ...


class Answer:
    """A worker's answer: status and headers, with the body still to be read.

    Reading raises Broken when the connection breaks, and BadAnswer when the body is too long or has an unsupported
    encoding.
    """

    def __init__(self, response: WorkerResponse) -> None:
        self._response = response
        self.status = response.status
        self.retry_after = response.headers.get("retry-after")
        self.content_type = response.headers.get("content-type", "")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, STREAM_BYTES of it at most."""
        left = STREAM_BYTES
        try:
            packed = worker_http.encoding(self._response)
            body = worker_http.pieces(self._response) if packed else self._response.content.iter_any()
            async for chunk in body:
                left -= len(chunk)
                if left < 0:
                    raise worker_http.too_long(STREAM_BYTES)
                yield chunk
        except _FAILURES as error:
            raise _failure(error) from error

    async def pass_to(self, sink: Relaying) -> None:
        """Pass the body to a sink as it arrives, STREAM_BYTES of it at most. Raises what the sink does, too."""
        try:
            if not worker_http.encoding(self._response):
                await self._response.pass_to(sink, STREAM_BYTES)
                return
        except BodyTooLong:
            raise _failure(worker_http.too_long(STREAM_BYTES)) from None
        except _FAILURES as error:
            raise _failure(error) from error
        async for chunk in self.chunks():
            sink.take(chunk)
            if sink.over:
                return
            await sink.drain()

    def close(self) -> None:
        """Release the answer. Closes the connection unless the body was read to its end, or is about to end."""
        self._response.close()

    async def whole(self) -> bytes:
        """Return the whole body, ANSWER_BYTES of it at most."""
        try:
            if worker_http.encoding(self._response):
                return await worker_http.whole(self._response, ANSWER_BYTES)
            return await self._response.whole(ANSWER_BYTES)
        except BodyTooLong:
            raise _failure(worker_http.too_long(ANSWER_BYTES)) from None
        except _FAILURES as error:
            raise _failure(error) from error

    async def error(self) -> bytes:
        """Return the body of an error, or its beginning."""
        try:
            return await worker_http.beginning(self._response)
        except _FAILURES as error:
            raise _failure(error) from error


class Upstream:
    """Connections to all workers."""

    def __init__(
        self, keys_of: Callable[[Instance], Iterable[str]], unsure: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`keys_of` returns the keys that an instance may have. `unsure` tells whether its record may be stale; then
        each request first verifies that the address still belongs to the instance."""
        self._keys_of, self._unsure = keys_of, unsure
        self._keys: dict[tuple[str, str], str] = {}
        self._connections = WorkerConnections(idle_s=IDLE_S, connect_s=worker_http.CONNECT_S, read_bytes=READ_BYTES)

    @functools.cached_property
    def _http(self) -> aiohttp.ClientSession:
        return worker_http.session(idle_s=IDLE_S)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()
        await self._http.close()

    async def post(
        self,
        instance: Instance,
        path: str,
        body: Body | Outgoing,
        more: Mapping[str, str] | None = None,
        *,
        keeps_chunked: bool = False,
        is_read_whole: bool = False,
    ) -> Answer:
        """Send a request and return the answer after its headers, or when all of it has arrived if it `is_read_whole`.
        The caller closes it. A body in pieces is sent once. `keeps_chunked`: the worker takes another request on the
        connection after an answer in chunks.

        Raises Broken, Stranger, or what the pieces raise. Cancellation closes the connection, which stops the worker.
        """
        in_pieces = not isinstance(body, (bytes, LargeObject))
        prove = self._unsure(instance.id) or (in_pieces and (instance.host, instance.id) not in self._keys)
        for key in self._last_key_first(instance):
            is_sent = False
            try:
                if prove and not await worker_http.serves(self._http, instance, key):
                    continue
                is_sent = True
                headers = _headers(key)
                if more:
                    headers += tuple(more.items())
                if isinstance(body, (bytes, LargeObject)):
                    response = await self._connections.post(
                        instance.url,
                        path,
                        body,
                        (_JSON, *headers),
                        keeps_chunked=keeps_chunked,
                        is_read_whole=is_read_whole,
                    )
                else:
                    headers += (("Content-Type", body.content_type),)
                    pieces = body.pieces()
                    response = await self._connections.upload(instance.url, path, pieces, body.size, headers)
                if response.status not in worker_http.KEY_REFUSED or await self._refuses(response, instance, key):
                    self._remember(instance, key)
                    return Answer(response)
            except _FAILURES as error:
                raise _failure(error, Broken if is_sent else NotReached) from error
            if in_pieces:
                break
        self._keys.pop((instance.host, instance.id), None)
        raise Stranger(f"{instance.url} does not know the key of instance {instance.id}, or has another model")

    async def read(self, instance: Instance, path: str) -> tuple[int, bytes]:
        """Return the status and the body of a path that a worker answers from what it knows. Raises Broken, Stranger or
        BadAnswer."""
        for key in self._last_key_first(instance):
            try:
                if self._unsure(instance.id) and not await worker_http.serves(self._http, instance, key):
                    continue
                status, body = await worker_http.read(self._http, instance, key, path)
            except _FAILURES as error:
                raise _failure(error) from error
            if status not in worker_http.KEY_REFUSED:
                return status, body
        raise Stranger(f"{instance.url} does not know the key of instance {instance.id}, or has another model")

    async def is_well(self, instance: Instance) -> bool:
        """Whether a worker passes its health check or does not answer in time."""
        return await worker_http.is_well(self._http, instance, next(self._last_key_first(instance)))

    async def _refuses(self, response: WorkerResponse, instance: Instance, key: str) -> bool:
        """Whether a 401 or 403 is the worker's answer to the request. Closes the response when it is not."""
        refuses = False
        try:
            refuses = await worker_http.refuses_request(self._http, instance, key, response.status)
        finally:
            if not refuses:
                response.close()
        return refuses

    def _last_key_first(self, instance: Instance) -> Iterator[str]:
        """Yield the instance's last key, then the other possible ones: the token may have changed."""
        last = self._keys.get((instance.host, instance.id))
        if last is not None:
            yield last
        yield from (key for key in self._keys_of(instance) if key != last)

    def _remember(self, instance: Instance, key: str) -> None:
        name = instance.host, instance.id
        if self._keys.get(name) != key:
            if len(self._keys) > 10_000:
                self._keys.clear()
            self._keys[name] = key


_JSON = "Content-Type", "application/json"


@functools.lru_cache(1024)
def _headers(key: str) -> Headers:
    return tuple(worker_http.headers(key).items())


_FAILURES = (Unreadable, OSError, *worker_http.BREAKS)


def _failure(error: Exception, otherwise: type[Broken] = Broken) -> Exception:
    """Return what a connection's error is to the rest of the router."""
    if isinstance(error, Unreadable):
        return BadAnswer(f"the worker's answer cannot be read: {error}")
    if isinstance(error, NotConnected):
        return NotReached(str(error))
    if isinstance(error, ConnectionWasReset):
        return NotRead(str(error))
    return otherwise(worker_http.failure(error))
