"""Logging a browser in: its key goes into a cookie that scripts cannot read and other sites cannot use.

The door takes that cookie on every route, and for changes only from a page of our own (`door.py`).
"""

from typing import Any
from urllib.parse import parse_qs

from litestar import Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect

from cortex.platform.api_keys import Right
from cortex.router.access.door import COOKIE, cross_site, show
from cortex.router.refusals import BadRequest, NotAllowed
from cortex.router.runtime import Runtime
from cortex.router.status.render import render

Http = Request[Any, Any, Any]

KEPT_S = 7 * 86400
LONGEST = 4096
PATH = "/status/login"


def routes(runtime: Runtime, headers: dict[str, str]) -> list[HTTPRouteHandler]:
    """Return the routes."""
    anybody: dict[str, Any] = {"opt": {"needs": "nothing"}, "response_headers": headers}

    @get(PATH, **anybody)
    async def form() -> Response[str]:
        """Ask for a key."""
        return _form("")

    @post(PATH, status_code=303, **anybody)
    async def log_in(request: Http) -> Response[Any]:
        """Take a key and go to the page."""
        _refuse_other_sites(request)
        given = await _key(request)
        who = runtime.keys.find(given) if given else None
        if who is None:
            return _form("This key is not known here, or has expired.", status=401)
        if not who.may(Right.STATUS):
            return _form(
                f"The key '{who.name}' is for {who.scope}; this page needs one for status or admin.", status=403
            )
        return Redirect("/status", status_code=303, cookies=[_cookie(request, given, KEPT_S)])

    @post("/status/logout", status_code=303, **anybody)
    async def log_out(request: Http) -> Redirect:
        """Forget the key."""
        _refuse_other_sites(request)
        return Redirect(PATH, status_code=303, cookies=[_cookie(request, "", 0)])

    return [form, log_in, log_out]


def to_login(_: Http, __: Exception) -> Response[Any]:
    """Send a browser that may not look to where it can log in."""
    return Redirect(PATH, status_code=303)


def logged_in(request: Http) -> bool:
    """Whether a request comes with the cookie."""
    return show(request.scope["headers"]).cookie


async def _key(request: Http) -> str:
    if int(request.headers.get("content-length", "0")) > LONGEST:
        raise BadRequest("this is longer than any key")
    body = await request.body()
    if len(body) > LONGEST:
        raise BadRequest("this is longer than any key")
    return parse_qs(body.decode("latin-1")).get("key", [""])[0].strip()


def _refuse_other_sites(request: Http) -> None:
    if cross_site(show(request.scope["headers"])):
        raise NotAllowed("a page of another site may not log anybody in or out here")


def _cookie(request: Http, value: str, kept_s: int) -> Cookie:
    return Cookie(
        key=COOKIE, value=value, max_age=kept_s, path="/", httponly=True, samesite="strict",
        secure=request.scope["scheme"] == "https",
    )  # fmt: skip


def _form(problem: str, status: int = 200) -> Response[str]:
    return Response(render("login.html", problem=problem), status_code=status, media_type="text/html")
