"""The decisions in `cortex:decisions`, with their reasons and inputs. Pure.

They never contain text of a prompt or an answer. The stream is capped: it explains, and does not count.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.fleet import Fleet, use
from cortex.platform.record import Device, HostRecord, Instance, Use
from cortex.platform.scheduling.effects import Decision
from cortex.platform.scheduling.reasons import DecisionKind

MOST_LISTED = 12
"""Devices or candidates in the inputs of one decision."""


class DecisionRecord(Struct, frozen=True, kw_only=True):
    """One decision."""

    id: str = ""
    """Its id in the stream."""
    at: float = 0.0
    by: str = ""
    """The actor: `agent:<host>`, `router:<id>`, or `operator`."""
    what: str = ""
    """A `DecisionKind` of an agent, or a `RouterDecision`."""
    function: str = ""
    instance: str = ""
    host: str = ""
    request: str = ""
    reason: str = ""
    """A drain's, as `reasons.py` has it."""
    why: str = ""
    inputs: dict[str, Any] = {}
    """What it was decided from, by kind."""


def to_fields(record: DecisionRecord) -> dict[str, str]:
    """Return a decision's fields in the stream, without empty ones."""
    flat = {
        "at": f"{record.at:.3f}",
        "by": record.by,
        "what": record.what,
        "function": record.function,
        "instance": record.instance,
        "host": record.host,
        "request": record.request,
        "reason": record.reason,
        "why": record.why,
        "inputs": msgspec.json.encode(record.inputs).decode() if record.inputs else "",
    }
    return {k: v for k, v in flat.items() if v}


def from_fields(id: str, entry: Mapping[str, str]) -> DecisionRecord:
    """Return a decision from its fields in the stream; invalid ones are empty."""
    try:
        inputs = msgspec.json.decode(entry.get("inputs", "{}"), type=dict[str, Any])
        at = float(entry.get("at", "0"))
    except (msgspec.MsgspecError, ValueError):
        inputs, at = {}, 0.0
    words = {k: entry.get(k, "") for k in ("by", "what", "function", "instance", "host", "request", "reason", "why")}
    return DecisionRecord(id=id, at=at, inputs=inputs, **words)


def inputs_of(decision: Decision, host: HostRecord, fleet: Fleet | None, now: float) -> dict[str, Any]:
    """Return the inputs of an agent's decision; `host` is its record right after it."""
    usage = use(fleet) if fleet else Use(known=False)
    instance = next((i for i in host.instances if i.id == decision.instance), None)
    match decision.what:
        case DecisionKind.PLACED if instance is not None:
            return {
                "memory_mb": instance.memory_mb,
                "memory_from": instance.memory_from,
                "waits_for": list(instance.waits_for),
                "devices": [_device(d, host, but=instance.id) for d in host.devices][:MOST_LISTED],
            }
        case DecisionKind.EVICTED | DecisionKind.CLOSED if instance is not None:
            return {"victim": _candidate(instance, usage, now), "others": _others(instance, host, usage, now)}
        case DecisionKind.REFUSED:
            busy = [_candidate(i, usage, now) for i in host.instances][:MOST_LISTED]
            details = {"devices": [_device(d, host) for d in host.devices][:MOST_LISTED], "instances": busy}
            return details | _place_in_line(decision.function, host, now)
        case DecisionKind.READY if instance is not None:
            return {"phases": instance.phases, "memory_mb": instance.memory_mb, "pid": instance.pid}
        case DecisionKind.DRAINING | DecisionKind.DRAIN_CANCELLED | DecisionKind.STOPPED if instance is not None:
            return _candidate(instance, usage, now)
        case DecisionKind.FAILED:
            failure = next((f for f in host.failures if f.instance == decision.instance), None)
            return {"kind": failure.kind, "in_a_row": failure.count, "retry_at": failure.retry_at} if failure else {}
    return {}


def _place_in_line(function: str, host: HostRecord, now: float) -> dict[str, Any]:
    """The position in line of a rejected function, and the latest time of its turn."""
    for position, place in enumerate(host.line, 1):
        if place.function == function:
            turn_in_s = round(max(0.0, place.turn_at - now), 1) if place.turn_at else None
            return {"in_line": position, "waited_s": round(now - place.since, 1), "turn_in_s": turn_in_s}
    return {}


def _device(device: Device, host: HostRecord, but: str = "") -> dict[str, Any]:
    admitted = sum(i.held_mb for i in host.instances if device.id in i.devices and i.id != but)
    free = max(0, device.budget_mb - admitted - device.foreign_mb)  # what leaves and what comes are both admitted
    return {"id": device.id, "budget_mb": device.budget_mb, "foreign_mb": device.foreign_mb, "free_mb": free}


def _candidate(instance: Instance, usage: Use, now: float) -> dict[str, Any]:
    return {
        "instance": instance.id,
        "function": instance.function,
        "state": str(instance.state),
        "memory_mb": instance.memory_mb,
        "in_flight": usage.in_flight.get(instance.id, 0) if usage.known else None,
        "idle_s": round(now - usage.last_used(instance), 1) if instance.ready else None,
        "pinned": instance.pinned,
        "priority": instance.priority,
    }


def _others(victim: Instance, host: HostRecord, usage: Use, now: float) -> list[dict[str, Any]]:
    """The ready instances on the same devices, without the victim."""
    stay = [
        i
        for i in host.instances
        if i.id != victim.id and i.state is State.READY and set(i.devices).intersection(victim.devices)
    ]
    return [_candidate(i, usage, now) for i in stay][:MOST_LISTED]
