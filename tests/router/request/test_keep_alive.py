"""How long a request lets its instance stay idle: seconds, durations of Ollama's clients, and what is none."""

from typing import Any

import msgspec
import pytest

from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request
from cortex.router.request.keep_alive import keep_s
from tests.support.factories import a_function

FUNCTION = a_function(idle_after_s=60, keep_alive_max_s=3600)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0), (30, 30.0), (1.5, 1.5), ("0", 0.0), ("45", 45.0), ("90s", 90.0), ("5m", 300.0), ("1h30m", 3600.0),
        ("500ms", 0.5), ("1.5m", 90.0), (" 5m ", 300.0), (-1, 3600.0), ("-1m", 3600.0), ("24h", 3600.0),
        (10**9, 3600.0),
    ],
)  # fmt: skip
def test_a_duration_is_read_within_the_bound_of_the_catalogue(value: Any, seconds: float) -> None:
    assert keep_s(None, value, FUNCTION) == seconds
    assert keep_s(str(value).encode(), None, FUNCTION) == seconds


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_too_large_for_a_float_is_as_long_as_allowed(value: int) -> None:
    assert keep_s(None, value, FUNCTION) == 3600.0


def test_without_a_bound_of_its_own_the_idle_time_is_the_bound() -> None:
    assert keep_s(None, "24h", a_function(idle_after_s=60)) == 60.0
    assert keep_s(None, 5, a_function(idle_after_s=60)) == 5.0


def test_the_header_takes_precedence_and_nothing_says_nothing() -> None:
    assert keep_s(b"10", "20s", FUNCTION) == 10.0
    assert keep_s(None, None, FUNCTION) is None


@pytest.mark.parametrize("value", ["", "soon", "5 m", "5x", "m", "1h30", "nan", "inf", "1" * 50, True, [], {}, 1e400])
def test_what_is_no_duration_is_an_error_with_the_name_of_the_field(value: Any) -> None:
    with pytest.raises(BadRequest, match="expected a duration") as field:
        keep_s(None, value, FUNCTION)
    with pytest.raises(BadRequest, match="expected a duration") as header:
        keep_s(str(value).encode(), None, FUNCTION)

    assert (field.value.param, header.value.param) == ("keep_alive", "x-cortex-keep-alive")


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("chat", {"messages": [{"role": "user", "content": "Hello!"}]}),
        ("messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello!"}]}),
        ("responses", {"input": "Hello!"}),
        ("completions", {"prompt": "Once"}),
    ],
)
def test_no_worker_gets_the_field_and_it_is_not_reported_as_dropped(dialect: Dialect, body: dict[str, Any]) -> None:
    parsed = read_request(dialect, msgspec.json.encode({"model": "m", "keep_alive": "5m", **body}), Traits())

    assert b"keep_alive" not in bytes(parsed.body("m"))
    assert parsed.dropped == ()
