"""Loads and unloads a model, and answers when it is ready or its worker has exited.

Only the scheduler decides: a load is an `ensure`, an unload a `cool`; both then wait for the result.
"""

import asyncio
import math
import time
from typing import Annotated

from msgspec import Meta, Struct

from cortex.functions.lifecycle import State
from cortex.functions.names import LONGEST, fault_in
from cortex.functions.spec import Engine, Function
from cortex.platform.agent.legacy.host_view import CANDLE, gpus
from cortex.platform.agent.loop import Agent
from cortex.platform.agent_messages import Ensure, Rejected
from cortex.platform.record import Failure, FailureKind, Instance
from cortex.platform.scheduling.placement import When

LOOK_S = 1.0
RETRY_AFTER_S = 5


class RequestError(Exception):
    """The request failed: HTTP status, reason, and seconds until a retry may help."""

    def __init__(self, status: int, why: str, retry_after: int | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.retry_after = status, why, retry_after


class Load(Struct, frozen=True):
    """Body of `POST /models/load`. `devices` must exist, but the scheduler selects the devices."""

    model_id: str
    harness: str
    quant: str | None = None
    tensor_parallel: Annotated[int, Meta(ge=1, le=1024)] | None = None
    devices: tuple[Annotated[int, Meta(ge=0)], ...] | None = None


async def load(agent: Agent, request: Load, within_s: float) -> None:
    """Return when the model is ready. Raises RequestError. The load continues if the client disconnects."""
    try:
        async with asyncio.timeout(within_s):
            await _until_ready(agent, request)
    except TimeoutError:
        raise RequestError(503, f"'{request.model_id}' was not ready after {within_s:g} s", RETRY_AFTER_S) from None


async def _until_ready(agent: Agent, request: Load) -> None:
    """Start the model and wait until it is ready:

    (1) It cannot be started, or not now: raise RequestError.
    (2) It is starting: wait.
    (3) It is ready: return.
    (4) Its start failed: raise RequestError.
    (5) It was drained at the same moment, or is started again: repeat the request.
    """
    while True:
        answer = await agent.ensure(Ensure(_function(agent, request)), unrecorded=True)
        if isinstance(answer, Rejected):  # (1)
            raise _rejection(request.model_id, answer)
        while (instance := agent.instance(answer.instance)) and instance.is_coming:  # (2)
            await agent.wait_for_change(LOOK_S)
        if instance and instance.state is State.READY:  # (3)
            return
        failure = next((f for f in agent.record().failures if f.instance == answer.instance), None)
        if failure and not agent.record().of(request.model_id):  # (4)
            raise _start_failure(failure)
        await agent.wait_for_change(LOOK_S)  # (5)


def _function(agent: Agent, request: Load) -> Function:
    """Return the function from the catalogue, a running instance or the request. Raises RequestError."""
    engine = _engine(request.harness, request.quant)
    if fault := fault_in(request.model_id):
        raise RequestError(422, f"model_id {fault}")
    devices = gpus(agent.record())
    for index in request.devices or ():
        if devices and index not in devices:
            indexes = ", ".join(map(str, devices))
            raise RequestError(400, f"devices: there is no device {index} on this host, only {indexes}")
    if declared := agent.scheduler.declaration(request.model_id):
        return declared
    for instance in agent.record().of(request.model_id):
        if running := agent.scheduler.function_of(instance.id):
            return running
    return Function(
        id=request.model_id, engine=engine, quant=request.quant or "", min_devices=request.tensor_parallel or 1
    )


def _engine(harness: str, quant: str | None) -> Engine:
    if harness == CANDLE:
        return Engine.LLAMACPP if quant else Engine.VLLM
    try:
        return Engine(harness)
    except ValueError:
        raise RequestError(400, f"unknown harness: {harness[:LONGEST]}") from None


def _rejection(model_id: str, rejected: Rejected) -> RequestError:
    """Return 503 with Retry-After if a retry may help, otherwise 422."""
    why = f"cannot load '{model_id}': {rejected.reason}"
    if rejected.when is When.NEVER:
        return RequestError(422, why)
    wait_s = max(1, math.ceil(rejected.retry_at - time.time())) if rejected.retry_at else RETRY_AFTER_S
    return RequestError(503, why, wait_s)


def _start_failure(failure: Failure) -> RequestError:
    why = f"cannot load '{failure.function}': {failure.reason}"
    return RequestError(503, why, RETRY_AFTER_S) if failure.kind is FailureKind.ROOM else RequestError(400, why)


async def unload(agent: Agent, model_id: str, within_s: float) -> None:
    """Return when the model's workers have exited. Raises RequestError."""
    if not model_id:
        raise RequestError(400, "missing model_id")
    leaving = {i.id for i in agent.record().instances if i.function == model_id}
    if not leaving:
        raise RequestError(404, f"model '{model_id[:LONGEST]}' not loaded on this neuron")
    await agent.cool(model_id)
    deadline = time.monotonic() + within_s
    while remaining := [i for i in agent.record().instances if i.id in leaving]:
        expired = time.monotonic() > deadline
        for instance in remaining:
            if instance.state is State.READY or expired:  # ready again: its drain was taken back
                raise _unload_failure(agent, instance)
        await agent.wait_for_change(LOOK_S)


def _unload_failure(agent: Agent, instance: Instance) -> RequestError:
    name = instance.function
    if agent.scheduler.in_flight(instance.id):
        return RequestError(404, f"cannot unload '{name}': inference still in flight")
    if instance.state in (State.READY, State.DRAINING):
        why = f"cannot unload '{name}': not every router has stopped using it"
    else:
        why = f"'{name}' is still {instance.state}"
    return RequestError(503, why, RETRY_AFTER_S)
