"""What `cortex key --record` changes: Redis, without a router."""

import asyncio
import getpass
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from cortex.cli.exits import NOT_FOUND, UNREACHABLE, Failed
from cortex.cli.settings import settings_of
from cortex.platform.api_keys import ApiKey
from cortex.platform.audit import AuditRecord
from cortex.platform.audit_trail import AuditTrail
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.access.keys import Keys, with_secret, without_digest
from cortex.router.api_types import KeyChange, KeyOverlap, KeysAnswer, KeySecret, NewKey
from cortex.router.errors import KeyNotFound, RequestError

T = TypeVar("T")


class RedisKeys:
    """Keys in Redis, without a router."""

    def __init__(self, config: Path | None) -> None:
        self._settings = settings_of(config)

    def keys(self, name: str = "") -> KeysAnswer:
        """Return every key, or those of a name, and what those with a budget have spent."""

        async def read(keys: Keys) -> KeysAnswer:
            entries = await (keys.keys_of(name) if name else keys.all())
            spent = await keys.spent() if any(k.budget for k in entries) else {}
            return KeysAnswer(keys=tuple(map(without_digest, entries)), spent=spent)

        return self._with(read)

    def new_key(self, request: NewKey) -> KeySecret:
        """Create a key."""
        secret, key = self._with(lambda k: k.make(request), "key new", request.name)
        return with_secret(key, secret)

    def change_key(self, name: str, change: KeyChange) -> tuple[ApiKey, ...]:
        """Change a key."""
        return tuple(map(without_digest, self._with(lambda k: k.change(name, change), "key change", name)))

    def rotate_key(self, name: str, overlap: KeyOverlap) -> KeySecret:
        """Replace a key."""
        secret, key = self._with(lambda k: k.rotate(name, overlap.overlap_s), "key rotate", name)
        return with_secret(key, secret)

    def revoke_key(self, name: str) -> tuple[str, ...]:
        """Delete a key; return the ids that were deleted."""
        return tuple(key.id for key in self._with(lambda k: k.revoke(name), "key revoke", name))

    def _with(self, operation: Callable[[Keys], Awaitable[T]], what: str = "", name: str = "") -> T:
        """Run an operation; with `what`, it is a change, and goes into the audit record."""

        async def run() -> T:
            registry = Registry.of(self._settings)
            try:
                result = await operation(Keys(registry))
                if what:
                    await AuditTrail(registry).append([_audit_record(what, name)])
                return result
            finally:
                await registry.close()

        try:
            return asyncio.run(run())
        except KeyNotFound as error:
            raise Failed(error.message, code=NOT_FOUND, hint="`cortex key ls` lists every key.") from None
        except RequestError as error:
            raise Failed(error.message) from None
        except RecordUnavailable as error:
            raise Failed(str(error), code=UNREACHABLE, hint="Set its URL with CORTEX_REDIS_URL or --config.") from None


def _audit_record(what: str, name: str) -> AuditRecord:
    """Return the entry of a change without a router."""
    address = f"{getpass.getuser()}@{socket.gethostname()}"
    return AuditRecord(
        id=secrets.token_hex(8), at=time.time(), by="record", address=address, what=what, target=name, status=200
    )
