"""The keys that open what an engine does for its operator: to sleep, to wake up.

They follow from a secret of this agent that never leaves its host, unlike the keys of workers, which routers derive. It
outlives the agent, so the next one can wake its workers.
"""

import hmac
import secrets
from pathlib import Path

from cortex.platform.workers.process import write_private

FILE = "control.key"


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
            if secret := self._path.read_bytes().strip():
                return secret
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        secret = secrets.token_hex(32).encode()
        write_private(self._path, f"{secret.decode()}\n")
        return secret
