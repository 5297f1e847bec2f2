"""The agent's `/metrics`, behind the fleet token: its counters and the current state of its devices.

The metrics port of any router has the same for all hosts; this is for one host alone.
"""

from cortex.platform import metrics
from cortex.platform.agent.loop import Agent
from cortex.platform.fleet import Fleet
from cortex.platform.fleet_gauges import fleet_gauges
from cortex.platform.meter import Count, Snapshot, add_up
from cortex.platform.meter import text as exposition


def text(agent: Agent) -> bytes:
    """Return all metrics in Prometheus format."""
    record = agent.record()
    now = list(fleet_gauges(Fleet(hosts={record.name: record}), {}, record.at))
    gauges = [c for c in now if c.name not in (metrics.ROUTERS.name, metrics.HOSTS.name)]
    gauges.append(Count(metrics.RECORD_UP.name, (), float(not agent.publisher.record_away)))
    return exposition(add_up([agent.publisher.counts.snapshot(), Snapshot(gauges=tuple(gauges))]))
