"""A worker's activity, measured at the worker.

Routers report who uses an instance, but a router without Redis reports nothing and still serves. So before the agent
stops a worker that seems idle, it checks the engine's request gauges and the connections to the worker's port. The
agent's own connections do not count.
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from msgspec import Struct

from cortex.platform import worker_http

LOOK_S = 2.0
LONGEST_ANSWER = 1024 * 1024
RUNNING = re.compile(
    rb"^(?:vllm:num_requests_(?:running|waiting)|llamacpp:requests_(?:processing|deferred))(?:\{[^}]*\})?\s+([0-9.e+]+)",
    re.MULTILINE,
)
"""The request gauges of vLLM and llama.cpp, in Prometheus' text format."""
TOKENS = re.compile(
    rb"^(?:vllm:(?:prompt|generation)_tokens_total|llamacpp:(?:prompt_tokens|tokens_predicted)_total)"
    rb"(?:\{[^}]*\})?\s+([0-9.e+]+)",
    re.MULTILINE,
)
"""The token counters of vLLM and llama.cpp."""
_ESTABLISHED = "01"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Activity(Struct, frozen=True):
    """A worker's activity at one moment."""

    running: int | None
    """Requests in the engine; None when it publishes no count."""
    connections: int
    """Established connections to its port, without this agent's own."""


async def look(url: str, keys: Sequence[str]) -> Activity:
    """Return the activity of the worker at `url`, which has one of these keys, within about `LOOK_S`."""
    port = int(url.rpartition(":")[2])
    running = await _running(url, keys)
    return Activity(running, connections(port))


async def tokens(url: str, keys: Sequence[str]) -> tuple[bytes, ...]:
    """Return the token counters of the worker at `url`, unparsed; () when it has none or does not answer."""
    return tuple(TOKENS.findall(await _metrics(url, keys)))


async def _running(url: str, keys: Sequence[str]) -> int | None:
    with contextlib.suppress(ValueError):
        return requests_running(await _metrics(url, keys))
    return None


async def _metrics(url: str, keys: Sequence[str]) -> bytes:
    """Return a worker's metrics; b"" when it does not answer in time or rejects all keys."""
    with contextlib.suppress(*worker_http.BREAKS, OSError, ValueError, TimeoutError):
        async with asyncio.timeout(LOOK_S), worker_http.session() as http:
            for key in keys:
                headers = worker_http.headers(key)
                async with http.get(f"{url}/metrics", headers=headers, allow_redirects=False) as answer:
                    if answer.status == 200:
                        return await _beginning(answer.content)
                    if answer.status not in worker_http.KEY_REFUSED:
                        return b""
    return b""


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """Return the first `LONGEST_ANSWER` bytes of an answer."""
    read = bytearray()
    while len(read) < LONGEST_ANSWER and (chunk := await content.read(LONGEST_ANSWER - len(read))):
        read += chunk
    return bytes(read)


def requests_running(metrics: bytes) -> int | None:
    """Return the number of requests in an engine's metrics; None without a gauge. Raises ValueError.

    >>> requests_running(b'vllm:num_requests_running{model_name="m"} 2.0\\nvllm:num_requests_waiting 1')
    3
    """
    counts = [float(count) for count in RUNNING.findall(metrics)]
    if math.isinf(sum(counts)):
        raise ValueError("the count of requests is infinite")
    return round(sum(counts)) if counts else None


def connections(port: int, *, tables: tuple[Path, ...] = _TABLES) -> int:
    """Return the number of established connections to a local port, without this process's own."""
    rows = [row for table in tables for row in _rows(table)]
    own = _own_sockets()
    own_ports = {local for local, _, inode in rows if inode in own}
    return sum(1 for local, remote, _ in rows if local == port and remote not in own_ports)


def _rows(table: Path) -> list[tuple[int, int, str]]:
    """Return local port, remote port and inode of every established connection in a kernel table (proc(5))."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [(_port(f[1]), _port(f[2]), f[9]) for f in fields if len(f) > 9 and f[3] == _ESTABLISHED]


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _own_sockets() -> set[str]:
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes
