"""Authentication and authorization: the one place that enforces every route's `opt={"needs": …}`.

A key identifies its caller; a batch worker has a pass instead of the key that it acts for. A caller without a key is
anonymous and may do:
(1) everything, if the operator set `--insecure` and no key exists;
(2) inference and reading on loopback while no key exists; changes too, if this machine's user has no local key
    either;
(3) nothing otherwise.
Browsers attach cookies to requests from any page, so a request without a key in a header (anonymous, or with a
cookie) gets two more checks: a page of another site may not change anything, nor read what `[gateway] cors_origins`
would let it read; and a Host name that DNS rebinding points at loopback is rejected.
"""

import time
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Any

import structlog
from msgspec import Struct

from cortex.platform.api_keys import ANONYMOUS, Principal, Right, anonymous, for_batch
from cortex.platform.serving.address import is_loopback, is_loopback_name
from cortex.platform.settings import Gateway
from cortex.router.access import batch_pass
from cortex.router.access.cross_origin import CrossOrigin
from cortex.router.access.keyring import KeyRing
from cortex.router.access.sessions import Sessions
from cortex.router.errors import BatchKeyGone, NoKey, NotAllowed, RecordIsAway

if TYPE_CHECKING:  # a router's first process imports this module, but no web framework
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

log = structlog.get_logger()
Headers = Iterable[tuple[bytes, bytes]]

COOKIE = "cortex_session"
"""Holds a session id of the status page, never a key: HttpOnly, SameSite=Strict."""
TLS_COOKIE = f"__Host-{COOKIE}"
"""The cookie's name over TLS. Browsers accept a `__Host-` cookie only over TLS, for exactly one host."""
OPEN_BODY = 4096
"""Largest body, in bytes, that a route reads from a caller without credentials."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
NEEDS = "needs"
LOG_INTERVAL_S = 1.0
"""Minimum time between two log entries about rejected requests, so that a client cannot fill the disk."""


class Credentials(Struct, frozen=True):
    """A request's credentials and origin. A key in a header takes precedence over a session cookie."""

    secret: str = ""
    session: str = ""
    host: str = ""
    origin: str = ""
    site: str = ""


