"""What an agent writes into the record, and when."""

from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from cortex.platform.agent.counts import AgentCounts
from cortex.platform.agent.publisher import HostPublisher
from cortex.platform.record import HostRecord
from tests.support.factories import HOST, a_host, an_instance


@dataclass
class Written:
    """A record that takes every write."""

    hosts: list[HostRecord] = field(default_factory=list)

    async def publish_host(self, record: HostRecord, ttl_s: float) -> None:
        self.hosts.append(record)

    async def publish_counts(self, *_: object) -> None:
        pass


async def test_a_heartbeat_has_the_change_of_the_write_before_and_a_change_a_new_one() -> None:
    written, host = Written(), replace(a_host(), agent="agent-1")
    registry: Any = written
    publisher = HostPublisher(registry, lambda: host, AgentCounts(HOST), 60.0)

    await publisher.publish()
    publisher.beat()
    await publisher.publish()
    host = replace(host, instances=(an_instance(),))
    await publisher.publish()

    assert [(h.sequence, h.change) for h in written.hosts] == [(1, "agent-1.1"), (2, "agent-1.1"), (3, "agent-1.3")]
