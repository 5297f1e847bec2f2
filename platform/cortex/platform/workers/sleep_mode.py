"""The sleep mode of an engine, over HTTP: vLLM's routes, which the fake engine has too.

Level 1 moves the weights to pinned RAM and drops the KV cache. What remains on the devices is the CUDA context, graphs
and what the allocator holds.
"""

import msgspec
from msgspec import Struct

from cortex.platform.record import Instance
from cortex.platform.workers.control_calls import CallFailed, ControlCalls
from cortex.platform.workers.control_keys import ControlKeys

ASK_S = 30.0
"""Timeout of the query whether an engine sleeps: it may be falling asleep."""


class SleepFailed(Exception):
    """An engine did not sleep or wake; the message is for operators."""


class SleepMode:
    """Puts the engines of one host's workers to sleep, and wakes them."""

    def __init__(self, control: ControlKeys) -> None:
        self._calls = ControlCalls(control)

    async def sleep(self, instance: Instance, within_s: float) -> None:
        """Put an idle engine to sleep. Raises SleepFailed."""
        await self._move(instance, "/sleep?level=1", within_s, asleep=True)

    async def wake(self, instance: Instance, within_s: float) -> None:
        """Wake an engine. Raises SleepFailed."""
        await self._move(instance, "/wake_up", within_s, asleep=False)

    async def is_sleeping(self, instance: Instance) -> bool | None:
        """Return whether an engine sleeps; None: it does not report it."""
        try:
            status, answer = await self._calls.call(instance, "GET", "/is_sleeping", ASK_S)
        except CallFailed:
            return None
        return _read(answer) if status == 200 else None

    async def _move(self, instance: Instance, path: str, within_s: float, *, asleep: bool) -> None:
        """Have an engine move its memory. What it reports afterwards counts: the time limit also passes while the
        machine stands still."""
        problem = ""
        try:
            status, _ = await self._calls.call(instance, "POST", path, within_s)
            if status != 200:
                problem = f"the engine answered {status} to {path.partition('?')[0]}"
        except CallFailed as error:
            problem = str(error)
        if await self.is_sleeping(instance) is not asleep:
            raise SleepFailed(problem or f"the engine does not report that it {'sleeps' if asleep else 'is awake'}")


def _read(answer: bytes) -> bool | None:
    try:
        return msgspec.json.decode(answer, type=_Answer).is_sleeping
    except msgspec.MsgspecError:
        return None


class _Answer(Struct):
    is_sleeping: bool