class AuthGuard:
    """Checks every request once: `guard` those of the framework, `authorize` those of inference."""

    def __init__(
        self, ring: KeyRing, sessions: Sessions, gateway: Gateway, tokens: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """`tokens` returns the fleet's tokens, which seal the passes of batch workers."""
        self._ring, self._sessions, self._gateway, self._tokens = ring, sessions, gateway, tokens
        self._cross_origin = CrossOrigin(gateway.cors_origins)
        self._loopback = is_loopback(gateway.listen)
        self._logged_at = 0.0

    async def guard(self, connection: "ASGIConnection[Any, Any, Any, Any]", handler: "BaseRouteHandler") -> None:
        """Authorize a request of the framework and store its principal. Raises what `authorize` does.

        A route without `needs` requires an admin key.
        """
        scope: Any = connection.scope
        needs = handler.opt.get(NEEDS, Right.NOTHING if scope["method"] == "OPTIONS" else Right.ADMIN)
        if needs != Right.NOTHING:
            scope["state"]["principal"] = await self.authorize(scope, needs)

    async def authorize(self, scope: Any, needs: str) -> Principal:
        """Return the principal of a request that may do what needs a right. Raises NoKey, NotAllowed or
        RecordIsAway."""
        credentials = read_credentials(scope["headers"], tls=scope.get("scheme") == "https")
        try:
            known = self._ring.find(credentials.secret) if credentials.secret else None
            caller = known or await self._caller(credentials, scope["method"])
            if not caller.may(needs):
                raise self._rejection(caller, needs)
        except (NoKey, NotAllowed) as error:
            self._log(scope, error)
            raise
        return caller

    async def _caller(self, credentials: Credentials, method: str) -> Principal:
        """Return the principal of a request without a known key."""
        if credentials.secret.startswith(batch_pass.PREFIX):
            return self._batch_owner(credentials.secret)
        if credentials.session and (principal := await self._sessions.find(credentials.session)) is not None:
            if method not in SAFE and not same_origin(credentials):
                raise NotAllowed("a page of another site may not send this request with this site's cookie")
            return principal
        if not self._ring.loaded:
            raise RecordIsAway(_NOT_LOADED, retry_after=2)
        rights = self._anonymous_rights()
        if not rights:
            raise NoKey(_UNKNOWN if credentials.secret else _EXPIRED if credentials.session else _MISSING)
        if cross_site(credentials) and (method not in SAFE or self._cross_origin.lists(credentials.origin)):
            raise NotAllowed("a page of another site may not send this request; create an API key and send it")
        if self._loopback and not answers_to(credentials.host, self._gateway.allowed_hosts):
            raise NotAllowed(
                f"without an API key, Host must name this machine, and {credentials.host[:100]!r} does not: "
                "add it to [gateway] allowed_hosts, or create a key"
            )
        return anonymous(*rights)

    def _batch_owner(self, secret: str) -> Principal:
        """Return the caller for whom a batch worker acts, with that key's rights as they are now. Raises NoKey,
        BatchKeyGone or RecordIsAway."""
        key = batch_pass.key_of(secret, self._tokens(), time.time())
        if key is None:
            raise NoKey(_UNKNOWN)
        if not self._ring.loaded:
            raise RecordIsAway(_NOT_LOADED, retry_after=2)
        if key == ANONYMOUS and (rights := self._anonymous_rights()):
            return for_batch(anonymous(*rights))
        owner = self._ring.by_id(key)
        if owner is None or not owner.may(Right.INFERENCE):
            raise BatchKeyGone
        return for_batch(owner)

    def _anonymous_rights(self) -> tuple[Right, ...]:
        """Return the rights of a caller without a key; the numbers refer to the module's docstring."""
        if self._ring.has_keys or self._gateway.require_key:
            return ()
        if self._gateway.insecure:  # (1)
            return (Right.INFERENCE, Right.STATUS, Right.ADMIN)
        if not self._loopback:  # (3)
            return ()
        changes = () if self._ring.has_local else (Right.ADMIN,)
        return (Right.INFERENCE, Right.STATUS, *changes)  # (2)

    def _rejection(self, caller: Principal, needs: str) -> NoKey | NotAllowed:
        if caller.id == ANONYMOUS:
            return NoKey("changes need this machine's local key; `cortex` commands of the user who runs it send it")
        return NotAllowed(f"the key '{caller.name}' has scope {caller.scope}; this needs scope {needs}")

    def _log(self, scope: Any, error: NoKey | NotAllowed) -> None:
        if time.monotonic() - self._logged_at < LOG_INTERVAL_S:
            return
        self._logged_at = time.monotonic()
        client = scope.get("client")
        log.info("access_denied", client=client[0] if client else None, path=scope["path"][:200], why=error.message)


def caller(connection: "ASGIConnection[Any, Any, Any, Any]") -> Principal:
    """Return the principal of an authorized request."""
    principal: Principal = connection.scope["state"]["principal"]
    return principal


_NOT_LOADED = "API keys are not loaded yet: Redis does not answer"
_MISSING = "an API key is needed: send it as `Authorization: Bearer …` or `x-api-key`"
_UNKNOWN = "this API key is unknown or has expired"
_EXPIRED = "this session has ended: log in at /status/login"


def read_credentials(headers: Headers, *, tls: bool = False) -> Credentials:
    """Read a request's credentials; `tls` selects the cookie's name."""
    bearer = api_key = cookies = host = origin = site = ""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            bearer = token.strip() if scheme.lower() == "bearer" else bearer
        elif name == b"x-api-key":
            api_key = value.decode("latin-1").strip()
        elif name == b"host":
            host = value.decode("latin-1")
        elif name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"sec-fetch-site":
            site = value.decode("latin-1")
        elif name == b"cookie":
            cookies = value.decode("latin-1")
    secret = bearer or api_key
    session = _cookie_value(cookies, TLS_COOKIE if tls else COOKIE) if cookies and not secret else ""
    return Credentials(secret, session, host=host, origin=origin, site=site)


def _cookie_value(text: str, cookie: str) -> str:
    for part in text.split(";"):
        name, _, value = part.strip().partition("=")
        if name == cookie:
            return value
    return ""


def same_origin(credentials: Credentials) -> bool:
    """Whether the browser's headers name one of this router's pages as the origin."""
    if credentials.site:
        return credentials.site == "same-origin"
    return bool(credentials.host) and credentials.origin.partition("://")[2] == credentials.host


def cross_site(credentials: Credentials) -> bool:
    """Whether the browser's headers name a page of another site. Other clients send no such headers."""
    if credentials.site:
        return credentials.site not in ("same-origin", "none")
    return bool(credentials.origin) and credentials.origin.partition("://")[2] != credentials.host


def answers_to(host: str, allowed: Container[str]) -> bool:
    """Whether a Host header names this machine. DNS rebinding works only through browsers, which always send Host."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return not host or is_loopback_name(name.strip("[]")) or name in allowed or host in allowed
