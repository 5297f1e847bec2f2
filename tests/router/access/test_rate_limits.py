"""Rate-limit headers and errors, a request's share of the limits, and the usage it is charged."""

from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest
import redis.asyncio

from cortex.platform.api_keys import Limits, Principal, Priority
from cortex.platform.quota import Quota, Verdict
from cortex.platform.registry import Registry
from cortex.router.access.rate_limits import COVER, RateLimiter, Share, over_limits_message, rate_headers, used
from cortex.router.errors import OverLimits, TooManyAnswers
from cortex.router.fleet_view import FleetView
from cortex.router.http_answer import Client
from cortex.router.request_record import RequestRecord
from tests.support.stack import own_redis

VERDICT = Verdict(requests_left=3, tokens_left=400, requests_full_s=1.5, tokens_full_s=30)


def test_the_openai_dialect_gets_x_ratelimit_headers() -> None:
    headers = dict(rate_headers(VERDICT, Limits(rpm=10, tpm=1000), "chat", 0.0))

    assert headers == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"3",
        b"x-ratelimit-reset-requests": b"1.500s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"400",
        b"x-ratelimit-reset-tokens": b"30.000s",
    }


def test_the_anthropic_dialect_gets_anthropic_ratelimit_headers() -> None:
    headers = dict(rate_headers(VERDICT, Limits(tpm=1000), "messages", 1_700_000_000.0))

    assert headers == {
        b"anthropic-ratelimit-tokens-limit": b"1000",
        b"anthropic-ratelimit-tokens-remaining": b"400",
        b"anthropic-ratelimit-tokens-reset": b"2023-11-14T22:13:50Z",
    }


def caller(**limits: int) -> Principal:
    return Principal(id="k", name="team", scope="inference", rights=frozenset(), limits=Limits(**limits))


def a_record(**fields: object) -> RequestRecord:
    request_record = RequestRecord("id", "f", "f", "chat", streams=True, read_s=0.0)
    for name, value in fields.items():
        setattr(request_record, name, value)
    return request_record


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("r")) as address:
        yield address


@pytest.fixture
async def limiter(url: str) -> AsyncIterator[RateLimiter]:
    registry = Registry(url)
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.flushall()
    view = FleetView(registry, "r")
    await view.refresh()
    view.away = False
    yield RateLimiter(Quota(registry), view)
    await registry.close()


async def remaining(limiter: RateLimiter, who: Principal) -> Verdict:
    """Return what a key has left; takes one token."""
    verdict = await limiter.take(who, "look", 1)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("short", ["requests", "tokens", "concurrent"])
def test_an_over_limit_error_names_the_limit_and_the_retry_time(short: str) -> None:
    verdict = Verdict(short=short, wait_s=2.2)
    who = caller(rpm=7, tpm=8, concurrent=9)

    fault = OverLimits(over_limits_message(verdict, who), verdict.wait_s, ()).fault()

    assert fault.headers()["retry-after"] == "3"
    assert "'team'" in fault.message
    assert {"requests": "7 requests a minute", "tokens": "8 tokens a minute", "concurrent": "9 requests at a time"}[
        short
    ] in fault.message


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        pytest.param({}, 0, id="not forwarded"),
        pytest.param({"instance": "i", "tokens_in": 5, "tokens_out": 7, "pieces": 9}, 12, id="counted by the worker"),
        pytest.param({"instance": "i", "pieces": 9}, 109, id="not counted by the worker"),
        pytest.param({"instance": "i", "fault": "client_gone"}, 100, id="client left before the first piece"),
        pytest.param({"instance": "i", "fault": "client_gone", "pieces": 9}, 109, id="client left mid-stream"),
        pytest.param(
            {"instance": "i", "fault": "client_gone", "pieces": 9, "tokens_in": 5, "tokens_out": 1},
            14,
            id="client left after a first count",
        ),
        pytest.param({"tries": ("a worker broke",), "fault": "x"}, 100, id="worker failed before the first byte"),
    ],
)
def test_a_forwarded_request_is_charged_at_least_its_prompt(fields: dict[str, object], tokens: int) -> None:
    assert used(a_record(**fields), 100) == tokens


async def test_a_request_over_its_limits_is_rejected_before_its_body_is_read(limiter: RateLimiter) -> None:
    who = caller(rpm=1)
    await limiter.enter(who, "chat", 0)

    with pytest.raises(OverLimits) as error:
        await limiter.enter(who, "chat", 0)

    assert dict(error.value.headers)[b"x-ratelimit-remaining-requests"] == b"0"


async def test_the_share_of_a_body_of_unknown_length_grows_as_it_is_read(limiter: RateLimiter) -> None:
    share = await limiter.enter(caller(tpm=300_000), "chat", 0)
    await share.cover(COVER - 1)
    before = await remaining(limiter, caller(tpm=300_000))

    await share.cover(COVER)

    after = await remaining(limiter, caller(tpm=300_000))
    assert before.tokens_left > 299_000
    assert 262_000 <= before.tokens_left - after.tokens_left <= 262_200


