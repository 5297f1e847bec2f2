"""The state of a user's running `cortex up`, in private files, for the other commands."""

import fcntl
import os
import secrets
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from cortex.platform.api_keys import PREFIX, SECRET_BYTES
from cortex.platform.process import process_id
from cortex.platform.record import ProcessId


class Running(Struct, frozen=True):
    """A running `cortex up`."""

    url: str
    process: ProcessId


class AlreadyUp(Exception):
    """Another `cortex up` of this user is running or starting."""


def state_dir() -> Path:
    """Return the state folder of `cortex up`."""
    return Path(platformdirs.user_state_dir("cortex", appauthor=False))


def lock() -> int:
    """Take this user's lock for `cortex up`; return its descriptor. Children inherit it, so that the lock is free only
    when all of them have exited. Raises AlreadyUp; BlockingIOError while children of a killed `cortex up` still exit.
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
            other = running()
            where = f"{other.url} (pid {other.process.pid})" if other else "it is still starting"
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
    """Publish this `cortex up` for other commands."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    running = Running(url, process_id.own())
    path = folder / "up.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(running))
    temporary.chmod(0o600)
    temporary.replace(path)


def withdraw() -> None:
    """Remove the state of this `cortex up`, unless another one has replaced it."""
    current = _read()
    if current is not None and current.process.pid == os.getpid():
        (state_dir() / "up.json").unlink(missing_ok=True)
        local_key_path().unlink(missing_ok=True)


def local_key_path() -> Path:
    """Return the file with the admin key of the user who runs `cortex up`."""
    return state_dir() / "local.key"


def make_key() -> Path:
    """Write a new admin key that only this user can read; return its file."""
    path = local_key_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(PREFIX + secrets.token_urlsafe(SECRET_BYTES) + "\n")
    temporary.replace(path)
    return path


def key_for(url: str) -> str:
    """Return the local admin key if the URL is that of this user's `cortex up`, else empty."""
    current = running()
    if current is None or current.url != url:
        return ""
    try:
        return local_key_path().read_text().strip()
    except OSError:
        return ""


def running() -> Running | None:
    """Return this user's running `cortex up`, if any."""
    current = _read()
    return current if current is not None and process_id.is_alive(current.process) else None


def _read() -> Running | None:
    try:
        return msgspec.json.decode((state_dir() / "up.json").read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
