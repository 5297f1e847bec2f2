"""Counts the usage of one router worker's requests, and writes it to the record in batches.

A kill loses what is not written yet: up to `WRITE_S`, or more while Redis is away. A batch that Redis may have taken
is sent again under the same number, so that it counts once.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from operator import attrgetter

from cortex.functions.capabilities import Cost
from cortex.platform.record import DeviceUse
from cortex.platform.registry import RecordUnavailable
from cortex.platform.usage import DAY_S, HOUR_S, OTHER, Place, Row, Sums, cost_nano_usd
from cortex.platform.usage_record import AT_ONCE, Batch, UsageRecord
from cortex.router.request_record import Finished

WRITE_S = 5.0
MOST_ROWS = 20_000
"""Rows in memory, while Redis is away; the rest is added to the row `other`."""
_FREE = Cost()


class UsageCounts:
    """Takes finished requests. `run()` writes while the router runs, `write()` at its end."""

    def __init__(
        self,
        record: UsageRecord,
        cost_of: Callable[[str], Cost],
        names: Callable[[], Mapping[str, str]],
        device_use: Callable[[], Iterable[tuple[Place, DeviceUse]]] = tuple,
        count_cost: Callable[[Place, int], None] = lambda place, nano_usd: None,
    ) -> None:
        """`names` returns the names of keys, `device_use` what requests have used of GPUs since the last call;
        `count_cost` gets what each request costs, unless that is nothing."""
        self._record, self._cost_of, self._names, self._device_use = record, cost_of, names, device_use
        self._count_cost = count_cost
        self._rows: dict[tuple[int, Place], Sums] = {}
        self._unwritten: deque[Batch] = deque()
        self._numbers = count(1)

    def add(self, finished: Finished) -> None:
        """Count finished requests, in the hour of their end."""
        for requests in finished.alike:
            cost = self._cost_of(requests[0].function)
            sums = Sums(
                requests=len(requests),
                tokens_in=sum([r.tokens_in for r in requests]),
                tokens_out=sum([r.tokens_out for r in requests]),
                cached=sum([r.cached for r in requests]),
                cold_starts=sum([r.cold for r in requests]),
                audio_ms=sum([round(r.audio_s * 1000) for r in requests if r.audio_s]),
                characters=sum([r.characters for r in requests]),
                images=sum([r.images for r in requests]),
            )
            if cost != _FREE:
                sums.nano_usd = sum([cost_nano_usd(cost, r.tokens_in, r.tokens_out, r.cached) for r in requests])
            place = Place(requests[0].key, requests[0].function, requests[0].host)
            self._add(place, sums)
            if sums.nano_usd:
                self._count_cost(place, sums.nano_usd)

    def _add(self, place: Place, sums: Sums) -> None:
        hour = int(time.time() // HOUR_S) * HOUR_S
        row = (hour, place)
        if row not in self._rows and len(self._rows) >= MOST_ROWS:
            row = (hour, Place(OTHER, OTHER, OTHER))
        self._rows.setdefault(row, Sums()).add(sums)

    async def run(self) -> None:
        """Write every `WRITE_S`."""
        while True:
            await asyncio.sleep(WRITE_S)
            await self.write()

    async def write(self) -> None:
        """Write now. While the record is unavailable, everything is retained."""
        for place, use in self._device_use():
            self._add(place, Sums(gpu_ms=use.gpu_ms, mj=use.mj))
        with contextlib.suppress(RecordUnavailable):
            await self._send()  # of earlier calls; rows are collected meanwhile, so that they stay few
            self._unwritten.extend(self._batches())
            await self._send()

    async def _send(self) -> None:
        """Write the batches. Raises RecordUnavailable."""
        while self._unwritten:
            await self._record.add(self._unwritten[0], self._names())
            self._unwritten.popleft()

    def _batches(self) -> list[Batch]:
        rows = [Row(at=at, place=place, sums=sums) for (at, place), sums in self._rows.items()]
        self._rows = {}
        by_day: dict[int, list[Row]] = {}
        for row in sorted(rows, key=attrgetter("at")):
            by_day.setdefault(row.at // DAY_S * DAY_S, []).append(row)
        return [
            Batch(next(self._numbers), day, tuple(part))
            for day, rows in by_day.items()
            for part in (rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE))
        ]
