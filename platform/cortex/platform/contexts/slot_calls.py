"""Saves and restores a slot of llama.cpp's server: `POST /slots/N?action=…`, with the instance's own key."""

import re
from typing import TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from cortex.platform import worker_http
from cortex.platform.keys import HostToken
from cortex.platform.record import Instance
from cortex.platform.worker_http import KEY_REFUSED, Unreadable

T = TypeVar("T")
ANSWER_BYTES = 1024 * 1024
FACTS_S = 2.0
_COUNTS = re.compile(r"^llamacpp:prompt_(tokens|seconds)_total ([0-9.]{1,30})$", re.MULTILINE)


class SlotFailed(Exception):
    """A slot was not saved or restored; the message is for operators."""


class Saved(Struct, frozen=True):
    """What a server says it saved."""

    n_saved: int
    n_written: int


class _Restored(Struct, frozen=True):
    n_restored: int


class _Props(Struct, frozen=True):
    build_info: str = ""


class SlotCalls:
    """Calls the workers of one host."""

    def __init__(self, token: HostToken) -> None:
        self._token = token

    async def build(self, instance: Instance) -> str:
        """Return the build that a server reports; "": none. Raises SlotFailed."""
        answer = await self._call(instance, "GET", "/props", None, FACTS_S)
        return _read(answer, _Props).build_info

    async def prefill_rate(self, instance: Instance) -> float:
        """Return how many prompt tokens a second a server has processed so far; 0: unknown. Raises SlotFailed."""
        metrics = (await self._call(instance, "GET", "/metrics", None, FACTS_S)).decode(errors="replace")
        counts = {m[1]: float(m[2]) for m in _COUNTS.finditer(metrics)}
        seconds = counts.get("seconds", 0.0)
        return counts.get("tokens", 0.0) / seconds if seconds > 0 else 0.0

    async def save(self, instance: Instance, slot: int, name: str, within_s: float) -> Saved:
        """Save a slot to a file in the instance's folder. Raises SlotFailed."""
        return _read(await self._slot(instance, slot, "save", {"filename": name}, within_s), Saved)

    async def restore(self, instance: Instance, slot: int, name: str, within_s: float) -> int:
        """Restore a slot from a file; return how many tokens it has then. Raises SlotFailed."""
        answer = await self._slot(instance, slot, "restore", {"filename": name}, within_s)
        return _read(answer, _Restored).n_restored

    async def erase(self, instance: Instance, slot: int, within_s: float) -> None:
        """Empty a slot. Raises SlotFailed."""
        await self._slot(instance, slot, "erase", {}, within_s)

    async def _slot(self, instance: Instance, slot: int, action: str, body: object, within_s: float) -> bytes:
        return await self._call(instance, "POST", f"/slots/{slot}?action={action}", body, within_s)

    async def _call(self, instance: Instance, method: str, path: str, body: object, within_s: float) -> bytes:
        timeout = aiohttp.ClientTimeout(total=within_s)
        try:
            async with worker_http.session() as http:
                for key in self._token.worker_keys(instance.id):
                    headers, url = worker_http.headers(key), instance.url + path
                    async with http.request(
                        method, url, json=body, headers=headers, timeout=timeout, allow_redirects=False
                    ) as answer:
                        if answer.status in KEY_REFUSED:
                            continue
                        content = await worker_http.whole(answer, ANSWER_BYTES)
                        if answer.status != 200:  # the text may be anything: only the status is shown
                            raise SlotFailed(f"the engine answered {answer.status} to {path}")
                        return content
        except TimeoutError:
            raise SlotFailed(f"the engine did not answer {path} within {within_s:.1f} s") from None
        except (*worker_http.BREAKS, OSError, Unreadable) as error:
            raise SlotFailed(f"{path}: {worker_http.failure(error)}") from None
        raise SlotFailed("the engine refuses the instance's key")


def _read(answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError:
        raise SlotFailed("the engine's answer has another form than expected") from None
