"""HTTP to workers, for the router and for the agent's proxy and probe: every answer of a worker is bounded.

Redirects are not followed and cookies not stored, so a worker cannot send a prompt or its key elsewhere. Bodies are
requested uncompressed; a body that is compressed anyway is unpacked piece by piece. A body that is read as a whole has
a limit. aiohttp limits the head: 8190 bytes per line, 128 lines.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Protocol

import aiohttp

from cortex.functions.servers import COMMAND, SERVERS
from cortex.platform import model_list
from cortex.platform.record import Instance

CONNECT_S = 5.0
PROOF_S = 10.0
"""Time limit for listing a worker's models while a request waits."""
HEALTH_S = 2.0
ANSWER_BYTES = 64 * 1024 * 1024
"""Limit of a whole answer. The largest are embeddings: 2048 inputs of 1024 numbers are 45 MB."""
EVENT_BYTES = 8 * 1024 * 1024
"""Limit of one server-sent event."""
STREAM_BYTES = 256 * 1024 * 1024
"""Limit of a whole stream: a million tokens, whose text a translation may keep until the end."""
ERROR_BYTES = 64 * 1024
MODELS_BYTES = 2 * 1024 * 1024
PIECE_BYTES = 256 * 1024
UNAUTHORIZED = 401
KEY_REFUSED = frozenset({401, 403})
NO_SUCH_PATH = frozenset({404, 405, 501})
REDIRECTS = frozenset({300, 301, 302, 303, 305, 307, 308})
_PLAIN = frozenset({"", "identity"})
_OTHER = frozenset({"br", "zstd", "compress", "dcb", "dcz"})
"""Other encodings that an error may name. Any other text is the worker's and must not reach a log."""
_GZIP = frozenset({"gzip", "x-gzip"})


BREAKS = (aiohttp.ClientError, aiohttp.http.HttpProcessingError)
"""What aiohttp raises when a worker cannot be reached, breaks off, or does not answer in HTTP."""


class Body(Protocol):
    """The bytes of an answer."""

    def iter_any(self) -> AsyncIterator[bytes]:
        """Yield them as they come."""


class Response(Protocol):
    """An answer whose body is still to be read: aiohttp's, or the router's own."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content_length(self) -> int | None: ...
    @property
    def content(self) -> Body: ...


class Unreadable(Exception):
    """A worker's answer is too long, damaged, or in an unknown encoding."""


def session(*, idle_s: float = 15.0) -> aiohttp.ClientSession:
    """Return a session for workers. A connection closes after `idle_s` without use. Needs a running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=idle_s, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def headers(key: str) -> dict[str, str]:
    """Return the headers of every request to a worker."""
    return {"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"}


def failure(error: BaseException) -> str:
    """Describe a connection's failure without aiohttp's text, which may quote the worker."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "Server disconnected"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError | aiohttp.http.HttpProcessingError):
        return "its answer broke off or is not HTTP"
    return str(error) or type(error).__name__


# Bodies.


class Unpacker:
    """Unpacks a compressed body into pieces of at most PIECE_BYTES."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._head = b""
        self._inflate = zlib.decompressobj(wbits=31) if encoding in _GZIP else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the pieces of this part of the body. Raises Unreadable."""
        if self._inflate is None:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._head = self._head, b""
            # By the standard, "deflate" is zlib's format; some servers send raw deflate data.
            is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._inflate = zlib.decompressobj(wbits=15 if is_zlib else -15)
        while data:
            if self._inflate.eof:
                if self._encoding not in _GZIP or not data.strip(b"\0"):
                    return  # only padding follows
                self._inflate = zlib.decompressobj(wbits=31)  # the next member
            piece, full = b"", True
            while full and not self._inflate.eof:
                try:
                    piece = self._inflate.decompress(data, PIECE_BYTES)
                except zlib.error:
                    raise Unreadable(f"its {self._encoding} data is damaged") from None
                data, full = self._inflate.unconsumed_tail, len(piece) == PIECE_BYTES
                if piece:
                    yield piece
            data = self._inflate.unused_data

    def close(self) -> None:
        """End the body. Raises Unreadable when its data is incomplete."""
        if self._head or (self._inflate is not None and not self._inflate.eof):
            raise Unreadable(f"its {self._encoding} data ends too early")


