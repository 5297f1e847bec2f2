"""Browser login: a key opens a session, whose cookie scripts cannot read and other sites cannot use.

`AuthGuard` accepts the cookie on every route, but for changes only from a page of this router (`auth.py`). Sessions are
in `access/sessions.py`. Cookies are shared by all ports of a host: over plain HTTP the cookie is limited to the paths
that the page uses, which exposes it less to other servers; over TLS its name begins with `__Host-`, for which browsers
require the path `/`.
"""

from typing import Any
from urllib.parse import parse_qs

from litestar import Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect

from cortex.platform.api_keys import Right
from cortex.platform.registry import RecordUnavailable
from cortex.router.access.auth import COOKIE, OPEN_BODY, TLS_COOKIE, Credentials, cross_site, read_credentials
from cortex.router.access.keyring import KeyRing
from cortex.router.access.sessions import SESSION_S, Sessions
from cortex.router.errors import BadRequest, NotAllowed, RecordIsAway
from cortex.router.status.render import HEADERS, render

Http = Request[Any, Any, Any]

PATH = "/status/login"
PATHS = ("/status", "/admin", "/v1")
"""Paths that the page requests."""
OLD_COOKIE = "cortex_key"
"""An earlier version stored the API key in it; a logout deletes it."""


def routes(key_ring: KeyRing, sessions: Sessions, root_path: str = "") -> list[HTTPRouteHandler]:
    """Return the routes. Redirects are relative, for a proxy's sub-path; cookies need it (`root_path`)."""
    public: dict[str, Any] = {"opt": {"needs": "nothing"}, "response_headers": HEADERS}

    @get(PATH, **public)
    async def form(request: Http) -> Response[Any]:
        """Show the login form."""
        return Redirect("../login") if ends_in_slash(request) else _form("")

    @post(PATH, status_code=303, request_max_body_size=OPEN_BODY, **public)
    async def log_in(request: Http) -> Response[Any]:
        """Begin a session for a key and redirect to the page."""
        _refuse_other_sites(request)
        key = await _key(request)
        who = key_ring.find(key) if key else None
        if who is None:
            return _form("This key is unknown or has expired.", status=401)
        if not who.may(Right.STATUS):
            return _form(f"The key '{who.name}' has scope {who.scope}; this page needs status or admin.", status=403)
        try:
            cookie = await sessions.begin(key)
        except RecordUnavailable:
            return _form("Redis does not answer, so no session can begin. Try again in a moment.", status=503)
        return Redirect("../status", status_code=303, cookies=_cookies(request, root_path, cookie, SESSION_S))

    @post("/status/logout", status_code=303, request_max_body_size=OPEN_BODY, **public)
    async def log_out(request: Http) -> Redirect:
        """End the session on every router worker."""
        _refuse_other_sites(request)
        try:
            await sessions.end(_credentials(request).session)
        except RecordUnavailable:
            raise RecordIsAway(
                "Redis does not answer, so the session stays open: log out again", retry_after=2
            ) from None
        old = Cookie(key=OLD_COOKIE, value="", max_age=0, path="/", httponly=True, samesite="strict")
        return Redirect("login", status_code=303, cookies=[*_cookies(request, root_path, "", 0), old])

    return [form, log_in, log_out]


def to_login(request: Http, _: Exception) -> Response[Any]:
    """Redirect an unauthorized browser to the login form."""
    return Redirect("login" if ends_in_slash(request) else "status/login", status_code=303)


def ends_in_slash(request: Http) -> bool:
    """Whether a path ends in a slash, which makes the page's relative links wrong."""
    return bool(request.scope["raw_path"].endswith(b"/"))


def has_session(request: Http) -> bool:
    """Whether a request has a session cookie."""
    return bool(_credentials(request).session)


async def _key(request: Http) -> str:
    try:
        body = await request.body()
    except HTTPException as error:
        if error.status_code != 413:
            raise
        raise BadRequest("the body is longer than any key") from None
    try:
        return parse_qs(body.decode("latin-1"), max_num_fields=8).get("key", [""])[0].strip()
    except ValueError:
        raise BadRequest("the login form has one field, `key`") from None


def _refuse_other_sites(request: Http) -> None:
    if cross_site(_credentials(request)):
        raise NotAllowed("a page of another site may not log in or out here")


def _credentials(request: Http) -> Credentials:
    return read_credentials(request.scope["headers"], tls=request.scope["scheme"] == "https")


def _cookies(request: Http, root_path: str, value: str, age_s: int) -> list[Cookie]:
    tls = request.scope["scheme"] == "https"
    name, paths = (TLS_COOKIE, ["/"]) if tls else (COOKIE, [root_path + path for path in PATHS])
    return [
        Cookie(key=name, value=value, max_age=age_s, path=path, httponly=True, samesite="strict", secure=tls)
        for path in paths
    ]


def _form(problem: str, status: int = 200) -> Response[str]:
    return Response(render("login.html", problem=problem), status_code=status, media_type="text/html")
