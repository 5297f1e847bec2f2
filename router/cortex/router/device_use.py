"""Splits what this router worker's requests used of GPUs over their keys, functions and hosts, by their tokens.

An agent measures how much of its GPUs each router's requests use at each instance (`agent/device_meter.py`). The router
reports tokens to it, and splits each share by the tokens that its requests had since the last one, or by the requests
in flight if they had none.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from cortex.platform.record import DeviceUse, HostRecord
from cortex.platform.usage import Place, split
from cortex.router.request_record import Finished, RequestRecord

MOST_AGENTS = 1024
"""Agents whose totals are remembered: each restart of an agent makes one more."""


class DeviceUses:
    """What the requests of one router worker used of GPUs."""

    def __init__(
        self,
        router: str,
        hosts: Callable[[], Iterable[HostRecord]],
        live: Callable[[], Iterable[RequestRecord]],
        count: Callable[[Place, DeviceUse], None],
    ) -> None:
        """`live` returns the requests in flight, `count` adds to metrics."""
        self._router, self._hosts, self._live, self._count = router, hosts, live, count
        self._tokens: Counter[str] = Counter()
        """By instance."""
        self._counted: dict[int, int] = {}
        """Tokens of requests in flight that are in `_tokens`, by the identity of the request's record."""
        self._weights: dict[str, Counter[Place]] = {}
        """By instance, the tokens since its last share."""
        self._last: dict[str, Counter[Place]] = {}
        self._taken: dict[str, dict[str, DeviceUse]] = {}
        """By agent and instance, what was split so far; also of agents that are silent; the longest silent first."""

    def finished(self, finished: Finished) -> None:
        """Count the tokens of finished requests."""
        for requests in finished.alike:
            self._add(requests[0], sum([_tokens(r) for r in requests]) - sum(self._take_counted(requests)))

    def tokens(self) -> dict[str, int]:
        """Return the tokens per instance of the fleet, for the router's report."""
        for request_record in self._live():
            number, counted = _tokens(request_record), self._counted.get(id(request_record), 0)
            self._add(request_record, number - counted)
            self._counted[id(request_record)] = max(number, counted)
        present = {i.id for host in self._hosts() for i in host.instances}
        self._tokens = Counter({i: number for i, number in self._tokens.items() if i in present})
        return dict(self._tokens)

    def take(self) -> list[tuple[Place, DeviceUse]]:
        """Return what was used since the last call."""
        parts: list[tuple[Place, DeviceUse]] = []
        for host in self._hosts():
            uses, taken = host.device_use.get(self._router, {}), self._taken.pop(host.agent, {})
            self._taken[host.agent] = uses
            for instance, use in uses.items():
                before = taken.get(instance, DeviceUse())
                if use.gpu_ms < before.gpu_ms or use.mj < before.mj:  # the agent has begun to count anew
                    before = DeviceUse()
                if use != before:
                    parts += self._split(host.name, instance, DeviceUse(use.gpu_ms - before.gpu_ms, use.mj - before.mj))
        while len(self._taken) > MOST_AGENTS:
            del self._taken[next(iter(self._taken))]
        places = {instance for uses in self._taken.values() for instance in uses} | self._tokens.keys()
        self._weights = {i: weights for i, weights in self._weights.items() if i in places}
        self._last = {i: weights for i, weights in self._last.items() if i in places}
        for place, use in parts:
            self._count(place, use)
        return parts

    def _split(self, host: str, instance: str, use: DeviceUse) -> list[tuple[Place, DeviceUse]]:
        """Split a share: by tokens, by the requests in flight, or like the last one if these have ended."""
        in_flight = Counter(_place(r) for r in self._live() if r.instance == instance)
        weights = self._weights.pop(instance, None) or in_flight or self._last.get(instance)
        weights = weights or Counter({Place("", "", host): 1})
        self._last[instance] = weights
        gpu_ms, mj = split(use.gpu_ms, weights), split(use.mj, weights)
        return [(place, DeviceUse(gpu_ms[place], mj[place])) for place in weights]

    def _take_counted(self, requests: Iterable[RequestRecord]) -> list[int]:
        """Return and forget the tokens of requests that were counted while they were in flight."""
        return [self._counted.pop(id(r), 0) for r in requests] if self._counted else []

    def _add(self, like: RequestRecord, new: int) -> None:
        """Count new tokens of a request, or of several like it."""
        if new > 0 and like.instance:
            self._tokens[like.instance] += new
            weights = self._weights.get(like.instance)
            if weights is None:
                weights = self._weights[like.instance] = Counter()
            weights[_place(like)] += new


def _tokens(request_record: RequestRecord) -> int:
    """Return the tokens of a request so far."""
    return request_record.tokens_in + max(request_record.tokens_out, request_record.pieces)


def _place(request_record: RequestRecord) -> Place:
    return Place(request_record.key, request_record.function, request_record.host)
