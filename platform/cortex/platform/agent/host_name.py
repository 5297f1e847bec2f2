"""Ownership of a host name: two machines with one name would overwrite each other's record.

A record has its home: the boot of the machine and the state directory. An agent does not start while another home
publishes under its name. Agents that start at the same time, or while Redis is away, both start; then Redis accepts the
record of only one of them (`Registry.publish_host`).
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cortex.platform import clock
from cortex.platform.record import HostRecord

LOOK_S = 0.25
MOST_WAIT_S = 60.0


class NameTaken(Exception):
    """The agent of another machine publishes under this host's name."""

    def __init__(self, holder: HostRecord) -> None:
        super().__init__(name_taken(holder))
        self.holder = holder


class Records(Protocol):
    """Reads hosts' records. Raises RecordUnavailable."""

    async def host(self, name: str, now: float) -> HostRecord | None: ...

    async def host_left_s(self, name: str) -> float: ...


def name_taken(holder: HostRecord) -> str:
    """Return the error text that names the holder of a host name."""
    since = ""
    if holder.started:
        since = f" since {datetime.fromtimestamp(round(clock.wall(holder.started)), UTC):%Y-%m-%d %H:%M:%S} UTC"
    version = f", version {holder.version}" if holder.version else ""
    return f"another machine has the host name '{holder.name}'{since}: {holder.address}{version}"


def home(state_dir: Path, boot: str) -> str:
    """Return an id of this machine's boot and state directory. Raises OSError.

    Not the machine id: a cloned image has that of its original, and a container may have none. Containers of one
    machine share its boot; their state directories are different files.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    place = state_dir.stat()
    marks = (boot, str(state_dir.resolve()), str(place.st_dev), str(place.st_ino))
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]


async def check_name(
    records: Records, name: str, own_home: str, now: Callable[[], float] = clock.now, look_s: float = LOOK_S
) -> None:
    """Raise NameTaken while the agent of another home is alive under this name, and RecordUnavailable without Redis.

    A record alone proves no life: it outlives its agent by three heartbeats, for example over a quick reboot of this
    very machine. An agent that lives publishes again before it expires.
    """
    first = await records.host(name, now())
    if first is None or not first.home or first.home == own_home:
        return
    deadline = time.monotonic() + min(await records.host_left_s(name) + look_s, MOST_WAIT_S)
    while time.monotonic() < deadline:
        await asyncio.sleep(look_s)
        current = await records.host(name, now())
        if current is None or current.home == own_home:
            return
        if (current.agent, current.sequence) != (first.agent, first.sequence):
            raise NameTaken(current)
