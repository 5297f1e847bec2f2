"""Keys between processes.

The fleet token is the secret that routers and agents share. A worker's API key is derived from it and the
instance's random id: HMAC-SHA256(token, "worker:" + id). Every instance so has a key of its own that nobody
else can guess, both sides know it without its being sent or stored, and an agent that re-adopts a worker
knows it again. A worker that took over a stale port answers 401 instead of another model's words.

Routers never send the fleet token. What an agent gets is derived from its host's name and address as the record has
them: HMAC-SHA256(token, "host:" + both). An agent accepts it for its own name and address alone, so what a router
sends to an address that somebody forged into the record opens no agent.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from pathlib import Path

from cortex.platform import text_files
from cortex.platform.settings import SettingsError

TOKEN_BYTES = 32
LOOK_S = 1.0


def worker_key(token: str, instance: str) -> str:
    """Return the API key of one instance."""
    return hmac.new(token.encode(), f"worker:{instance}".encode(), hashlib.sha256).hexdigest()


def cache_salt(token: str, owner: str) -> str:
    """Return the salt of an owner of cached prompts; neither the token nor the owner follows from it."""
    return hmac.new(token.encode(), f"cache:{owner}".encode(), hashlib.sha256).hexdigest()


def host_token(token: str, host: str, address: str) -> str:
    """Return the bearer token for the agent of one host at one address."""
    return hmac.new(token.encode(), f"host:{json.dumps([host, address])}".encode(), hashlib.sha256).hexdigest()


def fleet_mark(token: str) -> str:
    """Return what the record is marked with by the fleet that has this token; the token does not follow from it."""
    return hmac.new(token.encode(), b"fleet", hashlib.sha256).hexdigest()


def same(given: str, expected: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


def fleet_token(path: Path) -> str:
    """Return the token in a file, making the file (mode 0600) when it is not there. Raises SettingsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # A link of a finished file: whoever comes second finds a whole token, never an empty file.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".token-") as fresh:
            fresh.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            fresh.flush()
            with contextlib.suppress(FileExistsError):
                os.link(fresh.name, path)
    return _read(path)[0]


class FleetToken:
    """The tokens of a file, one to a line: the first is used, and all of them are accepted.

    The file is followed. So a token is changed without a restart and without a gap: add the new one as a second line
    everywhere, then make it the first everywhere, and drop the old one when no worker is left that was started
    under it.
    """

    def __init__(self, path: Path) -> None:
        """Make the file when it is not there. Raises SettingsError."""
        fleet_token(path)
        self._path, self._looked = path, time.monotonic()
        self._mark, self._tokens = _mark(path), _read(path)

    @property
    def current(self) -> str:
        """The token to use."""
        return self._all()[0]

    def for_host(self, host: str, address: str) -> str:
        """Return the token to send to the agent of a host at this address."""
        return host_token(self.current, host, address)

    def opens(self, given: str, host: str, address: str) -> bool:
        """Whether a token opens the agent of this host at this address, in constant time.

        The fleet token itself does: whoever has it can derive every other one.
        """
        tokens = self._all()
        return any([same(given, t) for token in tokens for t in (token, host_token(token, host, address))])

    def worker_keys(self, instance: str) -> list[str]:
        """Return the keys an instance may have: the one it gets today, and those of earlier tokens."""
        return [worker_key(token, instance) for token in self._all()]

    def fleet_marks(self) -> list[str]:
        """Return the marks of our tokens: of the one in use, and of the others."""
        return [fleet_mark(token) for token in self._all()]

    def _all(self) -> tuple[str, ...]:
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError, SettingsError):  # half written or gone: the old tokens stand
                mark = _mark(self._path)
                if mark != self._mark:
                    self._tokens = _read(self._path)
                    self._mark = mark
        return self._tokens


def _read(path: Path) -> tuple[str, ...]:
    tokens = tuple(line.strip() for line in text_files.read(path).splitlines() if line.strip())
    if not tokens:  # keys derived from nothing could be guessed by anybody
        raise SettingsError(f"{path}: is empty; remove it and a token is made anew")
    return tokens


def _mark(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
