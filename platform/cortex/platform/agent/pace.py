"""A limit on the bytes per second of all transfers together."""

import asyncio


class Pace:
    """Gives each piece its time to be sent, one after the other. Belongs to one event loop."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s, self._free_at = bytes_s, 0.0

    async def wait(self, size: int) -> None:
        """Wait until a piece of `size` bytes may be sent."""
        if (wait_s := self.reserve(size, asyncio.get_running_loop().time())) > 0:
            await asyncio.sleep(wait_s)

    def reserve(self, size: int, now: float) -> float:
        """Reserve the next time for a piece; return how long it is until then."""
        begin = max(now, self._free_at)
        self._free_at = begin + size / self._bytes_s
        return begin - now
