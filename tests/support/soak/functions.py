"""What a soak serves: twelve functions that do not all fit on three hosts, and misbehave in their own ways."""

import json

from cortex.functions import catalogue
from tests.support.catalogues import aliases, fake

SIZES_MB = {"small": (24576, 24576), "tall": (81920,), "middle": (49152,)}
"""Hosts and their devices."""

CLOCKS = {"start_timeout_s": 6, "request_timeout_s": 12}
MODELS = "\n".join(
    [
        fake("soak/tiny", vram_mb=4000, idle_after_s=1, queue=2, **CLOCKS),
        fake("soak/half-a", "--tps", "8", vram_mb=12000, idle_after_s=2, **CLOCKS),
        fake("soak/half-b", "--tps", "8", vram_mb=12000, **CLOCKS),
        fake("soak/whole", "--load-s", "0.5", vram_mb=24000, idle_after_s=15, **CLOCKS),
        fake("soak/pair", "--tps", "30", vram_mb=40000, min_devices=2, idle_after_s=3, **CLOCKS),
        fake("soak/large", "--load-s", "1", vram_mb=60000, min_device_vram_mb=50000, idle_after_s=15, **CLOCKS),
        fake("soak/big", vram_mb=40000, **CLOCKS),
        fake("soak/pinned", "--tps", "6", vram_mb=10000, pinned_on=["tall"], **CLOCKS),
        fake("soak/stubborn", "--ignore-term", "--leave-grandchild", "--leave-daemon", "--hold-stdout",
             vram_mb=8000, idle_after_s=1, **CLOCKS),
        fake("soak/slow", "--load-s", "3", "--tps", "20", "--tokens", "40", vram_mb=14000, idle_after_s=2,
             start_timeout_s=2, request_timeout_s=12),
        fake("soak/leaky", "--memory-mb", "5000", "--leak-mb-per-request", "1", "--tps", "12", vram_mb=12000, **CLOCKS),
        fake("soak/fragile", "--crash-after", "6", vram_mb=6000, idle_after_s=2, **CLOCKS),
        aliases({"half": "soak/half-a", "streams": "soak/half-b", "long": "soak/large", "longer": "long"}),
    ]
)  # fmt: skip
CATALOGUE = catalogue.read(MODELS, file="models.toml", folder=".")
FUNCTIONS = tuple(CATALOGUE.functions)
NAMES = (*FUNCTIONS, *CATALOGUE.aliases)
POPULAR = ("soak/tiny", "soak/half-a", "streams", "soak/pinned", "soak/stubborn", "soak/leaky", "soak/fragile", "half")
UNKNOWN = "soak/unknown"
"""A name that is not in the catalogue."""

TOKENS = {"soak/slow": 40}
MORTAL = frozenset({"soak/fragile"})
"""What breaks by itself."""

_QUICK = {
    "CORTEX_AGENT__HEALTH_S": "0.3",
    "CORTEX_AGENT__STOP_GRACE_S": "1",
    "CORTEX_AGENT__DRAIN_GRACE_S": "4",
    "CORTEX_AGENT__RESERVE_MB": "0",
    "CORTEX_AGENT__START_SILENCE_S": "12",
}


def agents() -> dict[str, dict[str, str]]:
    """Return the settings of the hosts' agents, as environment variables."""
    devices = {h: [{"name": f"{mb} MiB", "vram_mb": mb} for mb in sizes] for h, sizes in SIZES_MB.items()}
    return {h: {**_QUICK, "CORTEX_AGENT__DEVICES": json.dumps(d)} for h, d in devices.items()}
