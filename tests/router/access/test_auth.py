"""Who is let in, and as whom. The key ring is a value; no router runs."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cortex.platform.api_keys import LOCAL, ApiKey, Principal, Scope, principal
from cortex.platform.settings import Gateway
from cortex.router.access.auth import AuthGuard, answers_to, cross_site, read_credentials, same_origin
from cortex.router.access.keyring import KeyRing
from cortex.router.access.sessions import Sessions
from cortex.router.errors import NoKey, NotAllowed, RecordIsAway, RequestError

KEY = ApiKey(digest="", id="k1", name="one")
KEYS = {
    "inference": principal(KEY),
    "status": principal(replace(KEY, scope=Scope.STATUS)),
    "admin": principal(replace(KEY, scope=Scope.ADMIN)),
}
LOOPBACK = Gateway()
PUBLIC = Gateway(listen="0.0.0.0:31313")


class Ring:
    """A key ring that knows `KEYS`, and the local key when there is one."""

    def __init__(self, *, made: bool = True, local: bool = False, known: bool = True) -> None:
        self.any_made, self.has_local, self.known = made, local, known

    def find(self, secret: str) -> Principal | None:
        if secret == "local" and self.has_local:
            return LOCAL
        return KEYS.get(secret) if self.any_made else None


class Browsers:
    """Sessions: a cookie that names a key stands for it."""

    async def find(self, cookie: str) -> Principal | None:
        return KEYS.get(cookie)


async def let_in(
    needs: str | None, headers: dict[str, str], ring: Ring, gateway: Gateway = LOOPBACK, method: str = "POST"
) -> str:
    """Return whose request it is."""
    raw = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
    scope: dict[str, Any] = {
        "type": "http", "method": method, "headers": raw, "state": {}, "path": "/x", "client": ("192.0.2.1", 1)
    }  # fmt: skip
    handler = SimpleNamespace(opt={} if needs is None else {"needs": needs})
    door = AuthGuard(cast(KeyRing, ring), cast(Sessions, Browsers()), gateway)
    await door.guard(cast(Any, SimpleNamespace(scope=scope)), cast(Any, handler))
    who = scope["state"].get("principal")
    return who.scope if who else ""


async def refused(*args: Any, **rest: Any) -> type[RequestError]:
    with pytest.raises(RequestError) as caught:
        await let_in(*args, **rest)
    return caught.type


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_is_taken_from_either_header(header: str) -> None:
    value = "Bearer admin" if header == "authorization" else "admin"

    assert await let_in("admin", {header: value}, Ring()) == "admin"


@pytest.mark.parametrize(
    ("secret", "needs", "outcome"),
    [
        ("inference", "inference", "inference"),
        ("inference", "status", NotAllowed),
        ("inference", "admin", NotAllowed),
        ("status", "inference", NotAllowed),
        ("status", "status", "status"),
        ("status", "admin", NotAllowed),
        ("admin", "inference", "admin"),
        ("admin", "status", "admin"),
        ("admin", "admin", "admin"),
        ("unknown", "inference", NoKey),
        ("", "inference", NoKey),
        ("admin", None, "admin"),
        ("status", None, NotAllowed),
    ],
)
async def test_once_there_is_a_key_everything_needs_one_that_is_for_it(
    secret: str, needs: str | None, outcome: str | type[RequestError]
) -> None:
    headers = {"authorization": f"Bearer {secret}"}

    if isinstance(outcome, str):
        assert await let_in(needs, headers, Ring()) == outcome
    else:
        assert await refused(needs, headers, Ring()) is outcome


async def test_what_needs_nothing_is_open_to_all_and_tells_nobody_apart() -> None:
    assert await let_in("nothing", {}, Ring(known=False)) == ""


@pytest.mark.parametrize(
    ("gateway", "local", "open_to"),
    [
        (LOOPBACK, False, ["inference", "status", "admin"]),
        (LOOPBACK, True, ["inference", "status"]),
        (PUBLIC, False, []),
        (replace(LOOPBACK, require_key=True), False, []),
        (replace(PUBLIC, insecure=True), False, ["inference", "status", "admin"]),
    ],
)
async def test_without_any_key_it_depends_on_where_the_router_listens(
    gateway: Gateway, local: bool, open_to: list[str]
) -> None:
    ring = Ring(made=False, local=local)

    for needs in ("inference", "status", "admin"):
        for headers in ({}, {"authorization": "Bearer whatever"}):
            if needs in open_to:
                assert await let_in(needs, headers, ring, gateway) == "anonymous"
            else:
                assert await refused(needs, headers, ring, gateway) is NoKey


async def test_insecure_ends_with_the_first_key() -> None:
    assert await refused("inference", {}, Ring(), replace(PUBLIC, insecure=True)) is NoKey


async def test_the_local_key_opens_everything_whatever_else_there_is() -> None:
    headers = {"authorization": "Bearer local"}

    assert await let_in("admin", headers, Ring(made=False, local=True)) == "admin"
    assert await let_in("admin", headers, Ring(local=True, known=False)) == "admin"


async def test_while_nobody_could_read_whether_there_are_keys_nobody_comes_in_without_one() -> None:
    assert await refused("inference", {}, Ring(made=False, known=False)) is RecordIsAway


@pytest.mark.parametrize(
    ("headers", "method", "outcome"),
    [
        ({}, "GET", "admin"),
        ({}, "POST", NotAllowed),
        ({"sec-fetch-site": "same-origin"}, "POST", "admin"),
        ({"sec-fetch-site": "none"}, "POST", NotAllowed),
        ({"sec-fetch-site": "same-site"}, "POST", NotAllowed),
        ({"sec-fetch-site": "cross-site"}, "DELETE", NotAllowed),
        ({"host": "a:1", "origin": "https://a:1"}, "POST", "admin"),
        ({"host": "a:1", "origin": "https://b:1"}, "POST", NotAllowed),
        ({"host": "a:1", "origin": "null"}, "POST", NotAllowed),
        ({"host": "a:1", "origin": "https://a:1", "sec-fetch-site": "cross-site"}, "POST", NotAllowed),
    ],
)
async def test_a_cookie_changes_something_only_from_our_own_page(
    headers: dict[str, str], method: str, outcome: str | type[RequestError]
) -> None:
    headers = {"cookie": "other=1; cortex_session=admin", **headers}

    if isinstance(outcome, str):
        assert await let_in("admin", headers, Ring(), method=method) == outcome
    else:
        assert await refused("admin", headers, Ring(), method=method) is outcome


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "host": "127.0.0.1:31313"},
        {"origin": "https://evil.example", "host": "127.0.0.1:31313"},
        {"origin": "null", "host": "localhost:31313"},
        {"host": "evil.example:31313", "origin": "http://evil.example:31313"},
    ],
)
async def test_a_page_of_another_site_does_nothing_on_an_open_router(headers: dict[str, str]) -> None:
    assert await refused("inference", headers, Ring(made=False)) is NotAllowed
    assert await let_in("inference", {**headers, "x-api-key": "admin"}, Ring()) == "admin"


@pytest.mark.parametrize(
    ("host", "allowed", "answered"),
    [
        ("127.0.0.1:31313", (), True),
        ("127.9.9.9", (), True),
        ("localhost:31313", (), True),
        ("LOCALHOST", (), True),
        ("[::1]:31313", (), True),
        ("[::1]", (), True),
        ("", (), True),
        ("evil.example", (), False),
        ("localhost.evil.example:80", (), False),
        ("127.0.0.1.evil.example", (), False),
        ("192.0.2.1:31313", (), False),
        ("gpu-box:31313", ("gpu-box",), True),
        ("gpu-box:31313", ("gpu-box:31313",), True),
    ],
)
def test_only_names_of_this_machine_are_answered_without_a_key(
    host: str, allowed: tuple[str, ...], answered: bool
) -> None:
    assert answers_to(host, allowed) is answered


def test_a_key_in_a_header_goes_before_a_session_and_basic_is_no_key() -> None:
    both = read_credentials([(b"cookie", b"cortex_session=c"), (b"authorization", b"bearer  a "), (b"x-api-key", b"b")])
    basic = read_credentials([(b"authorization", b"Basic YTpi")])

    assert (both.secret, both.session) == ("a", "")
    assert basic.secret == ""


@pytest.mark.parametrize(
    ("cookies", "tls", "session"),
    [
        (b"a=1; cortex_session=c; b=2", False, "c"),
        (b"cortex_session=c", True, ""),
        (b"cortex_session=planted; __Host-cortex_session=c", True, "c"),
        (b"cortex_key=c", False, ""),
        (b'\xff=;;;cortex_session=\x7f;"', False, "\x7f"),
        (b"cortex_session", False, ""),
    ],
)
def test_a_session_is_read_from_the_cookie_that_fits_the_scheme(cookies: bytes, tls: bool, session: str) -> None:
    assert read_credentials([(b"cookie", cookies)], tls=tls).session == session


def test_browsers_are_believed_what_they_say_of_a_page() -> None:
    ours = read_credentials([(b"sec-fetch-site", b"same-origin")])
    theirs = read_credentials([(b"sec-fetch-site", b"cross-site")])
    program = read_credentials([])

    assert [same_origin(s) for s in (ours, theirs, program)] == [True, False, False]
    assert [cross_site(s) for s in (ours, theirs, program)] == [False, True, False]
