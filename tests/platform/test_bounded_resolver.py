"""A hung lookup fails after the time limit and uses one thread per name."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cortex.platform.bounded_resolver import Infos, bound

SHORT_S = 0.2


@pytest.fixture
def resolve() -> Iterator[Callable[..., Infos]]:
    """A resolver for which `hangs.test` blocks and every other name is this machine."""
    over = threading.Event()

    def look_up(host: str, *rest: Any) -> Infos:
        if host == "hangs.test":
            over.wait()
        return list(socket.getaddrinfo("127.0.0.1", *rest))

    yield look_up
    over.set()


def test_a_hung_lookup_fails_after_the_limit_and_the_next_one_at_once(
    resolve: Callable[..., Infos],
) -> None:
    getaddrinfo = bound(resolve, SHORT_S)
    before = threading.active_count()

    for _ in range(20):
        with pytest.raises(socket.gaierror, match=r"no answer to the lookup of hangs\.test"):
            getaddrinfo("hangs.test", 80)

    assert threading.active_count() == before + 1
    assert getaddrinfo("other.test", 80)[0][4] == ("127.0.0.1", 80)


def test_a_lookup_raises_the_resolvers_error() -> None:
    def refuse(*_: Any) -> Infos:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with pytest.raises(socket.gaierror, match="no such name"):
        bound(refuse, SHORT_S)("missing.test", 80)


def test_a_name_is_looked_up_again_after_a_hung_lookup_has_ended() -> None:
    over, late = threading.Event(), threading.Event()

    def look_up(*_: Any) -> Infos:
        over.wait()
        late.set()
        return [(0, 0, 0, "", ("127.0.0.1", 80))]

    getaddrinfo = bound(look_up, SHORT_S)
    with pytest.raises(socket.gaierror):
        getaddrinfo("slow.test", 80)
    over.set()
    late.wait()
    for thread in threading.enumerate():
        if thread.name == "look up slow.test":
            thread.join()

    assert getaddrinfo("slow.test", 80)[0][4] == ("127.0.0.1", 80)
