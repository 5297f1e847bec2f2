"""The hosts that an operator's request is about, and their agents' answers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from cortex.functions.names import nearest
from cortex.platform.record import HostRecord
from cortex.router.activation.agents import AgentRefused, AgentUnavailable
from cortex.router.errors import HostNotFound
from cortex.router.fleet_view import FleetView

T = TypeVar("T")


def hosts_of(view: FleetView, name: str) -> list[HostRecord]:
    """Return the host of a name; every host for "". Raises HostNotFound."""
    hosts = view.fleet.hosts
    if not name:
        return [hosts[h] for h in sorted(hosts)]
    if name not in hosts:
        raise HostNotFound(name, nearest(name, hosts))
    return [hosts[name]]


async def ask_all(
    hosts: Iterable[HostRecord], request: Callable[[HostRecord], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Query hosts concurrently; return their answers, and the errors of the others."""
    targets = list(hosts)
    results = await asyncio.gather(*(request(h) for h in targets), return_exceptions=True)
    answers: dict[str, T] = {}
    away: dict[str, str] = {}
    for host, result in zip(targets, results, strict=True):
        if isinstance(result, AgentUnavailable | AgentRefused):
            away[host.name] = str(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            answers[host.name] = result
    return answers, away