def encoding(response: Response) -> str:
    """Return a body's compression, "" without one. Raises Unreadable for one that cannot be unpacked."""
    if "content-encoding" not in response.headers:
        return ""
    name = response.headers["content-encoding"].strip().lower()
    if name in _PLAIN:
        return ""
    if name in _GZIP or name == "deflate":
        return name
    how = f"as '{name}'" if name in _OTHER else "in an unknown encoding"
    raise Unreadable(f"it is compressed {how}, which was not requested")


async def pieces(response: Response) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, unpacked. Raises Unreadable, and what aiohttp raises."""
    compression = encoding(response)
    if not compression:
        async for chunk in response.content.iter_any():
            yield chunk
        return
    unpacker = Unpacker(compression)
    async for chunk in response.content.iter_any():
        for piece in unpacker.feed(chunk):
            yield piece
            await asyncio.sleep(0)  # a chunk may unpack to a thousand pieces: let other requests run in between
    unpacker.close()


async def whole(response: Response, most: int = ANSWER_BYTES) -> bytes:
    """Return a whole body. Raises Unreadable when it exceeds `most` bytes, and what aiohttp raises."""
    if (response.content_length or 0) > most:
        raise too_long(most)
    body = bytearray()
    async for piece in pieces(response):
        body += piece
        if len(body) > most:
            raise too_long(most)
    return bytes(body)


async def beginning(response: Response, most: int = ERROR_BYTES) -> bytes:
    """Return the first `most` bytes of a body. Raises Unreadable, and what aiohttp raises."""
    body = bytearray()
    async for piece in pieces(response):
        body += piece
        if len(body) >= most:
            break
    return bytes(body[:most])


def too_long(most: int) -> Unreadable:
    """Return the error for an answer of more than `most` bytes."""
    return Unreadable(f"it is longer than {most // (1024 * 1024)} MiB")


# Identity and health.


async def serves(http: aiohttp.ClientSession, instance: Instance, key: str) -> bool:
    """Return whether the worker at an instance's address is the instance: it accepts the key and lists the function.
    A command without a list is taken for it when its health check answers: its port rests after it (`ports.py`).

    Raises what aiohttp raises.
    """
    within = aiohttp.ClientTimeout(total=PROOF_S, sock_connect=CONNECT_S)
    url = f"{instance.url}/v1/models"
    try:
        async with http.get(url, headers=headers(key), timeout=within, allow_redirects=False) as response:
            if response.status == 200:
                return instance.name_at_worker in model_list.read(await whole(response, MODELS_BYTES))
            unlisted = has_no_list(instance, response.status)
    except TimeoutError:  # callers take a bare TimeoutError for the request's own time limit
        raise aiohttp.ServerTimeoutError(f"{instance.url} did not list its models within {PROOF_S:g} s") from None
    except (Unreadable, ValueError):
        return False
    return unlisted and await is_well(http, instance, key)


def has_no_list(instance: Instance, status: int) -> bool:
    """Return whether a worker's answer to `/v1/models` says that its program has no list of models."""
    return instance.server == COMMAND and status in NO_SUCH_PATH


async def read(http: aiohttp.ClientSession, instance: Instance, key: str, path: str) -> tuple[int, bytes]:
    """Return the status and the body, MODELS_BYTES at most, of one of a worker's paths. Raises Unreadable, and what
    aiohttp raises."""
    within = aiohttp.ClientTimeout(total=PROOF_S, sock_connect=CONNECT_S)
    try:
        async with http.get(
            instance.url + path, headers=headers(key), timeout=within, allow_redirects=False
        ) as response:
            return response.status, await whole(response, MODELS_BYTES)
    except TimeoutError:
        raise aiohttp.ServerTimeoutError(f"{instance.url} did not answer {path} within {PROOF_S:g} s") from None


async def refuses_request(http: aiohttp.ClientSession, instance: Instance, key: str, status: int) -> bool:
    """Return whether a worker's 401 or 403 is about the request rather than the key, which it then accepts elsewhere.

    Raises what aiohttp raises.
    """
    server = SERVERS.get(instance.server)
    if status == UNAUTHORIZED and server is not None and server.lists_openly:
        return False
    return await serves(http, instance, key)


async def is_well(http: aiohttp.ClientSession, instance: Instance, key: str) -> bool:
    """Return whether a worker's health check passes or exceeds its time limit."""
    within = aiohttp.ClientTimeout(total=HEALTH_S)
    url = instance.url + instance.health_path
    try:
        async with http.get(url, headers=headers(key), timeout=within, allow_redirects=False) as response:
            return response.status == 200
    except TimeoutError:
        return True
    except (*BREAKS, OSError):
        return False
