"""The agent's own `/metrics`, behind the fleet token: what it counted, and its devices as they stand.

The metrics port of any router says the same, of all hosts at once; this is for looking at one host alone.
"""

from cortex.platform import metrics
from cortex.platform.agent.loop import Agent
from cortex.platform.fleet_gauges import fleet_gauges
from cortex.platform.meter import Count, Snapshot, added
from cortex.platform.meter import text as said
from cortex.platform.record import Fleet


def text(agent: Agent) -> bytes:
    """Return all metrics as Prometheus reads them."""
    record = agent.record()
    now = list(fleet_gauges(Fleet(hosts={record.name: record}), {}, record.at))
    gauges = [c for c in now if c.name not in (metrics.ROUTERS.name, metrics.HOSTS.name)]
    gauges.append(Count(metrics.RECORD_UP.name, (), float(not agent.herald.record_away)))
    return said(added([agent.herald.counts.snapshot(), Snapshot(gauges=tuple(gauges))]))
