"""Keys for the paths of an engine that only its operator may call, such as sleep and wake-up.

They are derived from a secret of this agent that never leaves its host. Worker keys, by contrast, can be derived by
routers. The secret outlives the agent, so the next one can wake its workers.
"""

import hmac
import secrets
from pathlib import Path

from cortex.platform.workers.process import write_private

FILE = "control.key"
LEAST_BYTES = 32
"""Least length of the secret: that of the digests derived from it."""


class ControlKeys:
    """The control keys of one host's workers."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._secret = b""

    def key(self, instance: str) -> str:
        """Return the control key of an instance. Raises OSError."""
        if not self._secret:
            self._secret = self._read()
        return hmac.digest(self._secret, f"cortex control {instance}".encode(), "sha256").hex()

    def _read(self) -> bytes:
        try:
            secret = self._path.read_bytes().strip()
        except FileNotFoundError:
            secret = secrets.token_hex(LEAST_BYTES).encode()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_private(self._path, secret + b"\n", durable=True)
        if len(secret) < LEAST_BYTES:
            raise OSError(
                f"{self._path} has {len(secret)} bytes, but the secret of the control keys has at least {LEAST_BYTES}: "
                "restore it, or remove it and restart the agent when no worker is parked"
            )
        return secret
