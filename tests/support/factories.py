"""Factories of values for tests, with defaults for everything that a test does not set."""

from typing import Any

import tests.support  # noqa: F401  (makes property tests repeatable)
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.fleet import Fleet
from cortex.platform.record import Device, HostRecord, Instance, ProcessId, RouterReport, SavedContext
from cortex.platform.scheduling.placement import Need

HOST = "host-a"
ENGINES = {str(engine): "1" for engine in Engine}


def a_function(id: str = "org/model", *, engine: Engine = Engine.FAKE, **rest: Any) -> Function:
    """A declared function; 1000 MiB unless told otherwise."""
    return Function(id=id, engine=engine, **{"vram_mb": 1000, **rest})


def a_device(id: str = "gpu-0", total_mb: int = 10_000, *, kind: str = "gpu", **rest: Any) -> Device:
    """A device whose whole memory may be used."""
    return Device(id=id, name=id, kind=kind, total_mb=total_mb, **rest)


def an_instance(
    id: str = "one", *, function: str = "org/model", state: State = State.READY, ready: float = 0.0, **rest: Any
) -> Instance:
    """An instance on `gpu-0` that has been idle since `ready`."""
    values = {"revision": revision(a_function(function)), "devices": ("gpu-0",), "memory_mb": 1000, **rest}
    return Instance(id=id, function=function, state=state, since=ready, created=ready, ready=ready, **values)


def a_process(pid: int = 100) -> ProcessId:
    """A worker's process."""
    return ProcessId(boot="this-boot", pid=pid, ticks=4711)


def a_host(*instances: Instance, devices: tuple[Device, ...] | None = None, **rest: Any) -> HostRecord:
    """A host with every engine, and one GPU of 10000 MiB unless told otherwise."""
    values = {"engines": ENGINES, **rest}
    return HostRecord(
        name=HOST,
        address="http://host-a:13131",
        devices=(a_device(),) if devices is None else devices,
        instances=instances,
        **values,
    )


def a_need(memory_mb: int = 1000, *, function: str = "org/new", **rest: Any) -> Need:
    """What an instance of `org/new` needs."""
    return Need(function=function, engine="fake", memory_mb=memory_mb, **rest)


def a_report(id: str = "router-1", *, seen: int = 0, **rest: Any) -> RouterReport:
    """A router's report; `seen` is the epoch of `host-a` it has acknowledged."""
    return RouterReport(id=id, seen={HOST: seen}, **rest)


def a_saved_context(**rest: Any) -> SavedContext:
    """A saved conversation of `org/model` of 2000 tokens."""
    values = {
        "id": "0" * 16,
        "function": "org/model",
        "revision": "r1",
        "mark": "c1",
        "build": "llama-server b1",
        "model": "m1",
        "settings": "s1",
        "prompt_tokens": 1900,
        "tokens": 2000,
        "size": 1000,
        "digest": "",
        "at": 0.0,
        **rest,
    }
    return SavedContext(**values)


def a_fleet(*reports: RouterReport, used: dict[str, float] | None = None, cordoned: bool = False) -> Fleet:
    """A reading of the record with these routers in it."""
    return Fleet(
        routers={r.id: r for r in reports},
        used=used or {},
        cordoned=frozenset([HOST] if cordoned else []),
    )


def an_instance_on(id: str, device: str, memory_mb: int) -> Instance:
    """An instance of a function of its own, idle for long, on one device."""
    return an_instance(id, function=f"org/{id}", devices=(device,), memory_mb=memory_mb)
