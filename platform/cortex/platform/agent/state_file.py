"""What an agent must know after its own restart: the workers it left running, and what failed.

One file in the host's state directory, replaced whole, so that it is read either as it was or as it is. A worker
is known again by pid and start time; its API key is derived, so none is kept here.
"""

import contextlib
import fcntl
import os
import typing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

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
    """Read the file; one that is missing or cannot be understood holds nothing.

    After a rollback it may hold what only the later release knows: that is left out, not the workers it stands by.
    """
    try:
        text = path.read_bytes()
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(text, type=AgentState)
        return msgspec.convert(_known(AgentState, msgspec.json.decode(text)), AgentState)
    except (OSError, msgspec.MsgspecError):
        return AgentState()


def _known(kind: Any, value: Any) -> Any:
    """Return decoded JSON without the keys that `kind`, or a struct anywhere in it, does not have."""
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return [_known(typing.get_args(kind)[0], one) for one in value]
    struct = next((k for k in (kind, *typing.get_args(kind)) if isinstance(k, type) and issubclass(k, Struct)), None)
    if struct is None or not isinstance(value, dict):
        return value
    fields = {f.encode_name: f.type for f in msgspec.structs.fields(struct)}
    return {k: _known(fields[k], v) for k, v in value.items() if k in fields}
