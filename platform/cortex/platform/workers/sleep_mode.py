"""The sleep mode of an engine, over HTTP: vLLM's routes, which the fake engine has too.

Level 1 moves the weights to pinned RAM and drops the KV cache. What remains on the devices is the CUDA context, graphs
and what the allocator holds.
"""

import aiohttp
import msgspec
from msgspec import Struct

from cortex.platform import worker_http
from cortex.platform.record import Instance
from cortex.platform.worker_http import Unreadable
from cortex.platform.workers.control_keys import ControlKeys

ASK_S = 30.0
"""Timeout of the query whether an engine sleeps: it may be falling asleep."""
ANSWER_BYTES = 64 * 1024


class SleepFailed(Exception):
    """An engine did not sleep or wake; the message is for operators."""


class SleepMode:
    """Puts the engines of one host's workers to sleep, and wakes them."""

    def __init__(self, control: ControlKeys) -> None:
        self._control = control

    async def sleep(self, instance: Instance, within_s: float) -> None:
        """Put an idle engine to sleep. Raises SleepFailed."""
        await self._post(instance, "/sleep?level=1", within_s)
        if await self.is_sleeping(instance) is not True:
            raise SleepFailed("the engine does not report that it sleeps")

    async def wake(self, instance: Instance, within_s: float) -> None:
        """Wake an engine. Raises SleepFailed."""
        await self._post(instance, "/wake_up", within_s)
        if await self.is_sleeping(instance) is not False:
            raise SleepFailed("the engine does not report that it is awake")

    async def is_sleeping(self, instance: Instance) -> bool | None:
        """Return whether an engine sleeps; None: it does not report it."""
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        try:
            async with (
                worker_http.session() as http,
                http.get(
                    f"{instance.url}/is_sleeping",
                    headers=self._headers(instance),
                    timeout=timeout,
                    allow_redirects=False,
                ) as answer,
            ):
                if answer.status != 200:
                    return None
                return _read(await worker_http.whole(answer, ANSWER_BYTES))
        except (*worker_http.BREAKS, OSError, TimeoutError, Unreadable):
            return None

    async def _post(self, instance: Instance, path: str, within_s: float) -> None:
        timeout = aiohttp.ClientTimeout(total=within_s)
        try:
            async with (
                worker_http.session() as http,
                http.post(
                    instance.url + path, headers=self._headers(instance), timeout=timeout, allow_redirects=False
                ) as answer,
            ):
                if answer.status != 200:
                    raise SleepFailed(f"the engine answered {answer.status} to {path.partition('?')[0]}")
        except TimeoutError:
            raise SleepFailed(f"the engine did not answer {path.partition('?')[0]} within {within_s:.0f} s") from None
        except (*worker_http.BREAKS, OSError) as error:
            raise SleepFailed(f"{path.partition('?')[0]}: {worker_http.failure(error)}") from None

    def _headers(self, instance: Instance) -> dict[str, str]:
        return worker_http.headers(self._control.key(instance.id))


def _read(answer: bytes) -> bool | None:
    try:
        return msgspec.json.decode(answer, type=_Answer).is_sleeping
    except msgspec.MsgspecError:
        return None


class _Answer(Struct):
    is_sleeping: bool