async def test_a_growing_body_is_rejected_when_the_tokens_run_out(limiter: RateLimiter) -> None:
    who = caller(tpm=1000)
    first = await limiter.enter(who, "chat", 2000)
    second = await limiter.enter(who, "chat", 0)

    with pytest.raises(OverLimits):
        await second.cover(COVER)

    await second.settle()
    await first.settle()


async def test_a_prompt_above_a_minutes_tokens_is_served_from_a_full_bucket(
    limiter: RateLimiter,
) -> None:
    who = caller(tpm=100)
    share = await limiter.enter(who, "chat", 400)

    await share.adjust(4_000, 1)

    assert (await remaining(limiter, who)).short == "tokens"


async def test_each_answer_counts_as_a_request_once_the_body_is_read(limiter: RateLimiter) -> None:
    share = await limiter.enter(caller(rpm=5, concurrent=3), "chat", 0)
    await share.adjust(0, 3)

    exceeded = await remaining(limiter, caller(rpm=5, concurrent=3))
    await share.settle()
    after = await remaining(limiter, caller(rpm=5, concurrent=3))

    assert exceeded.short == "concurrent"
    assert (after.short, after.requests_left) == ("", 1)


async def test_unused_tokens_are_returned_once(limiter: RateLimiter) -> None:
    who = caller(tpm=1000)
    share = await limiter.enter(who, "chat", 2000)
    await share.adjust(2400, 1)

    await share.settle(100)
    await share.settle(900)

    assert 895 <= (await remaining(limiter, who)).tokens_left <= 905


@pytest.mark.parametrize(("left", "fault"), [(True, ""), (False, "worker_error")])
@pytest.mark.parametrize(
    ("counted", "pieces", "rough", "tokens"),
    [((0, 0), 3, 40, 140), ((7, 1), 3, 40, 47), ((7, 50), 3, 40, 57), ((0, 0), 9, 2, 109), ((0, 0), 0, 0, 0)],
)
def test_an_interrupted_stream_is_charged_for_every_token_of_its_pieces(
    counted: tuple[int, int], pieces: int, rough: int, tokens: int, left: bool, fault: str
) -> None:
    request_record = RequestRecord("id", "f", "f", "chat", streams=True, read_s=0.0)
    request_record.tokens_in, request_record.tokens_out = counted
    request_record.pieces, request_record.rough_tokens = pieces, rough
    request_record.left, request_record.fault = left, fault

    assert used(request_record, 100) == tokens


@pytest.mark.parametrize(("queue", "shares"), [(0, (0, 0, 0)), (1, (1, 1, 2)), (2, (1, 2, 3)), (256, (128, 256, 384))])
def test_a_priority_limits_its_share_of_a_queue(queue: int, shares: tuple[int, int, int]) -> None:
    assert tuple(p.share(queue) for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH)) == shares


@pytest.mark.parametrize("limits", [Limits(rpm=3), Limits(concurrent=3), Limits(rpm=9, concurrent=3)])
async def test_more_answers_than_the_limits_ever_allow_are_a_bad_request(limiter: RateLimiter, limits: Limits) -> None:
    who = Principal(id="k", name="team", scope="inference", rights=frozenset(), limits=limits)
    share = await limiter.enter(who, "chat", 10)

    with pytest.raises(TooManyAnswers) as error:
        await share.adjust(10, 4)

    assert error.value.fault().status("chat") == 400
    await share.adjust(10, 3)


async def test_a_key_without_limits_reserves_nothing() -> None:
    limiter = RateLimiter(None, None)  # type: ignore[arg-type]
    share = await limiter.enter(caller(), "chat", 10)
    await share.cover(COVER)
    await share.adjust(COVER, 5)

    async def app(*_: object) -> None: ...

    assert share.wrap(app, a_record()) is app
    assert isinstance(share, Share)


async def test_the_answer_of_a_key_without_limits_has_the_headers_of_its_budget() -> None:
    warning = [(b"x-cortex-budget-spent", b"0.83")]
    sent: list[tuple[bytes, bytes]] = []
    share = Share(RateLimiter(None, None), caller(), "chat", warning)  # type: ignore[arg-type]

    class Receiver:
        async def send(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
            sent.extend(headers)

    async def answer(client: Client) -> None:
        await client.send(200, [], b"")

    await share.wrap(answer, a_record())(cast(Client, Receiver()))

    assert sent == warning


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"audio_s": 12.5}, 125),
        ({"characters": 10}, 3),
        ({"audio_s": 12.5, "tokens_in": 7, "tokens_out": 2}, 9),
        ({"images": 4}, 0),
        ({"pieces": 40}, 0),
    ],
)
def test_media_cost_what_their_worker_counts_or_else_seconds_and_characters(
    fields: dict[str, float], tokens: int
) -> None:
    record = RequestRecord("r", "f", "f", "transcriptions", streams=False, read_s=0.0)
    record.forward("i", "h")
    for name, value in fields.items():
        setattr(record, name, value)

    assert used(record, 1_000_000) == tokens
