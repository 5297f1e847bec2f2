"""Fetch images that clients send as addresses, for functions that allow it; workers get them as data.

A client must not make cortex read internal addresses. So the router fetches, never the worker; it resolves names itself
and connects to public addresses only, checked again on every redirect; and it accepts only images, limited in number,
size and time.
"""

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from cortex.router.dialects.core.errors import BadRequest
from cortex.router.request.intake import LARGE

MOST_IMAGES, MOST_BYTES, MOST_HOPS, PATIENCE_S = 16, 20 << 20, 3, 15.0
MOST_TOGETHER = 32 << 20
"""Bytes of all images of one request."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What IANA gives out to the public internet, less what it has set aside within: special-purpose registries of both
# versions. 2001::/23 holds Teredo and ORCHID, 2002::/16 is 6to4, which stands for an IPv4 address.
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_PUBLIC_V4 = (ipaddress.IPv4Address("1.0.0.0"), ipaddress.IPv4Address("223.255.255.255"))
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(n)
    for n in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
    )
)

Node = dict[str, Any]


class NotFetched(Exception):
    """The reason, for the client."""


class RemoteImages:
    """Fetches images. `resolver` resolves host names."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    async def inline(self, body: bytes) -> bytes:
        """Return a request of any dialect with its remote images as data. Raises BadRequest that names the field."""
        if b"http" not in body:
            return body
        request, images = await asyncio.to_thread(_find, body) if len(body) >= LARGE else _find(body)
        if not images:
            return body
        if len(images) > MOST_IMAGES:
            raise BadRequest(f"no more than {MOST_IMAGES} images are fetched for one request", images[MOST_IMAGES][0])
        async with asyncio.TaskGroup() as tasks:
            left = Allowance(MOST_TOGETHER)
            fetched = [tasks.create_task(self._fetch_one(url, left)) for _, _, url in images]
        for (at, node, _), task in zip(images, fetched, strict=True):
            result = task.result()
            if isinstance(result, NotFetched):
                raise BadRequest(f"the image could not be fetched: {result}", at)
            _put(node, *result)
        return msgspec.json.encode(request)

    async def _fetch_one(self, url: str, left: "Allowance") -> tuple[str, bytes] | NotFetched:
        """Fetch; return a failure as a value, so that the other fetches are not cancelled."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.fetch(url, left)
        except NotFetched as error:
            return error
        except TimeoutError:
            return NotFetched(f"it took longer than {PATIENCE_S:g} s")
        except (aiohttp.ClientError, OSError, ValueError):
            return NotFetched("the address does not answer")

    async def fetch(self, url: str, left: "Allowance | None" = None) -> tuple[str, bytes]:
        """Return the type and bytes of an image. Raises NotFetched, TimeoutError or aiohttp's errors."""
        if self._http is None:
            connector = aiohttp.TCPConnector(resolver=PublicOnly(self._resolver), force_close=True, limit=MOST_IMAGES)
            self._http = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        here = URL(url)
        for _ in range(MOST_HOPS + 1):
            _refuse_private(here)
            async with self._http.get(here, allow_redirects=False, headers={"Accept": "image/*"}) as answer:
                if answer.status in _REDIRECTS:
                    here = here.join(URL(answer.headers.get("Location", "")))
                    continue
                if answer.status != 200:
                    raise NotFetched(f"its server answered {answer.status}")
                if not answer.content_type.startswith("image/"):
                    raise NotFetched(f"it is {answer.content_type}, not an image")
                data = bytearray()
                async for piece in answer.content.iter_any():
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise NotFetched(f"it is larger than {MOST_BYTES >> 20} MiB")
                    if left is not None:
                        left.take(len(piece))
                return answer.content_type, bytes(data)
        raise NotFetched(f"it is redirected more than {MOST_HOPS} times")


class Allowance:
    """Bytes that the images of one request may still take."""

    def __init__(self, bytes_left: int) -> None:
        self._left = bytes_left

    def take(self, size: int) -> None:
        """Subtract bytes. Raises NotFetched when none are left."""
        self._left -= size
        if self._left < 0:
            raise NotFetched(f"the images of one request are larger than {MOST_TOGETHER >> 20} MiB together")


def _find(body: bytes) -> tuple[Any, list[tuple[str, Node, str]]]:
    """Decode a request and find its image addresses; none in invalid JSON, which the parser reports."""
    try:
        request: Any = msgspec.json.decode(body)
        return request, list(_images(request, ""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, []


class PublicOnly(AbstractResolver):
    """Resolves names to public addresses only, so that the connection uses a checked address."""

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the public addresses of a name. Raises NotFetched when it has none."""
        public = [one for one in await self._inner.resolve(host, port, family) if is_public(one["host"])]
        if not public:
            raise NotFetched("its address is not a public one")
        return public

    async def close(self) -> None:
        """Close the resolver."""
        await self._inner.close()


def is_public(address: str) -> bool:
    """Whether an address, in any notation, is in IANA's public allocations."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:  # of one link
            return False
        return parsed in _PUBLIC_V6 and not any(parsed in network for network in _SPECIAL_V6)
    first, last = _PUBLIC_V4
    return first <= parsed <= last and not any(parsed in network for network in _SPECIAL_V4)


def _refuse_private(url: URL) -> None:
    """Check literal addresses, which are not resolved. Raises NotFetched."""
    if url.scheme not in ("http", "https") or not url.host:
        raise NotFetched("only http and https addresses are fetched")
    literal = url.host.replace(".", "").isdigit() or ":" in url.host
    if literal and not is_public(url.host):
        raise NotFetched("its address is not a public one")


def _images(node: Any, at: str) -> Iterator[tuple[str, Node, str]]:
    """Yield the path, node and address of each image address, in any dialect."""
    if isinstance(node, list):
        for index, one in enumerate(node):
            yield from _images(one, f"{at}[{index}]")
        return
    if not isinstance(node, dict):
        return
    if (url := _address(node)) is not None:
        yield at, node, url
        return
    for key, value in node.items():
        yield from _images(value, f"{at}.{key}" if at else key)


def _address(node: Node) -> str | None:
    match node:
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            pass
        case {"type": "image_url" | "input_image", "image_url": str(url)}:
            pass
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            pass
        case _:
            return None
    return url if url[:8].lower().startswith(("http://", "https://")) else None


def _put(node: Node, media_type: str, data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    if node["type"] == "image":
        node["source"] = {"type": "base64", "media_type": media_type, "data": encoded}
        return
    url = f"data:{media_type};base64,{encoded}"
    node["image_url"] = {**node["image_url"], "url": url} if isinstance(node["image_url"], dict) else url
