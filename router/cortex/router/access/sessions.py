"""Sessions of browsers: what the status page's cookie stands for.

A cookie holds a random id and a seal, never an API key. The id's SHA-256 is in Redis with the digest of the key that
began the session, so that every router worker knows it and a logout ends it for all of them at once. The right to do
anything stays with the key: a session whose key was revoked, rotated away or has expired opens nothing.

Every request with a cookie reads Redis once, so only ids with our seal (HMAC under the fleet token) are looked up: a
made-up cookie costs no Redis call. While Redis is away, sessions that this worker has seen stand.
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
"""Over all keys; one more ends the oldest."""
ID_BYTES = 32


class Sessions:
    """Begins, finds and ends sessions. `token` returns the fleet token that seals them."""

    def __init__(self, registry: Registry, ring: KeyRing, token: Callable[[], str]) -> None:
        self._registry, self._ring, self._token = registry, ring, token
        self._seen: dict[str, Session] = {}

    async def begin(self, secret: str) -> str:
        """Begin a session of an API key; return its cookie. Raises RecordAway."""
        id = secrets.token_urlsafe(ID_BYTES)
        now = time.time()
        session = Session(key=digest(secret), began=now, ends=now + SESSION_S)
        known = await self._registry.sessions()
        ended = [name for name, one in known.items() if one.ends <= now]
        alive = sorted((one.began, name) for name, one in known.items() if one.ends > now)
        ended += [name for _, name in alive[: max(0, len(alive) - MOST_SESSIONS + 1)]]
        await self._registry.begin_session(digest(id), session, ended)
        return f"{id}.{self._seal(id)}"

    async def find(self, cookie: str) -> Principal | None:
        """Return who a cookie stands for, or None."""
        name = self._name(cookie)
        if name is None:
            return None
        try:
            session = await self._registry.session(name)
        except RecordUnavailable:
            session = self._seen.get(name)
        else:
            self._note(name, session)
        if session is None or session.ends <= time.time():
            return None
        return self._ring.of(session.key)

    async def end(self, cookie: str) -> None:
        """End a session everywhere. Raises RecordAway; then it goes on."""
        if name := self._name(cookie):
            await self._registry.end_session(name)
            self._note(name, None)

    def _note(self, name: str, session: Session | None) -> None:
        self._seen.pop(name, None)
        if session is None:
            return
        if len(self._seen) >= MOST_SESSIONS:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = session

    def _name(self, cookie: str) -> str | None:
        """Return what a cookie is known by in Redis; None unless its seal is ours."""
        id, _, seal = cookie.partition(".")
        sealed = hmac.compare_digest(seal.encode("utf-8", "replace"), self._seal(id).encode())
        return digest(id) if sealed else None

    def _seal(self, id: str) -> str:
        return hmac.new(
            self._token().encode(), b"session:" + id.encode("utf-8", "replace"), hashlib.sha256
        ).hexdigest()[:32]
