"""Splits the time and the energy of a host's GPUs over the routers whose requests used them. Pure.

Between two readings, a GPU's time and the growth of its energy counter belong to the instances on it, in proportion to
the tokens that each router reports for each instance. If none reports tokens (a long prompt, an answer that comes
whole), they belong to the requests in flight; without any, the GPU was idle, and they belong to none.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from cortex.platform.record import Device, DeviceUse, Instance, RouterReport
from cortex.platform.usage import split

T = TypeVar("T")
Use = tuple[str, str]
"""A router, and an instance that its requests use."""

KEEP_S = 60.0
"""How long what was used stays in the record after its instance or its router has left: routers read it, and a router
whose report is late goes on from its last one."""


class DeviceMeter:
    """What each router's requests have used at each instance of this host, since this agent started."""

    def __init__(self) -> None:
        self.use: dict[str, dict[str, DeviceUse]] = {}
        """By router, and by instance. A new value after each sample."""
        self._use: dict[Use, DeviceUse] = {}
        self._read: dict[str, tuple[float, int | None]] = {}
        """By GPU, the time and the counter of the last sample."""
        self._tokens: dict[Use, int] = {}
        self._seen: dict[str, float] = {}
        """When each instance and router was last present."""

    def sample(
        self, devices: Iterable[Device], instances: Iterable[Instance], reports: Mapping[str, RouterReport], now: float
    ) -> None:
        """Take a reading of the devices, and the routers' reports at that time."""
        tokens = {(r, i): number for r, report in reports.items() for i, number in report.tokens.items()}
        # What a router has counted before it was seen here is no growth.
        before = {use: self._tokens.get(use, 0 if use[0] in self._seen else number) for use, number in tokens.items()}
        done = {use: number - before[use] for use, number in tokens.items() if number > before[use]}
        in_flight = {
            (r, i): number for r, report in reports.items() for i, number in report.in_flight.items() if number
        }
        present = list(instances)
        for device in devices:
            if device.kind != "gpu":
                continue
            gpu_ms, mj = self._growth(device, now)
            here = {i.id for i in present if device.id in i.devices}
            weights = _at(done, here) or _at(in_flight, here)
            energy = split(mj, weights)
            for user, ms in split(gpu_ms, weights).items():
                earlier = self._use.get(user, DeviceUse())
                self._use[user] = DeviceUse(earlier.gpu_ms + ms, earlier.mj + energy[user])
        self._seen |= {i.id: now for i in present} | dict.fromkeys(reports, now)
        self._seen = {id: at for id, at in self._seen.items() if now - at < KEEP_S}
        self._tokens = self._recent(self._tokens | tokens)
        self._use = self._recent(self._use)
        by_router: dict[str, dict[str, DeviceUse]] = {}
        for (router, instance), use in self._use.items():
            by_router.setdefault(router, {})[instance] = use
        self.use = by_router

    def _recent(self, values: Mapping[Use, T]) -> dict[Use, T]:
        """Return the values of instances and routers that were present lately."""
        return {(r, i): value for (r, i), value in values.items() if r in self._seen and i in self._seen}

    def _growth(self, device: Device, now: float) -> tuple[int, int]:
        """Return the milliseconds and millijoules since the last sample of a GPU; 0 for the first one. A counter that
        is not reported keeps its last value, and one that is lower was reset with the driver."""
        at, counter = self._read.get(device.id, (now, None))
        present = counter if device.energy_mj is None else device.energy_mj
        self._read[device.id] = (now, present)
        mj = 0 if counter is None or present is None else max(0, present - counter)
        return max(0, round(1000 * now) - round(1000 * at)), mj


def _at(weights: Mapping[Use, int], instances: set[str]) -> dict[Use, int]:
    return {use: weight for use, weight in weights.items() if use[1] in instances}
