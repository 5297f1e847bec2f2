"""How the commands of one user find each other: what a running `cortex up` says of itself, in a private file."""

import fcntl
import os
import secrets
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from cortex.platform import process_id
from cortex.platform.api_keys import PREFIX, SECRET_BYTES
from cortex.platform.record import ProcessId


class Running(Struct, frozen=True):
    """A running `cortex up`."""

    url: str
    process: ProcessId


class AlreadyUp(Exception):
    """Another `cortex up` of this user runs, or is starting."""


def state_dir() -> Path:
    """Return where `cortex up` keeps its state."""
    return Path(platformdirs.user_state_dir("cortex", appauthor=False))


def lock() -> int:
    """Take this user's place for one `cortex up`. Return the descriptor that holds it; children are to inherit it, so
    that the place is free only when all of them have ended. Raises AlreadyUp; BlockingIOError while the children of
    one that was killed are still ending.
    """
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        if holder is None or process_id.is_alive(holder):
            found = running()
            where = f"{found.url} (pid {found.process.pid})" if found else "it is still starting"
            raise AlreadyUp(f"`cortex up` runs already: {where}") from None
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, msgspec.json.encode(process_id.own()), 0)
    return descriptor


def _holder(descriptor: int) -> ProcessId | None:
    try:
        return msgspec.json.decode(os.pread(descriptor, 1000, 0), type=ProcessId)
    except (OSError, msgspec.MsgspecError):
        return None


def announce(url: str) -> None:
    """Let other commands find this `cortex up`."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    running = Running(url, process_id.own())
    path = folder / "up.json"
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(running))
    fresh.chmod(0o600)
    fresh.replace(path)


def withdraw() -> None:
    """Say that this `cortex up` is over, unless another one has taken its place."""
    found = _read()
    if found is not None and found.process.pid == os.getpid():
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
    return found if found is not None and process_id.is_alive(found.process) else None


def _read() -> Running | None:
    try:
        return msgspec.json.decode((state_dir() / "up.json").read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
