"""Check whether a worker is still the expected instance, after a broken connection or while its host is silent.

A cheap call with the instance's key, which another process at the address does not have. Never on the warm path.
"""

import enum
from collections.abc import Callable, Iterable

import aiohttp
import msgspec
from msgspec import Struct

from cortex.platform.record import Instance
from cortex.platform.worker_http import has_no_list

PROBE_S = 3.0
MOST_BYTES = 256 * 1024
STRANGE = frozenset({401, 403})


class Pulse(enum.Enum):
    """The result of a probe."""

    WELL = enum.auto()
    """It answers with its key and lists its function."""
    GONE = enum.auto()
    """The connection is refused, or another program answers."""
    SILENT = enum.auto()
    """No conclusive answer in time: it may be busy."""


class _Model(Struct, frozen=True):
    id: str = ""


class _Models(Struct, frozen=True):
    data: tuple[_Model, ...] = ()


class Probe:
    """Probes workers over separate connections."""

    def __init__(self, keys_of: Callable[[Instance], Iterable[str]]) -> None:
        """`keys_of` returns the keys that an instance may have."""
        self._keys_of = keys_of
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def pulse(self, instance: Instance) -> Pulse:
        """Return an instance's state, within PROBE_S."""
        if self._http is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=PROBE_S))
        try:
            for key in self._keys_of(instance):
                headers = {"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"}
                url = f"{instance.url}/v1/models"
                async with self._http.get(url, headers=headers, allow_redirects=False) as answer:
                    if answer.status in STRANGE:
                        continue
                    if has_no_list(instance, answer.status):
                        return Pulse.WELL
                    if answer.status != 200:
                        return Pulse.SILENT
                    return judge(await _read_start(answer), instance.name_at_worker)
        except aiohttp.ClientConnectorError:
            return Pulse.GONE
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return Pulse.SILENT
        return Pulse.GONE


def judge(body: bytes, function: str) -> Pulse:
    """Return the state of a function's instance from its list of models."""
    try:
        models = msgspec.json.decode(body, type=_Models)
    except msgspec.MsgspecError:
        return Pulse.GONE
    return Pulse.WELL if any(m.id == function for m in models.data) else Pulse.GONE


async def _read_start(answer: aiohttp.ClientResponse) -> bytes:
    data = b""
    async for chunk in answer.content.iter_any():
        data += chunk
        if len(data) > MOST_BYTES:
            break
    return data
