"""How the commands of one user find each other: what a running `cortex up` says of itself, in a private file."""

import os
from pathlib import Path

import msgspec
import platformdirs
import psutil
from msgspec import Struct


class Running(Struct, frozen=True):
    """A running `cortex up`."""

    url: str
    pid: int
    started: float


def state_dir() -> Path:
    """Return where `cortex up` keeps its state."""
    return Path(platformdirs.user_state_dir("cortex", appauthor=False))


def announce(url: str) -> None:
    """Let other commands find this `cortex up`."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    running = Running(url, os.getpid(), psutil.Process().create_time())
    path = folder / "up.json"
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(running))
    fresh.chmod(0o600)
    fresh.replace(path)


def withdraw() -> None:
    """Say that this `cortex up` is over, unless another one has taken its place."""
    found = _read()
    if found is not None and found.pid == os.getpid():
        (state_dir() / "up.json").unlink(missing_ok=True)


def running() -> Running | None:
    """Return the `cortex up` that runs now, if any."""
    found = _read()
    if found is None:
        return None
    try:
        same = abs(psutil.Process(found.pid).create_time() - found.started) < 0.02
    except psutil.Error:
        return None
    return found if same else None


def _read() -> Running | None:
    try:
        return msgspec.json.decode((state_dir() / "up.json").read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
