"""A host with tiers, for tests of the scheduler: instances that are rehearsed, asleep or drained."""

from typing import Any

from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Function, Park
from cortex.platform.agent_messages import Accepted
from cortex.platform.record import HostRecord, Tier
from cortex.platform.scheduling import effects
from cortex.platform.scheduling.saved_state import LocalWeights
from tests.support import scheduling
from tests.support.factories import a_fleet, a_function, a_host, a_report
from tests.support.scheduling import (
    SchedulerDriver,
    a_scheduler,
    instance_of,
    look,
    states,
)

SLEEPS, FREEZES = {Tier.SLEEP: "", Tier.FREEZE: "no driver"}, {Tier.SLEEP: "", Tier.FREEZE: ""}
HERE = LocalWeights("/cache/weights", 2000)
F, G, H = (a_function(name, vram_mb=6000, args=("--asleep-mb=1500",)) for name in "fgh")
STOPS = replace(H, park=Park.STOP)
WIDE = a_function("wide", vram_mb=9500)


def a_tiered(tiers: dict[Tier, str] = SLEEPS, ram_mb: int = 20_000, **rest: Any) -> SchedulerDriver:
    """A scheduler of a host with one GPU of 10,000 MiB and tiers."""
    host: HostRecord = a_host(tiers=tiers, park_ram_mb=ram_mb)
    return a_scheduler(replace(host, **rest))


def bring_up(scheduler: SchedulerDriver, function: Function = F, instance: str = "one", now: float = 0.0) -> None:
    """Bring an instance with weights of 2,000 MiB as far as `ready`."""
    scheduling.bring_up(scheduler, function, instance, now, HERE)


def report(scheduler: SchedulerDriver, now: float, **rest: Any) -> None:
    """One router reports that it has seen every drain."""
    router = a_report(seen=scheduler.record().epoch, **rest)
    scheduler.reported(replace(a_fleet(router), at=now), now)


def ticks(scheduler: SchedulerDriver, begin: float, end: float) -> None:
    """Report every half second, and at the end: no stall."""
    while begin < end:
        report(scheduler, begin)
        begin += 0.5
    report(scheduler, end)


def drained(scheduler: SchedulerDriver, now: float) -> list[effects.Effect]:
    """Let the drains end; return the effects that follow."""
    report(scheduler, now)
    return look(scheduler, now)


def rehearse(scheduler: SchedulerDriver, instance: str, now: float, ram_mb: int = 3000) -> None:
    """Let an instance have its rehearsal: afterwards it is ready, and its engine holds RAM."""
    drained(scheduler, now)
    drained(scheduler, now)
    assert states(scheduler)[instance] is State.PARKING, instance_of(scheduler, instance)
    scheduler.parked(instance, Tier.SLEEP, now, device_mb=1500, ram_mb=ram_mb, took_s=14.6)
    scheduler.answered(instance, now)
    assert states(scheduler)[instance] is State.READY
    scheduler.take_effects()


def put_to_sleep(scheduler: SchedulerDriver, function: Function, instance: str, now: float) -> None:
    """Bring an instance up and park it."""
    bring_up(scheduler, function, instance, now)
    scheduler.cool(function.id, now + 1, park=True)
    drained(scheduler, now + 1)
    scheduler.parked(instance, Tier.SLEEP, now + 2, device_mb=1500, ram_mb=3000)
    assert states(scheduler)[instance] is State.SLEEPING
    scheduler.take_effects()


def evicting(tiers: dict[Tier, str] = SLEEPS, **rest: Any) -> SchedulerDriver:
    """At 100, `one` of F drains so that `two` of G fits."""
    scheduler = a_tiered(tiers, **rest)
    bring_up(scheduler)
    rehearse(scheduler, "one", 50.0)
    assert scheduler.ensure(G, HERE, "two", 100.0) == Accepted("two", State.PLACING)
    return scheduler
