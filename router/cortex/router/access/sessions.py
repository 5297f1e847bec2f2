"""Browser sessions behind the status page's cookie.

A cookie holds a random id and a seal, never an API key. Redis maps the id's SHA-256 to the digest of the key that
opened the session, so every router worker accepts it and a logout ends it everywhere at once. Rights belong to the
key: a session whose key was revoked, rotated or has expired grants nothing.

Every request with a cookie reads Redis once, so only ids with a valid seal (HMAC under the fleet token) are looked
up: a forged cookie costs no Redis call. While Redis is unavailable, this worker uses its cached sessions.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

from cortex.platform.api_keys import Principal, Session, digest
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.access.keyring import KeyRing

SESSION_S = 7 * 86400
MOST_SESSIONS = 1000
"""Limit over all keys; one more ends the oldest."""
ID_BYTES = 32


class Sessions:
    """Begins, finds and ends sessions. `token` returns the fleet token that seals them."""

    def __init__(self, registry: Registry, ring: KeyRing, token: Callable[[], str]) -> None:
        self._registry, self._ring, self._token = registry, ring, token
        self._cache: dict[str, Session] = {}

    async def begin(self, secret: str) -> str:
        """Begin a session for an API key; return its cookie. Raises RecordUnavailable."""
        id = secrets.token_urlsafe(ID_BYTES)
        now = time.time()
        session = Session(key=digest(secret), began=now, ends=now + SESSION_S)
        sessions = await self._registry.api_keys.sessions()
        ended = [name for name, entry in sessions.items() if entry.ends <= now]
        alive = sorted((entry.began, name) for name, entry in sessions.items() if entry.ends > now)
        ended += [name for _, name in alive[: max(0, len(alive) - MOST_SESSIONS + 1)]]
        await self._registry.api_keys.begin_session(digest(id), session, ended)
        return f"{id}.{self._seal(id)}"

    async def find(self, cookie: str) -> Principal | None:
        """Return the principal of a cookie's session, or None."""
        name = self._name(cookie)
        if name is None:
            return None
        try:
            session = await self._registry.api_keys.session(name)
        except RecordUnavailable:
            session = self._cache.get(name)
        else:
            self._remember(name, session)
        if session is None or session.ends <= time.time():
            return None
        return self._ring.by_digest(session.key)

    async def end(self, cookie: str) -> None:
        """End a session on every worker. Raises RecordUnavailable; the session then stays open."""
        if name := self._name(cookie):
            await self._registry.api_keys.end_session(name)
            self._remember(name, None)

    def _remember(self, name: str, session: Session | None) -> None:
        self._cache.pop(name, None)
        if session is None:
            return
        if len(self._cache) >= MOST_SESSIONS:
            del self._cache[next(iter(self._cache))]
        self._cache[name] = session

    def _name(self, cookie: str) -> str | None:
        """Return a cookie's key in Redis; None if its seal is invalid."""
        id, _, seal = cookie.partition(".")
        sealed = hmac.compare_digest(seal.encode("utf-8", "replace"), self._seal(id).encode())
        return digest(id) if sealed else None

    def _seal(self, id: str) -> str:
        return hmac.new(
            self._token().encode(), b"session:" + id.encode("utf-8", "replace"), hashlib.sha256
        ).hexdigest()[:32]
