"""What a caller is told of its limits, what a request takes of them, and what it is taken to have used."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from cortex.platform.api_keys import Limits, Principal, Priority
from cortex.platform.quota import Quota, Verdict
from cortex.platform.registry import Registry
from cortex.router.access.rate_limits import COVER, RateLimiter, Share, over_limits_message, rate_headers, used
from cortex.router.errors import OverLimits, TooManyAnswers
from cortex.router.fleet_view import FleetView
from cortex.router.request.request_record import RequestRecord, RequestRecords
from tests.support.stack import own_redis

VERDICT = Verdict(requests_left=3, tokens_left=400, requests_full_s=1.5, tokens_full_s=30)


def test_openais_clients_are_told_in_their_headers() -> None:
    told = dict(rate_headers(VERDICT, Limits(rpm=10, tpm=1000), "chat", 0.0))

    assert told == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"3",
        b"x-ratelimit-reset-requests": b"1.500s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"400",
        b"x-ratelimit-reset-tokens": b"30.000s",
    }


def test_anthropics_clients_are_told_in_theirs() -> None:
    told = dict(rate_headers(VERDICT, Limits(tpm=1000), "messages", 1_700_000_000.0))

    assert told == {
        b"anthropic-ratelimit-tokens-limit": b"1000",
        b"anthropic-ratelimit-tokens-remaining": b"400",
        b"anthropic-ratelimit-tokens-reset": b"2023-11-14T22:13:50Z",
    }


def caller(**limits: int) -> Principal:
    return Principal(id="k", name="team", scope="inference", rights=frozenset(), limits=Limits(**limits))


def journey(**noted: object) -> RequestRecord:
    found = RequestRecord("id", "f", "f", "chat", streams=True, read_s=0.0)
    for name, value in noted.items():
        setattr(found, name, value)
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_redis(tmp_path_factory.mktemp("r")) as found:
        yield found


@pytest.fixture
async def metering(url: str) -> AsyncIterator[RateLimiter]:
    registry = Registry(url)
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.flushall()
    view = FleetView(registry, "r")
    await view.refresh()
    view.away = False
    yield RateLimiter(Quota(registry), view, RequestRecords([]))
    await registry.close()


async def left(metering: RateLimiter, who: Principal) -> Verdict:
    """Return what a key has left, by taking the least there is."""
    verdict = await metering.take(who, "look", 1)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize("short", ["requests", "tokens", "concurrent"])
def test_a_caller_over_a_limit_is_told_which_and_when_to_come_back(short: str) -> None:
    verdict = Verdict(short=short, wait_s=2.2)
    who = caller(rpm=7, tpm=8, concurrent=9)

    fault = OverLimits(over_limits_message(verdict, who), verdict.wait_s, ()).fault()

    assert fault.headers()["retry-after"] == "3"
    assert "'team'" in fault.message
    assert {"requests": "7 requests a minute", "tokens": "8 tokens a minute", "concurrent": "9 requests at a time"}[
        short
    ] in fault.message


@pytest.mark.parametrize(
    ("noted", "tokens"),
    [
        pytest.param({}, 0, id="it never went to a worker"),
        pytest.param({"instance": "i", "tokens_in": 5, "tokens_out": 7, "pieces": 9}, 12, id="its worker counted"),
        pytest.param({"instance": "i", "pieces": 9}, 109, id="its worker did not count"),
        pytest.param({"instance": "i", "fault": "client_gone"}, 100, id="its client left before the first piece"),
        pytest.param({"instance": "i", "fault": "client_gone", "pieces": 9}, 109, id="its client left in the middle"),
        pytest.param(
            {"instance": "i", "fault": "client_gone", "pieces": 9, "tokens_in": 5, "tokens_out": 1},
            14,
            id="its client left after a first count",
        ),
        pytest.param({"tries": ("a worker broke",), "fault": "x"}, 100, id="its worker broke before it answered"),
    ],
)
def test_a_request_that_was_forwarded_costs_its_prompt_at_least(noted: dict[str, object], tokens: int) -> None:
    assert used(journey(**noted), 100) == tokens


async def test_a_request_over_its_limits_is_refused_before_its_body_is_read(metering: RateLimiter) -> None:
    who = caller(rpm=1)
    await metering.enter(who, "chat", 0)

    with pytest.raises(OverLimits) as refused:
        await metering.enter(who, "chat", 0)

    assert dict(refused.value.headers)[b"x-ratelimit-remaining-requests"] == b"0"


async def test_a_body_of_unknown_length_is_covered_as_it_is_read(metering: RateLimiter) -> None:
    share = await metering.enter(caller(tpm=300_000), "chat", 0)
    await share.cover(COVER - 1)
    before = await left(metering, caller(tpm=300_000))

    await share.cover(COVER)

    after = await left(metering, caller(tpm=300_000))
    assert before.tokens_left > 299_000
    assert 262_000 <= before.tokens_left - after.tokens_left <= 262_200


async def test_reading_on_ends_where_the_tokens_of_a_key_do(metering: RateLimiter) -> None:
    who = caller(tpm=1000)
    first = await metering.enter(who, "chat", 2000)
    second = await metering.enter(who, "chat", 0)

    with pytest.raises(OverLimits):
        await second.cover(COVER)

    await second.settle()
    await first.settle()


async def test_a_prompt_larger_than_a_minute_is_served_from_a_full_bucket_whatever_its_head_announced(
    metering: RateLimiter,
) -> None:
    who = caller(tpm=100)
    share = await metering.enter(who, "chat", 400)

    await share.put_right(4_000, 1)

    assert (await left(metering, who)).short == "tokens"


async def test_each_answer_takes_a_request_once_the_body_has_told_how_many(metering: RateLimiter) -> None:
    share = await metering.enter(caller(rpm=5, concurrent=3), "chat", 0)
    await share.put_right(0, 3)

    over = await left(metering, caller(rpm=5, concurrent=3))
    await share.settle()
    after = await left(metering, caller(rpm=5, concurrent=3))

    assert over.short == "concurrent"
    assert (after.short, after.requests_left) == ("", 1)


async def test_what_a_request_did_not_use_comes_back_once(metering: RateLimiter) -> None:
    who = caller(tpm=1000)
    share = await metering.enter(who, "chat", 2000)
    await share.put_right(2400, 1)

    await share.settle(100)
    await share.settle(900)

    assert 895 <= (await left(metering, who)).tokens_left <= 905


@pytest.mark.parametrize(("left", "fault"), [(True, ""), (False, "worker_error")])
@pytest.mark.parametrize(
    ("counted", "pieces", "rough", "tokens"),
    [((0, 0), 3, 40, 140), ((7, 1), 3, 40, 47), ((7, 50), 3, 40, 57), ((0, 0), 9, 2, 109), ((0, 0), 0, 0, 0)],
)
def test_a_stream_that_is_cut_pays_for_every_token_of_its_pieces(
    counted: tuple[int, int], pieces: int, rough: int, tokens: int, left: bool, fault: str
) -> None:
    journey = RequestRecord("id", "f", "f", "chat", streams=True, read_s=0.0)
    journey.tokens_in, journey.tokens_out = counted
    journey.pieces, journey.rough_tokens, journey.left, journey.fault = pieces, rough, left, fault

    assert used(journey, 100) == tokens


@pytest.mark.parametrize(("queue", "shares"), [(0, (0, 0, 0)), (1, (1, 1, 2)), (2, (1, 2, 3)), (256, (128, 256, 384))])
def test_priorities_share_a_queue(queue: int, shares: tuple[int, int, int]) -> None:
    assert tuple(p.share(queue) for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH)) == shares


@pytest.mark.parametrize("limits", [Limits(rpm=3), Limits(concurrent=3), Limits(rpm=9, concurrent=3)])
async def test_more_answers_than_a_key_ever_has_requests_are_refused_at_once(
    metering: RateLimiter, limits: Limits
) -> None:
    who = Principal(id="k", name="team", scope="inference", rights=frozenset(), limits=limits)
    share = await metering.enter(who, "chat", 10)

    with pytest.raises(TooManyAnswers) as refused:
        await share.put_right(10, 4)

    assert refused.value.fault().status("chat") == 400
    await share.put_right(10, 3)


async def test_a_key_without_limits_takes_nothing() -> None:
    metering = RateLimiter(None, None, RequestRecords([]))  # type: ignore[arg-type]
    share = await metering.enter(caller(), "chat", 10)
    await share.cover(COVER)
    await share.put_right(COVER, 5)

    async def app(*_: object) -> None: ...

    assert share.around(app, journey()) is app
    assert isinstance(share, Share)
