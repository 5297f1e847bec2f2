"""Asking a worker whether it is still the instance we mean, when its connection broke or its host is silent.

A cheap call with the instance's own key: a stranger that took over the address does not know it. Never on the warm
path.
"""

import enum

import aiohttp
import msgspec
from msgspec import Struct

from cortex.platform.keys import FleetToken
from cortex.platform.record import Instance

PROBE_S = 3.0
MOST_BYTES = 256 * 1024
STRANGE = frozenset({401, 403})


class Pulse(enum.Enum):
    """What a probe found."""

    WELL = enum.auto()
    """It answers with its key and lists its function."""
    GONE = enum.auto()
    """The connection is refused, or another program answers."""
    SILENT = enum.auto()
    """No answer in time, or none that tells anything: it may be busy."""


class _Model(Struct, frozen=True):
    id: str = ""


class _Models(Struct, frozen=True):
    data: tuple[_Model, ...] = ()


class Probe:
    """Asks workers, over connections of its own."""

    def __init__(self, token: FleetToken) -> None:
        self._token = token
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def pulse(self, instance: Instance) -> Pulse:
        """Return how an instance is, after PROBE_S at the latest."""
        if self._http is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=PROBE_S))
        try:
            for key in self._token.worker_keys(instance.id):
                headers = {"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"}
                url = f"{instance.url}/v1/models"
                async with self._http.get(url, headers=headers, allow_redirects=False) as answer:
                    if answer.status in STRANGE:
                        continue
                    if answer.status != 200:
                        return Pulse.SILENT
                    return judged(await _beginning(answer), instance.function)
        except aiohttp.ClientConnectorError:
            return Pulse.GONE
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return Pulse.SILENT
        return Pulse.GONE


def judged(body: bytes, function: str) -> Pulse:
    """Return what a list of models says of the instance of a function."""
    try:
        models = msgspec.json.decode(body, type=_Models)
    except msgspec.MsgspecError:
        return Pulse.GONE
    return Pulse.WELL if any(m.id == function for m in models.data) else Pulse.GONE


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    found = b""
    async for chunk in answer.content.iter_any():
        found += chunk
        if len(found) > MOST_BYTES:
            break
    return found
