"""Which requests are refused after workers died with them in flight."""

from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.api_keys import ANONYMOUS
from cortex.router.request.suspects import (
    ALONE,
    IN_COMPANY,
    MOST_MARKS,
    OF_KEY,
    REFUSED_S,
    WINDOW_S,
    Fingerprint,
    Suspects,
    digest,
)


def a_fingerprint(text: str = "pill", *, key: str = "k1", function: str = "f") -> Fingerprint:
    return Fingerprint(key=key, who=key, function=function, request="r", digest=digest("/v1", text.encode()))


def after_deaths(fingerprint: Fingerprint, times: int, *, alone: bool) -> Suspects:
    suspects = Suspects()
    for n in range(times):
        for mark in fingerprint.marks:
            suspects.strike(mark, alone=alone, now=float(n))
    return suspects


def test_a_request_is_refused_after_two_deaths_that_it_was_alone_in_flight_at() -> None:
    pill = a_fingerprint()

    assert after_deaths(pill, ALONE - 1, alone=True).refused_for(pill.marks, 2.0) == 0
    assert after_deaths(pill, ALONE, alone=True).refused_for(pill.marks, 1.0) == REFUSED_S


def test_in_company_it_takes_more_deaths() -> None:
    pill = a_fingerprint()

    assert after_deaths(pill, IN_COMPANY - 1, alone=False).refused_for(pill.marks, 10.0) == 0
    assert after_deaths(pill, IN_COMPANY, alone=False).refused_for(pill.marks, 10.0) > 0


def test_a_key_that_changes_a_word_each_time_is_refused_at_that_function_only() -> None:
    suspects = Suspects()
    for n in range(OF_KEY):
        for mark in a_fingerprint(f"pill {n}").marks:
            suspects.strike(mark, alone=True, now=0.0)

    assert suspects.refused_for(a_fingerprint("another").marks, 1.0) > 0
    assert suspects.refused_for(a_fingerprint("another", function="g").marks, 1.0) == 0
    assert suspects.refused_for(a_fingerprint("another", key="k2").marks, 1.0) == 0


def test_clients_without_a_key_answer_for_the_exact_request_only() -> None:
    suspects = after_deaths(a_fingerprint(key=ANONYMOUS), 8, alone=True)

    assert suspects.refused_for(a_fingerprint(key=ANONYMOUS).marks, 8.0) > 0
    assert suspects.refused_for(a_fingerprint("another", key=ANONYMOUS).marks, 8.0) == 0


def test_a_refusal_ends_and_deaths_are_forgotten() -> None:
    pill = a_fingerprint()
    suspects = after_deaths(pill, ALONE, alone=True)

    assert suspects.refused_for(pill.marks, 1.0 + REFUSED_S) == 0
    assert suspects.refused_for(pill.marks, 1.0 + WINDOW_S) == 0
    assert not suspects


def test_a_digest_tells_bodies_apart_at_both_ends_and_by_length() -> None:
    large = b"x" * 1_000_000

    assert len({digest("/v1", large), digest("/v1", b"y" + large[1:]), digest("/v1", large + b"x")}) == 3


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=60))
def test_a_refusal_is_never_longer_than_its_bound(deaths: list[tuple[int, bool]]) -> None:
    suspects = Suspects()
    for n, (mark, alone) in enumerate(deaths):
        suspects.strike(f"k\nf\n{mark}", alone=alone, now=float(n))

    assert all(0 <= suspects.refused_for((f"k\nf\n{m}",), 60.0) <= REFUSED_S for m, _ in deaths)


def test_the_table_is_bounded() -> None:
    suspects = Suspects()
    for n in range(MOST_MARKS + 1):
        suspects.strike(f"k\nf\n{n}", alone=True, now=0.0)
        suspects.strike(f"k\nf\n{n}", alone=True, now=0.0)

    assert suspects.refused_for(("k\nf\n0",), 1.0) == 0
    assert suspects.refused_for(("k\nf\n1",), 1.0) > 0
