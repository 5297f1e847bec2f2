"""Which engines a host has, and how each is run there."""

import importlib.metadata
import importlib.util
import shutil
import sys

from msgspec import Struct


class Engines(Struct, frozen=True):
    """`versions` goes into the host's record; `tools` is how `launch()` runs a program by name."""

    versions: dict[str, str]
    tools: dict[str, tuple[str, ...]]


def discover() -> Engines:
    """Look for engines: the `llama-server` binary before the bundled llama.cpp; the fake one is always there."""
    versions = {"fake": importlib.metadata.version("cortex")}
    tools: dict[str, tuple[str, ...]] = {"fake": (sys.executable, "-m", "cortex.platform.fake_engine")}
    if binary := shutil.which("llama-server"):
        versions["llamacpp"] = "llama-server"
        tools["llama-server"] = (binary,)
    elif importlib.util.find_spec("xllamacpp"):
        versions["llamacpp"] = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        tools["llama-server"] = (sys.executable, "-m", "cortex.platform.llama_server")
    return Engines(versions, tools)
