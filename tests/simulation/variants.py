"""Deliberately broken variants of the product, each of which the simulation must find (`just simulate --variants`)."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

from msgspec.structs import replace

from cortex.functions.lifecycle import PARKED
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.fleet import Fleet
from cortex.platform.record import Instance
from cortex.platform.registry import RecordUnavailable
from cortex.platform.scheduling import parking, placement
from cortex.platform.scheduling.effects import Decision, Effect
from cortex.platform.workers.supervisor import Supervisor
from cortex.router.activation.activator import CLAIM_S, Activator
from cortex.router.fleet_view import FleetView
from tests.simulation import worker_session
from tests.simulation.processes import SimulatedAgent
from tests.simulation.virtual_time import replaced

LOSES_EVERY = 9
ACKNOWLEDGED = 2**53


@contextlib.asynccontextmanager
async def _claim_without_reading(self: Any, function: str) -> AsyncIterator[bool]:
    token = secrets.token_hex(8)
    if not await self._registry.claim(function, token, CLAIM_S):
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(RecordUnavailable):
            await self._registry.release(function, token)


def _no_reading_under_the_claim() -> list[tuple[Any, str, Any]]:
    return [(Activator, "_claim", _claim_without_reading)]


def _drain_without_acknowledgement() -> list[tuple[Any, str, Any]]:
    read = SimulatedAgent._read

    async def acknowledged(self: SimulatedAgent) -> Fleet | None:
        fleet = await read(self)
        if fleet is None:
            return None
        readings = {self.settings.host_name: ACKNOWLEDGED}
        return replace(fleet, routers={id: replace(r, seen=readings) for id, r in fleet.routers.items()})

    return [(SimulatedAgent, "_read", acknowledged)]


def _stale_record_trusted() -> list[tuple[Any, str, Any]]:
    return [
        (FleetView, "unsure", lambda _self, _instance: False),
        (worker_session.Fabric, "checks_keys", False),
    ]


def _start_without_a_record() -> list[tuple[Any, str, Any]]:
    ensure = SimulatedAgent.ensure

    async def unrecorded(self: SimulatedAgent, request: Ensure) -> Accepted | Rejected:
        return await ensure(self, request, unrecorded=True)

    return [(SimulatedAgent, "ensure", unrecorded)]


def _lost_effect() -> list[tuple[Any, str, Any]]:
    perform, number = Supervisor.perform, count(1)

    def sometimes(self: Supervisor, effect: Effect) -> None:
        if isinstance(effect, Decision) or next(number) % LOSES_EVERY:
            perform(self, effect)

    return [(Supervisor, "perform", sometimes)]


def _sleepers_hold_nothing() -> list[tuple[Any, str, Any]]:
    def admitted_mb(instance: Instance) -> int:
        return 0 if instance.state in PARKED else parking.admitted_mb(instance)

    return [(placement, "admitted_mb", admitted_mb)]


VARIANTS: dict[str, Callable[[], list[tuple[Any, str, Any]]]] = {
    "no reading under the claim": _no_reading_under_the_claim,
    "drain without acknowledgement": _drain_without_acknowledgement,
    "stale record trusted": _stale_record_trusted,
    "start without a record": _start_without_a_record,
    "lost effect": _lost_effect,
    "sleepers hold nothing": _sleepers_hold_nothing,
}


@contextlib.contextmanager
def broken(variant: str) -> Iterator[None]:
    """Run the product with one of its safeguards taken out; "" for none."""
    with replaced(VARIANTS[variant]() if variant else []):
        yield
