"""What requests used of GPUs, split over keys and functions by tokens."""

import random
from collections import Counter
from typing import Any

from msgspec.structs import replace

from cortex.platform.agent.device_meter import DeviceMeter
from cortex.platform.record import DeviceUse, HostRecord, RouterReport
from cortex.platform.usage import Place, split
from cortex.router.device_use import DeviceUses
from cortex.router.request_record import Finished, RequestRecord
from tests.support.factories import a_device, a_host, an_instance


class Requests:
    """The requests in flight of a router, and the host that reports what they used."""

    def __init__(self, router: str = "r1") -> None:
        self.live: list[RequestRecord] = []
        self.hosts: list[HostRecord] = [replace(a_host(an_instance("i"), agent="a1"), name="h")]
        self.counted: Counter[Place] = Counter()
        self.uses = DeviceUses(router, lambda: self.hosts, lambda: self.live, self._count)

    def _count(self, place: Place, use: DeviceUse) -> None:
        self.counted[place] += use.mj

    def begin(self, key: str, function: str = "f") -> RequestRecord:
        record = RequestRecord("id", function, function, "chat", streams=True, read_s=0.0)
        record.key, record.instance, record.host = key, "i", "h"
        self.live.append(record)
        return record

    def end(self, record: RequestRecord, **tokens: int) -> None:
        for name, number in tokens.items():
            setattr(record, name, number)
        self.live.remove(record)
        self.uses.finished(Finished([record]))

    def used(self, gpu_ms: int, mj: int, **more: Any) -> None:
        """Have the host report what this router's requests used."""
        self.hosts = [replace(self.hosts[0], device_use={"r1": {"i": DeviceUse(gpu_ms, mj)}}, **more)]


def place(key: str, function: str = "f") -> Place:
    return Place(key, function, "h")


def test_a_share_is_split_by_the_tokens_since_the_last_one() -> None:
    requests = Requests()
    streams, ends = requests.begin("k1"), requests.begin("k2")
    streams.pieces = 30
    requests.end(ends, tokens_in=50, tokens_out=20)
    assert requests.uses.tokens() == {"i": 100}
    requests.used(1000, 500)

    first = requests.uses.take()
    requests.used(1500, 700)
    requests.end(streams, tokens_in=5, tokens_out=40)
    second = requests.uses.take()

    assert dict(first) == {place("k1"): DeviceUse(300, 150), place("k2"): DeviceUse(700, 350)}
    assert second == [(place("k1"), DeviceUse(500, 200))]
    assert requests.uses.tokens() == {"i": 115}
    assert requests.counted == {place("k1"): 350, place("k2"): 350}


def test_without_tokens_the_requests_in_flight_share_and_then_those_of_the_last_share() -> None:
    requests = Requests()
    begun = [requests.begin("k1"), requests.begin("k1"), requests.begin("k2", "g")]
    requests.used(300, 0)
    in_flight = requests.uses.take()
    for record in begun:
        requests.end(record)
    requests.used(600, 0)

    assert dict(in_flight) == {place("k1"): DeviceUse(200, 0), place("k2", "g"): DeviceUse(100, 0)}
    assert dict(requests.uses.take()) == dict(in_flight)


def test_an_agent_that_restarts_counts_from_zero() -> None:
    requests = Requests()
    requests.begin("k1")
    requests.used(1000, 500)
    requests.uses.take()

    requests.used(10, 5, agent="a2")

    assert requests.uses.take() == [(place("k1"), DeviceUse(10, 5))]
    assert requests.uses.take() == []


def test_a_host_that_was_silent_goes_on_from_its_last_report() -> None:
    requests = Requests()
    requests.begin("k1")
    requests.used(1000, 500)
    requests.uses.take()
    hosts, requests.hosts = requests.hosts, []
    assert requests.uses.take() == []

    requests.hosts = hosts
    requests.used(1010, 505)

    assert requests.uses.take() == [(place("k1"), DeviceUse(10, 5))]


def test_parts_add_up_to_the_whole() -> None:
    assert split(100, {"a": 1, "b": 1, "c": 1}) == {"a": 33, "b": 33, "c": 34}
    assert split(7, {}) == {}


def test_the_usage_of_two_routers_adds_up_to_the_counter_of_the_gpu() -> None:
    random_ = random.Random(20)
    routers = {name: Requests(name) for name in ("r1", "r2")}
    meter, instance = DeviceMeter(), an_instance("i", devices=("gpu-0",))
    counter = begin = 7_000_000
    total: Counter[Place] = Counter()
    for second in range(200):
        for requests in routers.values():
            if len(requests.live) < 4:
                requests.begin(random_.choice("kl"), random_.choice("fg"))
            for record in list(requests.live):
                record.pieces += random_.randrange(9)
                if random_.random() < 0.2:
                    requests.end(record, tokens_in=random_.randrange(99), tokens_out=record.pieces)
        reports = {
            name: RouterReport(id=name, in_flight={"i": len(r.live)}, tokens=r.uses.tokens())
            for name, r in routers.items()
        }
        counter += random_.randrange(300_000)
        begin = counter if second == 0 else begin
        meter.sample([a_device("gpu-0", energy_mj=counter)], [instance], reports, float(second))
        for requests in routers.values():
            requests.hosts = [replace(requests.hosts[0], device_use=meter.use)]
            for where, use in requests.uses.take():
                total[where] += use.mj

    assert total.total() == counter - begin
    assert len(total) == 4
