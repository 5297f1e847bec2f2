"""The data plane's way to a worker. aiohttp's client, not httpx: per request it costs about a tenth of the
CPU time (measured, LESSONS.md), and this is the warm path. Foreign errors are mapped here and nowhere else.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

import aiohttp

from cortex.platform.keys import FleetToken
from cortex.platform.record import Instance

CONNECT_S = 5.0
IDLE_S = 4.0
"""How long an idle connection is kept: less than workers do (uvicorn's and llama-server's five seconds), for a request
sent into a connection that is just being closed is lost."""
READ_BYTES = 256 * 1024
STRANGE = frozenset({401, 403})


class Broken(Exception):
    """The worker could not be reached, or its answer broke off."""


class Stranger(Broken):
    """Whoever listens at that address is not the instance we mean: it does not know its key."""


class Answer:
    """A worker's answer: status and headers now, the body as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.retry_after = response.headers.get("Retry-After")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises Broken when it breaks off."""
        with _mapped():
            async for chunk in self._response.content.iter_any():
                yield chunk

    def close(self) -> None:
        """Let go of it. A body read to its end has given its connection back; any other is cut."""
        self._response.close()

    async def whole(self) -> bytes:
        """Return the whole body. Raises Broken when it breaks off."""
        with _mapped():
            return await self._response.read()


class Upstream:
    """Connections to all workers."""

    def __init__(self, token: FleetToken) -> None:
        self._token = token
        self._keys: dict[str, str] = {}
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def post(self, instance: Instance, path: str, body: bytes, more: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return the answer once its head is here. The caller closes it.

        Raises Broken or Stranger. Cancelled, it cuts the connection, and the worker stops.
        """
        for key in self._keys_of(instance.id):
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            if more:
                headers.update(more)
            with _mapped():
                response = await self._http.post(instance.url + path, data=body, headers=headers)
            if response.status not in STRANGE:
                self._remember(instance.id, key)
                return Answer(response)
            response.close()
        self._keys.pop(instance.id, None)
        raise Stranger(f"{instance.url} does not know the key of instance {instance.id}")

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
    except (aiohttp.ClientError, ConnectionError, OSError) as error:
        raise Broken(str(error) or type(error).__name__) from error
