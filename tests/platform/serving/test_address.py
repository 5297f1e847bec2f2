"""Addresses of both families, and the sockets that listen on them."""

import socket

import pytest

from cortex.platform.serving import address


def has_ipv6() -> bool:
    try:
        with address.create_server("::1", 0):
            return True
    except OSError:
        return False


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:80", "::1", 80), ("[fd00::5]:1", "fd00::5", 1), ("name:9", "name", 9)],
)
def test_an_address_is_split_and_joined_again(listen: str, host: str, port: int) -> None:
    assert address.split(listen) == (host, port)
    assert address.join(host, port) == listen


def test_a_host_in_brackets_is_joined_as_one_without() -> None:
    assert address.join("[::1]", 5) == address.join("::1", 5) == "[::1]:5"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::", False), ("fd00::5", False), ("x", False)],
)
def test_loopback_is_recognised_in_both_families(host: str, expected: bool) -> None:
    assert address.is_loopback(address.join(host, 1)) is expected


@IPV6
def test_a_port_that_is_free_on_ipv6_only_is_found_there() -> None:
    with address.create_server("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        assert address.first_free_port("::1", port, tries=1) == port
        assert address.first_free_port("127.0.0.1", port, tries=1) is None


@IPV6
def test_a_server_of_ipv6_accepts_there() -> None:
    with address.create_server("::1", 0) as server, socket.create_connection(server.getsockname()[:2], timeout=5):
        assert server.family is socket.AF_INET6
