"""Keys between processes.

The fleet token is the secret that routers and agents share. A worker's API key is derived from it and the
instance's random id: HMAC-SHA256(token, "worker:" + id). Every instance so has a key of its own that nobody
else can guess, both sides know it without its being sent or stored, and an agent that re-adopts a worker
knows it again. A worker that took over a stale port answers 401 instead of another model's words.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from cortex.platform.settings import SettingsError

TOKEN_BYTES = 32


def worker_key(token: str, instance: str) -> str:
    """Return the API key of one instance."""
    return hmac.new(token.encode(), f"worker:{instance}".encode(), hashlib.sha256).hexdigest()


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
    token = path.read_text().strip()
    if not token:  # keys derived from nothing could be guessed by anybody
        raise SettingsError(f"{path}: is empty; remove it and a token is made anew")
    return token
