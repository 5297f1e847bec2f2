"""What an agent must know after its own restart: the workers it left running, and what failed.

One file in the host's state directory, replaced whole, so that it is read either as it was or as it is. A worker
is known again by pid and start time; its API key is derived, so none is kept here.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from cortex.platform.scheduling.kept import AgentState


class AnotherAgent(Exception):
    """An agent runs with this state directory already: two would take each other's workers for orphans."""


def lock(path: Path) -> int:
    """Take the state for this process, for as long as it lives. Raises AnotherAgent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AnotherAgent(f"another agent runs with {path}") from None
    return descriptor


def write(path: Path, state: AgentState) -> None:
    """Replace the file, so that a crash leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(state))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read(path: Path) -> AgentState:
    """Read the file; one that is missing or cannot be understood holds nothing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=AgentState)
    except (OSError, msgspec.MsgspecError):
        return AgentState()
