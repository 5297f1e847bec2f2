"""Prompts that do not fit, found out before the worker is asked; and how little that costs those that do."""

import json
from typing import Any

import pytest

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.core import limits
from cortex.router.dialects.core.errors import Dialect, DialectError, in_client_terms
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request
from cortex.router.errors import UpstreamBroke
from cortex.router.request.context_window import Settle, fitting
from tests.support.factories import a_function, an_instance

WINDOW = 32768
LONG = "word " * 10_000


class Counts:
    """A worker's tokenizer that says what it is told to."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens, self.calls = tokens, 0

    async def count(self, function: Function, instance: Instance, body: Body) -> int:
        self.calls += 1
        request = json.loads(bytes(body))
        assert request.get("prompt") == LONG or request["messages"]
        if self.tokens is None:
            raise UpstreamBroke("there is no /tokenize here")
        return self.tokens


def settle(counts: Counts, dialect: Dialect = "messages", window: int | None = WINDOW, **fields: Any) -> Settle | None:
    rule, default = fields.pop("on_long_prompt", "auto"), fields.pop("default", None)
    traits = Traits(context_window=window, on_long_prompt=rule, default_output_tokens=default)
    texts: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": LONG}]}
    if dialect == "responses":
        texts = {"model": "m", "input": LONG}
    if dialect == "completions":
        texts = {"model": "m", "prompt": ["short", LONG]}
    request = read_request(dialect, json.dumps(texts | fields).encode(), traits)
    return fitting(counts, a_function(), dialect, request, request.body("m"), traits)


WORKER = an_instance(context=WINDOW)


async def limit_of(settled: Settle, instance: Instance = WORKER) -> int:
    """Return the output limit in the body for an instance."""
    limit: int = json.loads(bytes((await settled(instance)).body))["max_tokens"]
    return limit


async def test_case_20_a_prompt_that_obviously_fits_is_not_looked_at() -> None:
    assert settle(Counts(0), messages=[{"role": "user", "content": "hi"}], max_tokens=4096) is None


async def test_case_20_a_prompt_that_is_too_long_is_refused_in_text_a() -> None:
    settled = settle(Counts(40000), max_tokens=100)
    assert settled is not None

    with pytest.raises(DialectError, match=r"^prompt is too long: 40000 tokens > 32768 maximum$"):
        await settled(WORKER)


LIMITS: dict[Dialect, str] = {
    "messages": "max_tokens",
    "responses": "max_output_tokens",
    "chat": "max_completion_tokens",
    "completions": "max_tokens",
}


@pytest.mark.parametrize("dialect", list(LIMITS))
async def test_case_20_an_answer_gets_what_a_prompt_leaves_while_that_is_sensible(dialect: Dialect) -> None:
    settled = settle(Counts(20000), dialect, **{LIMITS[dialect]: 32000})
    assert settled is not None

    fitted = await settled(WORKER)

    assert (fitted.max_tokens, fitted.input_tokens) == (12768, 20000)
    assert 12768 in (json.loads(bytes(fitted.body)).get(name) for name in ("max_tokens", "max_completion_tokens"))


@pytest.mark.parametrize("dialect", list(LIMITS))
@pytest.mark.parametrize(("tokens", "rule"), [(20000, "error"), (WINDOW - 255, "auto")])
async def test_case_20_too_small_a_rest_is_refused_alike_with_the_field_that_the_client_sent(
    dialect: Dialect, tokens: int, rule: str
) -> None:
    settled = settle(Counts(tokens), dialect, on_long_prompt=rule, **{LIMITS[dialect]: 32000})
    assert settled is not None

    with pytest.raises(DialectError) as refused:
        await settled(WORKER)

    fault = in_client_terms(refused.value.fault(), dialect, LIMITS[dialect])
    assert fault.message == (
        f"input length and `{LIMITS[dialect]}` exceed context limit: {tokens} + 32000 > 32768,"
        f" decrease input length or `{LIMITS[dialect]}` and try again"
    )
    assert fault.param == LIMITS[dialect]


@pytest.mark.parametrize(("window", "rest"), [(32768, 256), (1024, 256), (512, 128)])
def test_case_20_a_sensible_rest_is_256_tokens_or_a_quarter(window: int, rest: int) -> None:
    traits = Traits(context_window=window)

    assert limits.fit(window - rest, 2 * window, traits) == rest
    with pytest.raises(DialectError):
        limits.fit(window - rest + 1, 2 * window, traits)


@pytest.mark.parametrize("dialect", ["messages", "chat"])
async def test_case_20_a_function_may_rather_answer_shortly(dialect: Dialect) -> None:
    settled = settle(Counts(WINDOW - 10), dialect, max_tokens=32000, on_long_prompt="clamp")
    assert settled is not None

    assert await limit_of(settled) == 10


async def test_case_20_a_limit_that_the_client_did_not_set_refuses_no_prompt() -> None:
    settled = settle(Counts(WINDOW - 10), "responses", default=32000)
    assert settled is not None

    assert await limit_of(settled) == 10


async def test_case_20_what_fits_after_all_is_sent_as_it_is() -> None:
    counts = Counts(10000)
    settled = settle(counts, "responses", max_output_tokens=20000)
    assert settled is not None

    assert await limit_of(settled) == 20000
    assert counts.calls == 1


async def test_case_20_without_a_limit_clients_of_the_workers_dialect_get_the_workers_verdict() -> None:
    assert settle(Counts(40000), "chat") is None


async def test_case_20_without_a_known_window_the_chosen_worker_decides() -> None:
    counts = Counts(40000)
    settled = settle(counts, window=None, max_tokens=100)
    assert settled is not None

    assert await limit_of(settled, an_instance()) == 100
    assert counts.calls == 0
    with pytest.raises(DialectError, match="prompt is too long"):
        await settled(WORKER)


async def test_a_worker_that_cannot_count_decides_for_itself() -> None:
    settled = settle(Counts(None), max_tokens=32000)
    assert settled is not None

    assert await limit_of(settled) == 32000


@pytest.mark.parametrize(
    ("size", "max_tokens", "window", "fits"),
    [(1000, None, 2024, True), (1000, 1, 2024, False), (1, 1, None, False), (30000, 32000, 200_000, True)],
)
def test_a_token_takes_a_byte_at_least(size: int, max_tokens: int | None, window: int | None, fits: bool) -> None:
    assert limits.fits_without_counting(size, max_tokens, window) is fits
