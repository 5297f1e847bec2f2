"""The data plane's way to a worker. aiohttp's client, not httpx: per request it costs about a tenth of the
CPU time (measured, LESSONS.md), and this is the warm path. Foreign errors are mapped here and nowhere else.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager

import aiohttp

from cortex.platform import worker_http
from cortex.platform.keys import FleetToken
from cortex.platform.record import Instance
from cortex.platform.worker_http import ANSWER_BYTES, STREAM_BYTES, Unreadable
from cortex.router.dialects.core.errors import BadAnswer

IDLE_S = 4.0
"""How long an idle connection is kept: less than workers do (uvicorn's and llama-server's five seconds), for a request
sent into a connection that is just being closed is lost."""
READ_BYTES = 256 * 1024


class Broken(Exception):
    """The worker could not be reached, or its answer broke off."""

    sent_at = 0.0
    """When the request was sent, by the monotonic clock."""


class NotReached(Broken):
    """No connection could be made: the request has not been sent."""


class NotRead(Broken):
    """The connection was reset before an answer: the worker has not read all of the request."""


class EngineFailed(Broken):
    """The worker's engine has failed while its front still answers: its process ends soon."""


class Stranger(Broken):
    """Whoever listens at that address is not the instance we mean: it does not know its key, or has another model."""


class Answer:
    """A worker's answer: status and headers now, the body as it comes.

    Reading it raises Broken when it breaks off, and BadAnswer when it is too long, or compressed in a way that is not
    understood.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.retry_after = response.headers.get("Retry-After")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, STREAM_BYTES of it at most."""
        left = STREAM_BYTES
        with _mapped():
            packed = worker_http.encoding(self._response)
            body = worker_http.pieces(self._response) if packed else self._response.content.iter_any()
            async for chunk in body:
                left -= len(chunk)
                if left < 0:
                    raise worker_http.too_long(STREAM_BYTES)
                yield chunk

    def close(self) -> None:
        """Let go of it. A body read to its end has given its connection back; any other is cut."""
        self._response.close()

    async def whole(self) -> bytes:
        """Return the whole body, ANSWER_BYTES of it at most."""
        with _mapped():
            return await worker_http.whole(self._response, ANSWER_BYTES)

    async def error(self) -> bytes:
        """Return the body of an error, or its beginning."""
        with _mapped():
            return await worker_http.beginning(self._response)


class Upstream:
    """Connections to all workers."""

    def __init__(self, token: FleetToken, unsure: Callable[[str], bool] = lambda _: False) -> None:
        """`unsure` tells whether what is known of an instance may be out of date: then it is proved before each
        request that another worker has not taken its address."""
        self._token, self._unsure = token, unsure
        self._keys: dict[str, str] = {}
        self._http = worker_http.session(idle_s=IDLE_S, read_bytes=READ_BYTES)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def post(self, instance: Instance, path: str, body: bytes, more: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return the answer once its head is here. The caller closes it.

        Raises Broken or Stranger. Cancelled, it cuts the connection, and the worker stops.
        """
        prove = self._unsure(instance.id)
        for key in self._keys_of(instance.id):
            with _mapped():
                if prove and not await worker_http.serves(self._http, instance, key):
                    continue
                response = await self._send(instance.url + path, key, body, more)
                if response.status not in worker_http.KEY_REFUSED or await self._refuses(response, instance, key):
                    self._remember(instance.id, key)
                    return Answer(response)
        self._keys.pop(instance.id, None)
        raise Stranger(f"{instance.url} does not know the key of instance {instance.id}, or has another model")

    async def is_well(self, instance: Instance) -> bool:
        """Whether a worker passes its health check, or takes too long to tell."""
        return await worker_http.is_well(self._http, instance, next(self._keys_of(instance.id)))

    async def _send(self, url: str, key: str, body: bytes, more: Mapping[str, str] | None) -> aiohttp.ClientResponse:
        headers = worker_http.headers(key)
        headers["Content-Type"] = "application/json"
        if more:
            headers.update(more)
        try:
            return await self._http.post(url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            raise NotReached(worker_http.failure(error)) from error
        except aiohttp.ClientOSError as error:
            # The kernel resets a connection whose process ends with bytes unread, and closes any other in order.
            raise NotRead(worker_http.failure(error)) from error

    async def _refuses(self, response: aiohttp.ClientResponse, instance: Instance, key: str) -> bool:
        """Whether a 401 or 403 is the worker's answer to the request. Closes the response when it is not."""
        refuses = False
        try:
            refuses = await worker_http.refuses_request(self._http, instance, key, response.status)
        finally:
            if not refuses:
                response.close()
        return refuses

    def _keys_of(self, instance: str) -> Iterator[str]:
        """Yield the key that it had the last time, then those that it could have: the token may have changed."""
        known = self._keys.get(instance)
        if known is not None:
            yield known
        for key in self._token.worker_keys(instance):
            if key != known:
                yield key

    def _remember(self, instance: str, key: str) -> None:
        if self._keys.get(instance) != key:
            if len(self._keys) > 10_000:
                self._keys.clear()
            self._keys[instance] = key


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        raise BadAnswer(f"the worker's answer cannot be read: {error}") from None
    except (*worker_http.BREAKS, OSError) as error:
        raise Broken(worker_http.failure(error)) from error
