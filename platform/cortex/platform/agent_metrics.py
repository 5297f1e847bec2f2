"""The agent's metrics in Prometheus' text format, read off its record at the moment they are asked for.

Labels are bounded: devices and states of one host, and the words decisions are noted with.
"""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex.functions.lifecycle import State
from cortex.platform.agent import Agent


class AgentCollector(Collector):
    """Turns a record into metrics."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        record = self._agent.record()
        states = Counter(i.state for i in record.instances)
        instances = GaugeMetricFamily("cortex_agent_instances", "Instances on this host.", labels=["state"])
        for state in State:
            if state is not State.GONE:
                instances.add_metric([state], states[state])
        yield instances
        memory = GaugeMetricFamily(
            "cortex_agent_device_memory_mb", "Memory of a device, in MiB, by what it is.", labels=["device", "kind"]
        )
        for device in record.devices:
            admitted = sum(i.memory_mb for i in record.instances if device.id in i.devices)
            memory.add_metric([device.id, "total"], device.total_mb)
            memory.add_metric([device.id, "admitted"], admitted)
            memory.add_metric([device.id, "foreign"], device.foreign_mb)
            if device.used_mb is not None:
                memory.add_metric([device.id, "used"], device.used_mb)
        yield memory
        decisions = CounterMetricFamily("cortex_agent_decisions", "Decisions by what was done.", labels=["what"])
        for what, count in sorted(self._agent.decided.items()):
            decisions.add_metric([what], count)
        yield decisions
        away = GaugeMetricFamily("cortex_agent_record_away", "1 while Redis does not answer.")
        away.add_metric([], float(self._agent.record_away))
        yield away


def text(agent: Agent) -> bytes:
    """Return all metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(agent))
    return generate_latest(registry)
