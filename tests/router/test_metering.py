"""What a caller is told of its limits, and what a request is taken to have used."""

import pytest

from cortex.platform.api_keys import Limits, Principal, Priority
from cortex.platform.quota import Verdict
from cortex.router.access.metering import Metering, rate_headers, too_many, used
from cortex.router.refusals import TooManyAnswers
from cortex.router.request.journey import Journey

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


@pytest.mark.parametrize("short", ["requests", "tokens", "concurrent"])
def test_who_is_over_a_limit_is_told_which_and_when_to_come_back(short: str) -> None:
    limits = Limits(rpm=7, tpm=8, concurrent=9)
    caller = Principal(id="k", name="team", scope="inference", rights=frozenset(), limits=limits)

    fault = too_many(Verdict(short=short, wait_s=2.2), caller)

    assert fault.headers()["retry-after"] == "3"
    assert "'team'" in fault.message
    assert {"requests": "7 requests a minute", "tokens": "8 tokens a minute", "concurrent": "9 requests at a time"}[
        short
    ] in fault.message


@pytest.mark.parametrize(("counted", "pieces", "tokens"), [((5, 7), 9, 12), ((0, 0), 9, 109), ((0, 0), 0, 0)])
def test_a_stream_that_is_cut_off_to_save_tokens_saves_none(counted: tuple[int, int], pieces: int, tokens: int) -> None:
    journey = Journey("id", "f", "f", "chat", streams=True, read_s=0.0)
    journey.tokens_in, journey.tokens_out = counted
    journey.pieces = pieces

    assert used(journey, 100) == tokens


@pytest.mark.parametrize(("left", "fault"), [(True, ""), (False, "worker_error")])
@pytest.mark.parametrize(
    ("counted", "pieces", "rough", "tokens"),
    [((0, 0), 3, 40, 140), ((7, 1), 3, 40, 47), ((7, 50), 3, 40, 57), ((0, 0), 9, 2, 109), ((0, 0), 0, 0, 0)],
)
def test_a_stream_that_is_cut_pays_for_every_token_of_its_pieces(
    counted: tuple[int, int], pieces: int, rough: int, tokens: int, left: bool, fault: str
) -> None:
    journey = Journey("id", "f", "f", "chat", streams=True, read_s=0.0)
    journey.tokens_in, journey.tokens_out = counted
    journey.pieces, journey.rough_tokens, journey.left, journey.fault = pieces, rough, left, fault

    assert used(journey, 100) == tokens


@pytest.mark.parametrize(("queue", "shares"), [(0, (0, 0, 0)), (1, (1, 1, 2)), (2, (1, 2, 3)), (256, (128, 256, 384))])
def test_priorities_share_a_queue(queue: int, shares: tuple[int, int, int]) -> None:
    assert tuple(p.share(queue) for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH)) == shares


@pytest.mark.parametrize("limits", [Limits(rpm=3), Limits(concurrent=3), Limits(rpm=9, concurrent=3)])
def test_more_answers_than_a_key_ever_has_requests_are_refused_at_once(limits: Limits) -> None:
    metering = Metering(None, None, None)  # type: ignore[arg-type]
    caller = Principal(id="k", name="team", scope="inference", rights=frozenset(), limits=limits)
    journey = Journey("id", "f", "f", "chat", streams=True, read_s=0.0)

    with pytest.raises(TooManyAnswers) as refused:
        metering.around(None, journey, caller, 10, 4)  # type: ignore[arg-type]

    assert refused.value.fault().status("chat") == 400
    metering.around(None, journey, caller, 10, 3)  # type: ignore[arg-type]
