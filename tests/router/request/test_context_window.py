"""Prompts that do not fit, found out before the worker is asked; and how little that costs those that do."""

import json
from typing import Any

import pytest

from cortex.functions.spec import Function
from cortex.platform.record import Instance
from cortex.router.dialects.core import limits
from cortex.router.dialects.core.errors import Dialect, DialectError
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
        self.tokens, self.asked = tokens, 0

    async def count(self, function: Function, instance: Instance, body: bytes) -> int:
        self.asked += 1
        assert json.loads(body)["messages"]
        if self.tokens is None:
            raise UpstreamBroke("there is no /tokenize here")
        return self.tokens


def settle(counts: Counts, dialect: Dialect = "messages", window: int | None = WINDOW, **fields: Any) -> Settle | None:
    traits = Traits(context_window=window, on_long_prompt=fields.pop("on_long_prompt", "error"))
    said: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": LONG}]}
    if dialect == "responses":
        said = {"model": "m", "input": LONG}
    asked = read_request(dialect, json.dumps(said | fields).encode(), traits)
    return fitting(counts, a_function(), dialect, asked, asked.body("m"), traits)


WORKER = an_instance(context=WINDOW)


async def test_case_20_a_prompt_that_obviously_fits_is_not_looked_at() -> None:
    assert settle(Counts(0), messages=[{"role": "user", "content": "hi"}], max_tokens=4096) is None


async def test_case_20_a_prompt_that_is_too_long_is_refused_in_text_a() -> None:
    settled = settle(Counts(40000), max_tokens=100)
    assert settled is not None

    with pytest.raises(DialectError, match=r"^prompt is too long: 40000 tokens > 32768 maximum$"):
        await settled(WORKER, False)


async def test_case_20_a_prompt_and_answer_that_are_too_long_together_are_refused_in_text_b() -> None:
    settled = settle(Counts(20000), max_tokens=32000)
    assert settled is not None

    with pytest.raises(DialectError) as refused:
        await settled(WORKER, False)

    assert refused.value.fault().message == (
        "input length and `max_tokens` exceed context limit: 20000 + 32000 > 32768,"
        " decrease input length or `max_tokens` and try again"
    )


@pytest.mark.parametrize("dialect", ["messages", "chat"])
async def test_case_20_a_function_may_rather_answer_shortly(dialect: Dialect) -> None:
    settled = settle(Counts(20000), dialect, max_tokens=32000, on_long_prompt="clamp")
    assert settled is not None

    assert json.loads(await settled(WORKER, False))["max_tokens"] == 12768


async def test_case_20_a_client_whose_stream_has_begun_cannot_ask_again_and_gets_the_room_there_is() -> None:
    settled, hopeless = settle(Counts(20000), max_tokens=32000), settle(Counts(40000), max_tokens=32000)
    assert settled is not None
    assert hopeless is not None

    assert json.loads(await settled(WORKER, True))["max_tokens"] == 12768
    with pytest.raises(DialectError, match="prompt is too long"):
        await hopeless(WORKER, True)


async def test_case_20_what_fits_after_all_is_sent_as_it_is() -> None:
    counts = Counts(10000)
    settled = settle(counts, "responses", max_output_tokens=20000)
    assert settled is not None

    assert json.loads(await settled(WORKER, False))["max_tokens"] == 20000
    assert counts.asked == 1


async def test_case_20_clients_of_the_workers_dialect_get_the_workers_verdict() -> None:
    assert settle(Counts(40000), "chat", max_tokens=32000) is None


async def test_case_20_without_a_known_window_the_chosen_worker_decides() -> None:
    counts = Counts(40000)
    settled = settle(counts, window=None, max_tokens=100)
    assert settled is not None

    assert json.loads(await settled(an_instance(), False))["max_tokens"] == 100
    assert counts.asked == 0
    with pytest.raises(DialectError, match="prompt is too long"):
        await settled(WORKER, False)


async def test_a_worker_that_cannot_count_decides_for_itself() -> None:
    settled = settle(Counts(None), max_tokens=32000)
    assert settled is not None

    assert json.loads(await settled(WORKER, False))["max_tokens"] == 32000


@pytest.mark.parametrize(
    ("size", "max_tokens", "window", "fits"),
    [(1000, None, 2024, True), (1000, 1, 2024, False), (1, 1, None, False), (30000, 32000, 200_000, True)],
)
def test_a_token_takes_a_byte_at_least(size: int, max_tokens: int | None, window: int | None, fits: bool) -> None:
    assert limits.fits_without_counting(size, max_tokens, window) is fits
