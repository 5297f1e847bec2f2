"""Which instance serves a request: sessions stay where their prompt is cached, without overloading an instance."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.record import Instance
from cortex.router.activation.load_balancing import affinity, choose
from tests.router.dialects.examples import examples
from tests.support.factories import an_instance

FOUR = [an_instance(name) for name in ("a", "b", "c", "d")]


def idle(_: str) -> int:
    return 0


def of(instance: Instance | None) -> str:
    assert instance is not None
    return instance.id


def test_without_a_session_the_least_busy_serves() -> None:
    assert of(choose(FOUR, {"a": 2, "b": 1, "c": 1, "d": 3}.__getitem__)) == "b"


def test_a_session_stays_with_one_instance_and_sessions_spread() -> None:
    homes = {n: of(choose(FOUR, idle, f"session {n}", 8)) for n in range(200)}
    again = {n: of(choose(FOUR[::-1], idle, f"session {n}", 8)) for n in range(200)}

    assert homes == again
    assert min(Counter(homes.values()).values()) > 25


def test_when_an_instance_goes_only_its_own_sessions_move() -> None:
    homes = {n: of(choose(FOUR, idle, f"session {n}", 8)) for n in range(200)}
    left = {n: of(choose(FOUR[1:], idle, f"session {n}", 8)) for n in range(200)}

    assert {n for n in homes if homes[n] != left[n]} == {n for n in homes if homes[n] == "a"}


def test_a_session_leaves_an_instance_that_has_enough() -> None:
    home = of(choose(FOUR, idle, "s", 4))
    busy = {i.id: 4 if i.id == home else 3 for i in FOUR}

    assert of(choose(FOUR, busy.__getitem__, "s", 4)) != home


def test_a_session_leaves_an_instance_that_has_more_than_its_share() -> None:
    home = of(choose(FOUR, idle, "s", 100))
    busy = {i.id: 20 if i.id == home else 0 for i in FOUR}

    assert of(choose(FOUR, busy.__getitem__, "s", 100)) != home


def test_a_session_may_have_two_requests_at_once_where_it_is() -> None:
    home = of(choose(FOUR, idle, "s", 8))

    assert of(choose(FOUR, lambda i: int(i == home), "s", 8)) == home


def test_when_all_have_enough_the_least_busy_serves() -> None:
    assert of(choose(FOUR, {"a": 9, "b": 8, "c": 9, "d": 9}.__getitem__, "s", 4)) == "b"


def test_there_may_be_nobody() -> None:
    assert choose([], idle, "s", 8) is None


@examples(80)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=6), st.text(max_size=8), st.integers(1, 16))
def test_affinity_never_overloads(loads: list[int], session: str, enough: int) -> None:
    """The chosen instance has room and at most a little over its share, or is the least busy."""
    ready = [an_instance(f"i{n}") for n in range(len(loads))]
    load = {i.id: n for i, n in zip(ready, loads, strict=True)}

    chosen = load[of(choose(ready, load.__getitem__, session, enough))]

    share = max(2.0, 1.25 * (sum(loads) + 1) / len(loads) + 1)
    assert chosen == min(loads) or (chosen < enough and chosen < share)


def test_a_session_is_known_by_its_header_else_by_its_body() -> None:
    assert affinity({b"x-claude-code-session-id": b"c", b"session-id": b"d"}, "body") == "c"
    assert affinity({b"thread-id": b"t"}, None) == "t"
    assert affinity({b"x-session-id": b""}, "body") == "body"
    assert affinity({}, None) is None
