"""Keys between processes.

Routers and agents share a secret, the fleet token. A worker's API key is derived from it and the instance's random
id: HMAC-SHA256(token, "worker:" + id). So every instance has its own key, which is neither sent nor stored, and which
an agent can derive again when it adopts a worker. A worker that took over a stale port answers 401 instead of serving
another model.

A router never sends the fleet token itself. It sends an agent a token derived from the host's name and address in the
record: HMAC-SHA256(token, "host:" + both). An agent accepts only the token of its own name and address, so a token
sent to an address that was forged into the record is useless elsewhere.
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

from cortex.platform.settings import SettingsError

TOKEN_BYTES = 32
LOOK_S = 1.0


def worker_key(token: str, instance: str) -> str:
    """Return the API key of one instance."""
    return hmac.new(token.encode(), f"worker:{instance}".encode(), hashlib.sha256).hexdigest()


def cache_salt(token: str, owner: str) -> str:
    """Return the salt for an owner of cached prompts. It reveals neither the token nor the owner."""
    return hmac.new(token.encode(), f"cache:{owner}".encode(), hashlib.sha256).hexdigest()


def host_token(token: str, host: str, address: str) -> str:
    """Return the bearer token for the agent of one host at one address."""
    return hmac.new(token.encode(), f"host:{json.dumps([host, address])}".encode(), hashlib.sha256).hexdigest()


def fleet_mark(token: str) -> str:
    """Return the mark that the fleet with this token leaves in the record. It does not reveal the token."""
    return hmac.new(token.encode(), b"fleet", hashlib.sha256).hexdigest()


def same(secret: str, expected: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(secret.encode(), expected.encode())


def fleet_token(path: Path) -> str:
    """Return the token in a file. Creates the file (mode 0600) if it is missing. Raises SettingsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Link a finished file, so that another process that starts now reads a whole token, never an empty file.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".token-") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return _read(path)[0]


class FleetToken:
    """The tokens of a file, one per line: the first is used, and all are accepted.

    Changes of the file take effect within LOOK_S, so a token is replaced without a restart: add the new one as a
    second line everywhere, then make it the first everywhere, and remove the old one when no worker started under it
    is left.
    """

    def __init__(self, path: Path) -> None:
        """Create the file if it is missing. Raises SettingsError."""
        fleet_token(path)
        self._path, self._looked = path, time.monotonic()
        self._mark, self._tokens = _mark(path), _read(path)

    @property
    def current(self) -> str:
        """The token to use."""
        return self._all()[0]

    def for_host(self, host: str, address: str) -> str:
        """Return the token for the agent of a host at this address."""
        return host_token(self.current, host, address)

    def opens(self, token: str, host: str, address: str) -> bool:
        """Return whether a token is valid for the agent of this host at this address. Compares in constant time.

        The fleet token itself is valid too, since every other one is derived from it.
        """
        valid = [t for own in self._all() for t in (own, host_token(own, host, address))]
        return any([same(token, t) for t in valid])

    def worker_keys(self, instance: str) -> list[str]:
        """Return the keys that an instance may have: that of the current token, and those of the others."""
        return [worker_key(token, instance) for token in self._all()]

    def fleet_marks(self) -> list[str]:
        """Return the marks of all tokens, the current one's first."""
        return [fleet_mark(token) for token in self._all()]

    def _all(self) -> tuple[str, ...]:
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError, SettingsError):  # half written or missing: keep the old tokens
                mark = _mark(self._path)
                if mark != self._mark:
                    self._tokens = _read(self._path)
                    self._mark = mark
        return self._tokens


def _read(path: Path) -> tuple[str, ...]:
    tokens = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not tokens:  # keys derived from an empty token could be guessed
        raise SettingsError(f"{path}: is empty; remove it, and a new token is made")
    return tokens


def _mark(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
