"""Which pages of other sites may read answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.access.cross_origin import CrossOrigin

LISTED = "https://app.example"
SOME = CrossOrigin([LISTED, "chrome-extension://abc"])
ANY = CrossOrigin(["*"])
NONE = CrossOrigin()


def from_page(origin: str, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"router:31313"), (b"origin", origin.encode()), *more]


ASKS = (b"access-control-request-method", b"POST")


def test_a_listed_origin_is_named_and_caches_keep_origins_apart() -> None:
    assert dict(SOME.headers(from_page(LISTED))) == {
        b"vary": b"origin",
        b"access-control-allow-origin": LISTED.encode(),
        b"access-control-expose-headers": b"*",
    }


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.evil",
        "http://app.example",
        "https://app.example:444",
        "https://APP.example",
        "null",
        "",
        "*",
    ],
)
def test_an_origin_that_is_not_listed_exactly_may_read_nothing(origin: str) -> None:
    assert SOME.headers(from_page(origin)) == [(b"vary", b"origin")]
    assert SOME.preflight("OPTIONS", from_page(origin, ASKS)) is None
    assert not SOME.lists(origin)


def test_with_an_asterisk_the_origin_is_not_repeated() -> None:
    assert dict(ANY.headers(from_page("https://anything")))[b"access-control-allow-origin"] == b"*"
    assert ANY.lists("null")
    assert not ANY.lists("")


def test_a_client_that_is_no_browser_gets_no_permission() -> None:
    assert SOME.headers([(b"host", b"x")]) == [(b"vary", b"origin")]
    assert not NONE.is_on
    assert not NONE.lists(LISTED)


@pytest.mark.parametrize(("method", "more"), [("POST", (ASKS,)), ("OPTIONS", ())])
def test_only_options_that_name_a_method_are_a_preflight(method: str, more: tuple[tuple[bytes, bytes], ...]) -> None:
    assert SOME.preflight(method, from_page(LISTED, *more)) is None


def test_a_preflight_allows_the_headers_of_every_sdk() -> None:
    answer = dict(SOME.preflight("OPTIONS", from_page(LISTED, ASKS)) or [])

    assert answer[b"access-control-allow-headers"] == b"authorization, *"
    assert b"POST" in answer[b"access-control-allow-methods"]


@given(st.binary(max_size=40), st.sampled_from([SOME, ANY]))
def test_no_origin_is_allowed_credentials(origin: bytes, cross_origin: CrossOrigin) -> None:
    request = [(b"origin", origin), ASKS]
    names = {n for n, _ in (*cross_origin.headers(request), *(cross_origin.preflight("OPTIONS", request) or []))}

    assert b"access-control-allow-credentials" not in names
