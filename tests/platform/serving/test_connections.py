"""The counting of a listener's connections, without sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.serving.connections import Connections, peer_of


def test_a_peer_at_its_limit_is_refused_and_others_are_not() -> None:
    held = Connections(most=10, most_per_peer=2)

    admitted = [held.admit(peer) for peer in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")]

    assert admitted == [True, True, False, True]
    assert held.total == 3


def test_a_closed_connection_frees_a_place_for_its_peer() -> None:
    held = Connections(most=10, most_per_peer=1)
    held.admit("192.0.2.1")

    held.release("192.0.2.1")

    assert held.admit("192.0.2.1")


def test_a_trusted_proxy_has_only_the_process_limit() -> None:
    held = Connections(most=3, most_per_peer=1, exempt=["10.0.0.0/8"])

    admitted = [held.admit("10.1.2.3") for _ in range(4)]

    assert admitted == [True, True, True, False]


@pytest.mark.parametrize(
    ("exempt", "peer", "is_exempt"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("*", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::/64", True),
        ("2001:db8::/32", "2001:db8:0:1::/64", True),
        ("2001:db8::/32", "2001:db9::/64", False),
        ("10.0.0.0/8", "2001:db8::/64", False),
        ("a-name", "192.0.2.1", False),
        ("10.0.0.0/8", "", False),
    ],
)
def test_a_peer_in_an_exempt_network_is_exempt(exempt: str, peer: str, is_exempt: bool) -> None:
    held = Connections(most=10, most_per_peer=1, exempt=[exempt])
    held.admit(peer)

    assert held.admit(peer) is is_exempt


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("", ""),
        ("a:socket", "a:socket"),
    ],
)
def test_an_ipv6_peer_counts_by_its_network(host: str, peer: str) -> None:
    assert peer_of(host) == peer


def test_unfinished_heads_of_all_connections_share_one_limit() -> None:
    held = Connections(heads_bytes=100)

    fits = [held.hold(60), held.hold(60), held.hold(-60)]

    assert fits == [True, False, True]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_counts_match_the_open_connections(steps: list[tuple[str, bool]]) -> None:
    held, open_ = Connections(most=6, most_per_peer=3), {"a": 0, "b": 0, "c": 0}

    for peer, arrives in steps:
        if arrives:
            room = sum(open_.values()) < 6 and open_[peer] < 3
            assert held.admit(peer) is room
            open_[peer] += room
        elif open_[peer]:
            held.release(peer)
            open_[peer] -= 1
        assert held.total == sum(open_.values())
