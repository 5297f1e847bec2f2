"""Assignment of ports to workers, and the rest time of released ports."""

import secrets
import socket

import pytest

from cortex.platform.workers.ports import REST_S, NoPort, Ports, bindable
from tests.support.stack import free_port


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ports(count: int) -> tuple[Ports, Time]:
    """A range of ports at a loopback address that only this test uses."""
    clock, host = Time(), f"127.{secrets.randbelow(200) + 40}.{secrets.randbelow(256)}.1"
    return Ports(host, f"29001-{29000 + count}", clock), clock


def test_an_unused_port_is_preferred_to_a_resting_one() -> None:
    own, _ = ports(2)
    first = own.take("one", "f", checks_key=True)
    own.release("one")

    assert own.take("two", "f", checks_key=True) != first


def test_a_resting_port_is_not_assigned_to_another_function_without_key_check() -> None:
    own, clock = ports(1)
    port = own.take("one", "f", checks_key=False)
    own.release("one")

    with pytest.raises(NoPort, match="rest for 60 s"):
        own.take("two", "g", checks_key=False)
    clock.now += REST_S

    assert own.take("two", "g", checks_key=False) == port


@pytest.mark.parametrize(("function", "checks_key"), [("f", False), ("g", True)])
def test_a_resting_port_is_assigned_to_a_worker_distinct_from_the_previous_one(function: str, checks_key: bool) -> None:
    own, _ = ports(1)
    port = own.take("one", "f", checks_key=False)
    own.release("one")

    assert own.take("two", function, checks_key=checks_key) == port


def test_an_assigned_port_is_not_assigned_again() -> None:
    own, _ = ports(1)
    own.take("one", "f", checks_key=True)

    with pytest.raises(NoPort):
        own.take("two", "f", checks_key=True)


def test_the_port_of_an_adopted_worker_is_not_assigned() -> None:
    first = free_port()
    own = Ports("127.0.0.1", f"{first}-{first}")
    own.hold("one", "f", first)

    with pytest.raises(NoPort):
        own.take("two", "f", checks_key=True)


def test_a_port_with_connections_in_time_wait_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first waits
        client.recv(1)
        client.close()

    assert bindable("127.0.0.1", port) == port


def test_a_listening_port_cannot_be_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert bindable("127.0.0.1", server.getsockname()[1]) == 0


def test_without_a_range_the_kernel_chooses() -> None:
    own = Ports("127.0.0.1", "")

    first, second = own.take("one", "f", checks_key=False), own.take("two", "g", checks_key=False)

    assert first != second
    assert first > 0
    assert second > 0
