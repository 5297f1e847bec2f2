"""The tree of errors that reject a request, and what their clients receive."""

import json
import re

import pytest

from cortex.router import errors
from cortex.router.dialects.core.errors import BadRequest, Dialect, DialectError, Kind, RequestError
from cortex.router.http_answer import error_answer


def below(error: type[RequestError]) -> set[type[RequestError]]:
    return {error}.union(*(below(leaf) for leaf in error.__subclasses__()))


def test_the_drawn_tree_names_every_error_that_router_and_dialects_share() -> None:
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__)) | {"RequestError"}

    shared = {e.__name__ for e in below(RequestError) if e.__module__ in (errors.__name__, RequestError.__module__)}
    assert drawn == shared


def test_an_operator_gets_the_message_and_other_clients_the_public_text() -> None:
    error = errors.NoCapacity("h1: 2 GiB short", public="no room", retry_after=5)

    assert error.fault(operator=True).message == "h1: 2 GiB short"
    assert error.fault().message == "no room"


def test_an_error_that_may_quote_the_request_gives_the_record_no_reason() -> None:
    error = BadRequest("expected one of 'a'", "tools[0].type")

    assert isinstance(error, DialectError)
    assert error.fault().message == "tools[0].type: expected one of 'a'"
    assert error.reason == ""


@pytest.mark.parametrize(("dialect", "status"), [("chat", 503), ("responses", 503), ("messages", 529)])
def test_an_error_is_sent_in_the_dialects_envelope_with_its_headers(dialect: Dialect, status: int) -> None:
    fault = errors.NoCapacity("no room", retry_after=7).fault()

    answer = error_answer(fault, dialect, "req_1", [(b"x-more", b"1")])

    assert answer.status == status
    assert {
        (b"retry-after", b"7"),
        (b"x-request-id", b"req_1"),
        (b"request-id", b"req_1"),
        (b"x-more", b"1"),
    } <= set(answer.headers)
    assert json.loads(answer.body)["error"]["message"] == "no room"


def test_an_error_over_a_limit_carries_the_rate_headers() -> None:
    error = errors.OverLimits("slow down", 1.2, [(b"x-ratelimit-limit-requests", b"5")])

    assert (error.fault().kind, error.fault().retry_after_s) == (Kind.RATE_LIMITED, 2)
    assert error.headers == ((b"x-ratelimit-limit-requests", b"5"),)
