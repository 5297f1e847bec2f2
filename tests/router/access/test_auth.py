"""Which requests are authorized, and as which principal. The key ring is a double; no router runs."""

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
    """A key ring with `KEYS`, and a local key on demand."""

    def __init__(self, *, keys: bool = True, local: bool = False, loaded: bool = True) -> None:
        self.has_keys, self.has_local, self.loaded = keys, local, loaded

    def find(self, secret: str) -> Principal | None:
        if secret == "local" and self.has_local:
            return LOCAL
        return KEYS.get(secret) if self.has_keys else None


class Browsers:
    """Sessions in which a cookie is the name of its key."""

    async def find(self, cookie: str) -> Principal | None:
        return KEYS.get(cookie)


async def authorize(
    needs: str | None, headers: dict[str, str], ring: Ring, gateway: Gateway = LOOPBACK, method: str = "POST"
) -> str:
    """Return the scope of the authorized principal."""
    raw = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
    scope: dict[str, Any] = {
        "type": "http", "method": method, "headers": raw, "state": {}, "path": "/x", "client": ("192.0.2.1", 1)
    }  # fmt: skip
    handler = SimpleNamespace(opt={} if needs is None else {"needs": needs})
    auth = AuthGuard(cast(KeyRing, ring), cast(Sessions, Browsers()), gateway)
    await auth.guard(cast(Any, SimpleNamespace(scope=scope)), cast(Any, handler))
    principal = scope["state"].get("principal")
    return principal.scope if principal else ""


async def rejection(*args: Any, **rest: Any) -> type[RequestError]:
    with pytest.raises(RequestError) as caught:
        await authorize(*args, **rest)
    return caught.type


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_is_read_from_either_header(header: str) -> None:
    value = "Bearer admin" if header == "authorization" else "admin"

    assert await authorize("admin", {header: value}, Ring()) == "admin"


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
async def test_once_a_key_exists_every_route_needs_a_key_of_its_scope(
    secret: str, needs: str | None, outcome: str | type[RequestError]
) -> None:
    headers = {"authorization": f"Bearer {secret}"}

    if isinstance(outcome, str):
        assert await authorize(needs, headers, Ring()) == outcome
    else:
        assert await rejection(needs, headers, Ring()) is outcome


async def test_a_route_that_needs_nothing_is_open_and_identifies_no_caller() -> None:
    assert await authorize("nothing", {}, Ring(loaded=False)) == ""


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
async def test_without_keys_anonymous_rights_depend_on_the_listen_address(
    gateway: Gateway, local: bool, open_to: list[str]
) -> None:
    ring = Ring(keys=False, local=local)

    for needs in ("inference", "status", "admin"):
        for headers in ({}, {"authorization": "Bearer whatever"}):
            if needs in open_to:
                assert await authorize(needs, headers, ring, gateway) == "anonymous"
            else:
                assert await rejection(needs, headers, ring, gateway) is NoKey


async def test_insecure_has_no_effect_once_a_key_exists() -> None:
    assert await rejection("inference", {}, Ring(), replace(PUBLIC, insecure=True)) is NoKey


async def test_the_local_key_grants_admin_with_and_without_other_keys() -> None:
    headers = {"authorization": "Bearer local"}

    assert await authorize("admin", headers, Ring(keys=False, local=True)) == "admin"
    assert await authorize("admin", headers, Ring(local=True, loaded=False)) == "admin"


async def test_before_the_keys_are_loaded_an_anonymous_request_is_rejected() -> None:
    assert await rejection("inference", {}, Ring(keys=False, loaded=False)) is RecordIsAway


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
async def test_a_cookie_authorizes_changes_only_from_the_same_origin(
    headers: dict[str, str], method: str, outcome: str | type[RequestError]
) -> None:
    headers = {"cookie": "other=1; cortex_session=admin", **headers}

    if isinstance(outcome, str):
        assert await authorize("admin", headers, Ring(), method=method) == outcome
    else:
        assert await rejection("admin", headers, Ring(), method=method) is outcome


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "host": "127.0.0.1:31313"},
        {"origin": "https://evil.example", "host": "127.0.0.1:31313"},
        {"origin": "null", "host": "localhost:31313"},
        {"host": "evil.example:31313", "origin": "http://evil.example:31313"},
    ],
)
async def test_a_cross_site_request_is_rejected_on_an_open_router(headers: dict[str, str]) -> None:
    assert await rejection("inference", headers, Ring(keys=False)) is NotAllowed
    assert await authorize("inference", {**headers, "x-api-key": "admin"}, Ring()) == "admin"


@pytest.mark.parametrize("origins", [("https://app.example",), ("*",)])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_that_may_read_answers_needs_a_key_for_reading_too(method: str, origins: tuple[str, ...]) -> None:
    gateway = Gateway(cors_origins=origins)
    page = {"origin": "https://app.example", "host": "127.0.0.1:31313"}
    own = {"origin": "http://127.0.0.1:31313", "host": "127.0.0.1:31313"}

    assert await rejection("inference", page, Ring(keys=False), gateway, method) is NotAllowed
    assert await authorize("inference", {**page, "x-api-key": "admin"}, Ring(), gateway, method) == "admin"
    assert await authorize("inference", own, Ring(keys=False), gateway, method) != ""


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
def test_only_a_host_header_that_names_this_machine_is_accepted_without_a_key(
    host: str, allowed: tuple[str, ...], answered: bool
) -> None:
    assert answers_to(host, allowed) is answered


def test_a_key_in_a_header_precedes_a_session_and_basic_auth_is_ignored() -> None:
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
def test_a_session_is_read_from_the_cookie_of_the_scheme(cookies: bytes, tls: bool, session: str) -> None:
    assert read_credentials([(b"cookie", cookies)], tls=tls).session == session


def test_sec_fetch_site_decides_between_same_origin_and_cross_site() -> None:
    ours = read_credentials([(b"sec-fetch-site", b"same-origin")])
    theirs = read_credentials([(b"sec-fetch-site", b"cross-site")])
    program = read_credentials([])

    assert [same_origin(s) for s in (ours, theirs, program)] == [True, False, False]
    assert [cross_site(s) for s in (ours, theirs, program)] == [False, True, False]
