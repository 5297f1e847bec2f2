"""A host in the terms of the Rust system: its GPUs, engines and models."""

import os
from collections.abc import Callable
from typing import Any

from cortex.functions.lifecycle import LIVE, State
from cortex.functions.spec import Engine, Function
from cortex.platform.record import Device, FailureKind, HostRecord, Instance

CANDLE = "candle"
"""The only engine of that system: GGUF files and safetensors."""


def gpus(host: HostRecord) -> dict[int, Device]:
    """Return the GPUs by index, or by position in the record if some have no index."""
    devices = [d for d in host.devices if d.kind == "gpu"]
    by_index = {d.index: d for d in devices if d.index is not None}
    return dict(sorted(by_index.items())) if len(by_index) == len(devices) else dict(enumerate(devices))


def readings(host: HostRecord) -> list[dict[str, int]]:
    """Return the memory of each GPU; the memory reserved for instances if the hardware reports none."""
    entries = []
    for index, device in gpus(host).items():
        reserved = device.foreign_mb + sum(i.memory_mb for i in host.instances if device.id in i.devices)
        used = reserved if device.used_mb is None else device.used_mb
        entries.append(
            {
                "index": index,
                "vram_used_mb": used,
                "vram_free_mb": max(0, device.total_mb - used),
                "utilization_pct": device.utilization_pct or 0,  # clients expect numbers
                "temp_c": device.temp_c or 0,
            }
        )
    return entries


def silence(host: HostRecord, now: float) -> dict[str, dict[str, float]]:
    """Return the field for paths that do not answer, with the seconds since. It is absent if all answer, since that
    system does not have it."""
    return {"silent": {path: round(now - since, 1) for path, since in host.silent.items()}} if host.silent else {}


def activation(host: HostRecord) -> dict[str, Any]:
    """Return the models that are starting, ready or failed, each in one list only.

    The state is always `ready`: it describes what an agent loads by itself at startup, which is nothing.
    """
    up = dict.fromkeys(i.function for i in host.instances if i.state is State.READY)
    # A starting model precedes those that wait for weights or room; then by age.
    coming = sorted(
        (i for i in host.instances if i.is_coming), key=lambda i: (i.state is not State.STARTING, i.created)
    )
    first, *others = [*dict.fromkeys(i.function for i in coming if i.function not in up), None]
    failed = [
        {"model_id": f.function, "error": f.reason}
        for f in host.failures
        if f.kind is not FailureKind.CANCELLED and not host.of(f.function)
    ]
    return {
        "state": "ready",
        "pending": [name for name in others if name],
        "in_progress": first,
        "completed": list(up),
        "failed": failed,
    }


def describe_host(host: HostRecord, *, driver: str = "", cuda: str = "") -> dict[str, Any]:
    """Return the host's names, versions, GPUs and engines."""
    system = os.uname()
    candle = [CANDLE] if {Engine.LLAMACPP, Engine.VLLM} & host.engines.keys() else []
    return {
        "hostname": system.nodename,
        "os": system.sysname,
        "kernel": system.release,
        "cuda_version": cuda or None,
        "driver_version": driver or None,
        "devices": [
            {
                "index": index,
                "name": device.name,
                "vram_total_mb": device.total_mb,
                "compute_capability": device.compute_capability,
            }
            for index, device in gpus(host).items()
        ],
        "harnesses": [*candle, *sorted(host.engines)],
    }


def list_models(host: HostRecord, function_of: Callable[[str], Function | None]) -> list[dict[str, Any]]:
    """Return the models that are loaded or loading, each once."""
    by_model: dict[str, Instance] = {}
    for instance in host.instances:
        if instance.state in LIVE and (instance.function not in by_model or instance.state is State.READY):
            by_model[instance.function] = instance
    index = {device.id: n for n, device in gpus(host).items()}
    entries = []
    for model_id, instance in by_model.items():
        function = function_of(instance.id)
        devices = sorted(index[d] for d in instance.devices if d in index)
        used = instance.memory_mb * len(devices) if instance.used_mb is None else instance.used_mb
        entries.append(
            {
                "id": model_id,
                "harness": str(function.engine) if function else CANDLE,
                "status": "loaded" if instance.state is State.READY else "loading",
                "devices": devices,
                "vram_used_mb": used if devices else None,
            }
        )
    return entries
