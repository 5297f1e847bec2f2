"""The tiers of a host: to which of them its workers can go, and why not. Pure."""

from collections.abc import Collection

from cortex.functions.spec import Engine
from cortex.platform.record import Device, Tier
from cortex.platform.serving import address
from cortex.platform.settings import Agent


def host_tiers(
    settings: Agent, park_ram_mb: int, engines: Collection[str], devices: Collection[Device], freeze: str
) -> dict[Tier, str]:
    """Return the reason why each tier is not possible, "" where it is; {} on a host without GPUs, where no instance
    has anything to leave. `freeze` is the freezer's own reason."""
    if all(d.kind == "cpu" for d in devices):
        return {}
    if not park_ram_mb:
        none = "`[agent] park_ram_mb` is 0"
        return {Tier.SLEEP: none, Tier.FREEZE: none}
    sleep = ""
    if not {Engine.VLLM, Engine.FAKE}.intersection(engines):
        sleep = "no engine here can sleep: vLLM is not installed"
    elif not address.is_loopback(address.join(settings.worker_host, 0)):
        sleep = (
            "workers can be reached from other machines, and an engine that can sleep serves routes for developers: "
            "set `[agent] worker_host` to a loopback address"
        )
    return {Tier.SLEEP: sleep, Tier.FREEZE: freeze}
