"""Logging a browser in: its key begins a session, whose cookie scripts cannot read and other sites cannot use.

The door takes that cookie on every route, and for changes only from a page of our own (`auth.py`). What a session is
and when it ends is in `access/sessions.py`. Cookies know no ports: over plain HTTP the cookie goes to the paths that
the page uses, so that other servers of the host are sent it as little as can be; over TLS its name begins with
`__Host-`, for which browsers demand the path `/`.
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
from cortex.router.access.sessions import SESSION_S
from cortex.router.errors import BadRequest, NotAllowed, RecordIsAway
from cortex.router.runtime import Runtime
from cortex.router.status.render import render

Http = Request[Any, Any, Any]

PATH = "/status/login"
PATHS = ("/status", "/admin", "/v1")
"""What the page calls."""
OLD_COOKIE = "cortex_key"
"""It held the API key, before there were sessions: a logout takes it out of the browser."""


def routes(runtime: Runtime, headers: dict[str, str]) -> list[HTTPRouteHandler]:
    """Return the routes."""
    anybody: dict[str, Any] = {"opt": {"needs": "nothing"}, "response_headers": headers}

    @get(PATH, **anybody)
    async def form() -> Response[str]:
        """Ask for a key."""
        return _form("")

    @post(PATH, status_code=303, request_max_body_size=OPEN_BODY, **anybody)
    async def log_in(request: Http) -> Response[Any]:
        """Take a key, begin a session and go to the page."""
        _refuse_other_sites(request)
        given = await _key(request)
        who = runtime.keys.find(given) if given else None
        if who is None:
            return _form("This key is not known here, or has expired.", status=401)
        if not who.may(Right.STATUS):
            return _form(
                f"The key '{who.name}' is for {who.scope}; this page needs one for status or admin.", status=403
            )
        try:
            cookie = await runtime.sessions.begin(given)
        except RecordUnavailable:
            return _form("Redis does not answer, so no session can begin. Try again in a moment.", status=503)
        return Redirect("/status", status_code=303, cookies=_cookies(request, cookie, SESSION_S))

    @post("/status/logout", status_code=303, request_max_body_size=OPEN_BODY, **anybody)
    async def log_out(request: Http) -> Redirect:
        """End the session, for every router worker."""
        _refuse_other_sites(request)
        try:
            await runtime.sessions.end(_shown(request).session)
        except RecordUnavailable:
            raise RecordIsAway("Redis does not answer, so the session goes on: log out again", retry_after=2) from None
        old = Cookie(key=OLD_COOKIE, value="", max_age=0, path="/", httponly=True, samesite="strict")
        return Redirect(PATH, status_code=303, cookies=[*_cookies(request, "", 0), old])

    return [form, log_in, log_out]


def to_login(_: Http, __: Exception) -> Response[Any]:
    """Send a browser that may not look to where it can log in."""
    return Redirect(PATH, status_code=303)


def logged_in(request: Http) -> bool:
    """Whether a request comes with the cookie."""
    return bool(_shown(request).session)


async def _key(request: Http) -> str:
    try:
        body = await request.body()
    except HTTPException as error:
        if error.status_code != 413:
            raise
        raise BadRequest("this is longer than any key") from None
    try:
        return parse_qs(body.decode("latin-1"), max_num_fields=8).get("key", [""])[0].strip()
    except ValueError:
        raise BadRequest("the login form has one field, `key`") from None


def _refuse_other_sites(request: Http) -> None:
    if cross_site(_shown(request)):
        raise NotAllowed("a page of another site may not log anybody in or out here")


def _shown(request: Http) -> Credentials:
    return read_credentials(request.scope["headers"], tls=request.scope["scheme"] == "https")


def _cookies(request: Http, value: str, age_s: int) -> list[Cookie]:
    tls = request.scope["scheme"] == "https"
    name, paths = (TLS_COOKIE, ("/",)) if tls else (COOKIE, PATHS)
    return [
        Cookie(key=name, value=value, max_age=age_s, path=path, httponly=True, samesite="strict", secure=tls)
        for path in paths
    ]


def _form(problem: str, status: int = 200) -> Response[str]:
    return Response(render("login.html", problem=problem), status_code=status, media_type="text/html")
