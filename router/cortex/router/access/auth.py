"""Who may come in: the one place where every route's `opt={"needs": …}` is enforced.

A caller is whoever its key says. A caller without one is nobody in particular, and may do:
(1) everything, where the operator said `--insecure` and there is no key;
(2) inference and reading on loopback, as long as nobody has made a key; changes, too, where this machine's user
    has no key of its own either;
(3) nothing anywhere else.
Browsers act for whoever opened a page, so what comes without a key of its own in a header (nobody in particular,
or a cookie) is looked at twice: no page of another site may change anything, and a name that was bent to point
at loopback is not answered.
"""

import time
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import structlog
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from cortex.platform.api_keys import ANONYMOUS, Principal, Right, anonymous
from cortex.platform.serving.address import is_loopback, is_loopback_name
from cortex.platform.settings import Gateway
from cortex.router.access.keyring import KeyRing
from cortex.router.access.sessions import Sessions
from cortex.router.errors import NoKey, NotAllowed, RecordIsAway

log = structlog.get_logger()
Headers = Iterable[tuple[bytes, bytes]]

COOKIE = "cortex_session"
"""Holds a session of the status page, never a key: HttpOnly, SameSite=Strict."""
TLS_COOKIE = f"__Host-{COOKIE}"
"""Its name over TLS: browsers take one so named only over TLS, from the very host, for no other."""
OPEN_BODY = 4096
"""Bytes of a body that a route reads of a caller without any credential."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
NEEDS = "needs"
TOLD_EVERY_S = 1.0
"""Refusals at the door are noted in the log so often at most: whoever knocks must not fill the disk."""


class Credentials(NamedTuple):
    """What a request shows of its sender. A key in a header goes before a session in a cookie."""

    secret: str = ""
    session: str = ""
    host: str = ""
    origin: str = ""
    site: str = ""


class AuthGuard:
    """Looks at every request once. `guard` goes on the application."""

    def __init__(self, ring: KeyRing, sessions: Sessions, gateway: Gateway) -> None:
        self._ring, self._sessions, self._gateway = ring, sessions, gateway
        self._loopback = is_loopback(gateway.listen)
        self._told = 0.0

    async def guard(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Let a request in and note who sent it, or raise NoKey, NotAllowed or RecordIsAway.

        A route that does not say what it needs, needs everything.
        """
        scope: Any = connection.scope
        method = scope["method"]
        needs = handler.opt.get(NEEDS, Right.NOTHING if method == "OPTIONS" else Right.ADMIN)
        if needs == Right.NOTHING:
            return
        shown = read_credentials(scope["headers"], tls=scope.get("scheme") == "https")
        try:
            caller = await self._caller(shown, method)
            if not caller.may(needs):
                raise self._closed(caller, needs)
        except (NoKey, NotAllowed) as refusal:
            self._tell(scope, refusal)
            raise
        scope["state"]["principal"] = caller

    async def _caller(self, shown: Credentials, method: str) -> Principal:
        known = self._ring.find(shown.secret) if shown.secret else None
        if known is not None:
            return known
        if shown.session and (known := await self._sessions.find(shown.session)) is not None:
            if method not in SAFE and not same_origin(shown):
                raise NotAllowed("a page of another site may not do this with the cookie of this one")
            return known
        if not self._ring.known:
            raise RecordIsAway("API keys could not be read yet: Redis does not answer", retry_after=2)
        open_to = self._open_to_all()
        if not open_to:
            raise NoKey(_UNKNOWN if shown.secret else _OVER if shown.session else _MISSING)
        if method not in SAFE and cross_site(shown):
            raise NotAllowed("a page of another site may not do this; make an API key and send it")
        if self._loopback and not answers_to(shown.host, self._gateway.allowed_hosts):
            raise NotAllowed(
                f"without an API key only this machine's own names are answered, and {shown.host[:100]!r} is none: "
                "add it to [gateway] allowed_hosts, or make a key"
            )
        return anonymous(*open_to)

    def _open_to_all(self) -> tuple[Right, ...]:
        """Return what is open to a caller without a key, by the numbers above."""
        if self._ring.any_made or self._gateway.require_key:
            return ()
        if self._gateway.insecure:  # (1)
            return (Right.INFERENCE, Right.STATUS, Right.ADMIN)
        if not self._loopback:  # (3)
            return ()
        changes = () if self._ring.has_local else (Right.ADMIN,)
        return (Right.INFERENCE, Right.STATUS, *changes)  # (2)

    def _closed(self, caller: Principal, needs: str) -> NoKey | NotAllowed:
        if caller.id == ANONYMOUS:
            return NoKey("changes need this machine's own key; the `cortex` commands of the user who runs it have it")
        return NotAllowed(f"the key '{caller.name}' is for {caller.scope}, and this needs a key for {needs}")

    def _tell(self, scope: Any, refusal: NoKey | NotAllowed) -> None:
        if time.monotonic() - self._told < TOLD_EVERY_S:
            return
        self._told = time.monotonic()
        client = scope.get("client")
        log.info("door_closed", client=client[0] if client else None, path=scope["path"][:200], why=refusal.message)


def caller(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
    """Return who sent a request that was let in."""
    found: Principal = connection.scope["state"]["principal"]
    return found


_MISSING = "an API key is needed: send it as `Authorization: Bearer …` or `x-api-key`"
_UNKNOWN = "this API key is not known here, or has expired"
_OVER = "this session is over: log in at /status/login"


def read_credentials(headers: Headers, *, tls: bool = False) -> Credentials:
    """Read what a request shows of its sender; over TLS the cookie has another name."""
    bearer = own = cookies = host = origin = site = ""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, given = value.decode("latin-1").partition(" ")
            bearer = given.strip() if scheme.lower() == "bearer" else bearer
        elif name == b"x-api-key":
            own = value.decode("latin-1").strip()
        elif name == b"host":
            host = value.decode("latin-1")
        elif name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"sec-fetch-site":
            site = value.decode("latin-1")
        elif name == b"cookie":
            cookies = value.decode("latin-1")
    secret = bearer or own
    session = _in_cookie(cookies, TLS_COOKIE if tls else COOKIE) if cookies and not secret else ""
    return Credentials(secret, session, host=host, origin=origin, site=site)


def _in_cookie(text: str, wanted: str) -> str:
    for part in text.split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return value
    return ""


def same_origin(shown: Credentials) -> bool:
    """Whether a browser says that a page of ours asks."""
    if shown.site:
        return shown.site == "same-origin"
    return bool(shown.host) and shown.origin.partition("://")[2] == shown.host


def cross_site(shown: Credentials) -> bool:
    """Whether a browser says that a page of another site asks. What is no browser says nothing."""
    if shown.site:
        return shown.site not in ("same-origin", "none")
    return bool(shown.origin) and shown.origin.partition("://")[2] != shown.host


def answers_to(host: str, allowed: Container[str]) -> bool:
    """Whether a Host header names this machine. Only browsers can be led here by another name, and all send it."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return not host or is_loopback_name(name.strip("[]")) or name in allowed or host in allowed
