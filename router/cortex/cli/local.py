"""How the commands of one user find each other: what a running `cortex up` says of itself, in a private file."""

import os
import secrets
from pathlib import Path

import msgspec
import platformdirs
import psutil
from msgspec import Struct

from cortex.platform.api_keys import PREFIX, SECRET_BYTES


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
        local_key_path().unlink(missing_ok=True)


def local_key_path() -> Path:
    """Return where `cortex up` keeps the admin key of the user who runs it."""
    return state_dir() / "local.key"


def make_key() -> Path:
    """Write a fresh admin key that only this user can read; return its file."""
    path = local_key_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(PREFIX + secrets.token_urlsafe(SECRET_BYTES) + "\n")
    fresh.replace(path)
    return path


def key_for(url: str) -> str:
    """Return the local admin key, if that URL is this user's own `cortex up`; it is sent nowhere else."""
    found = running()
    if found is None or found.url != url:
        return ""
    try:
        return local_key_path().read_text().strip()
    except OSError:
        return ""


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
