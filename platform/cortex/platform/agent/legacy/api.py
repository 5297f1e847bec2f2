"""The agent API of the Rust system that cortex replaces, for its gateways and for scripts written against it.

Paths, shapes, status words and error texts are the same. Defects of that system are corrected in the same shapes: a
load of a loaded model succeeds, two concurrent loads are one start, an unload is answered after the worker has exited,
and readings exist from the first call. An error is `{"error": "<text>"}`. Rules:

- A gateway of that system treats any unknown status as `loaded`, and sends requests to what is `unloaded`. So a
  starting model is `loading`, and a leaving one is not listed.
- Only the scheduler decides. A load is an `ensure`, an unload a `cool`; both then wait for the result.
- Its `devices` are GPUs, never the CPU. Memory that cannot be measured is the memory reserved for instances.
"""

import asyncio
import math
import os
import platform
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp
from msgspec import Meta, Struct

from cortex.functions.lifecycle import LIVE, State
from cortex.functions.names import LONGEST, fault_in
from cortex.functions.spec import Engine, Function
from cortex.platform import clock
from cortex.platform.agent.host_name import name_taken
from cortex.platform.agent.legacy.proxy import Proxy
from cortex.platform.agent.loop import Agent
from cortex.platform.agent_messages import Ensure, Rejected
from cortex.platform.record import Device, Failure, FailureKind, HostRecord, Instance
from cortex.platform.scheduling.placement import When
from cortex.platform.settings import Settings

T = TypeVar("T")
Http = Request[Any, Any, Any]

CANDLE = "candle"
"""The only engine of that system: GGUF files and safetensors."""
LOOK_S = 1.0
STOPPED_WITHIN_S = 10.0
"""Time for a worker's end, in addition to the graces for requests in flight and for TERM."""
RETRY_AFTER_S = 5


class Load(Struct, frozen=True):
    """Body of `POST /models/load`. `devices` must exist, but the scheduler selects the devices."""

    model_id: str
    harness: str
    quant: str | None = None
    tensor_parallel: Annotated[int, Meta(ge=1, le=1024)] | None = None
    devices: tuple[Annotated[int, Meta(ge=0)], ...] | None = None


class Unload(Struct, frozen=True):
    """Body of `POST /models/unload`."""

    model_id: str = ""


class InferenceRequest(Struct, frozen=True):
    """The only field of an inference request that the agent reads."""

    model: str


class RequestError(Exception):
    """The request failed: HTTP status, reason, and seconds until a retry may help."""

    def __init__(self, status: int, why: str, retry_after: int | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.retry_after = status, why, retry_after


def routes(agent: Agent, proxy: Proxy, settings: Settings, has_token: Callable[[Http], bool]) -> Router:
    """Return the routes."""
    started = time.monotonic()
    scheme = "https" if settings.agent.tls_cert else "http"
    endpoint_url = f"{scheme}://localhost:{settings.agent.listen.rpartition(':')[2]}"

    @get("/health", opt={"needs": "nothing"})
    async def health(request: Http) -> dict[str, Any]:
        """Return whether the agent is healthy, and the memory of its devices; with the token, also its problems, name
        and models."""
        host, holder, now = agent.record(), agent.publisher.name_holder, clock.now()
        hung = silence(host, now)
        stuck = [f"{i.function}: {i.problem}" for i in host.instances if i.problem]
        problems = [*([f"nothing is published: {name_taken(holder)}"] if holder else []), *host.problems, *stuck]
        public = {
            "status": "degraded" if problems or hung else "ok",
            "uptime_secs": int(time.monotonic() - started),
            "devices": readings(host),
        }
        if not has_token(request):
            return {**public, "activation": activation(HostRecord(name="", address="", at=0.0))}
        return {
            **public,
            "host": host.name,
            "activation": activation(host),
            **({"problems": problems} if problems else {}),
            **hung,
        }

    @get("/discovery")
    async def discovery() -> dict[str, Any]:
        """Return the host's system, devices and engines."""
        reading = agent.reading()
        return describe_host(agent.record(), driver=reading.driver, cuda=reading.cuda)

    @get("/version")
    async def version() -> dict[str, Any]:
        """Return the version of cortex."""
        host = agent.record()
        return {
            "package_version": host.version,
            "git_sha": "unknown",  # releases are identified by their version
            "git_dirty": False,
            "features": sorted(host.engines),
            "python_version": platform.python_version(),
        }

    @get("/models")
    async def models() -> list[dict[str, Any]]:
        """List the models that are loaded or loading."""
        return list_models(agent.record(), agent.scheduler.function_of)

    @post("/models/load", status_code=200)
    async def load_model(request: Http) -> dict[str, str]:
        """Load a model; answer when it is ready."""
        # A start that takes too long has failed by then, with a reason that says more than a timeout.
        within_s = settings.agent.start_ceiling_s + STOPPED_WITHIN_S
        await load(agent, _read(await request.body(), Load), within_s)
        return {"status": "loaded"}

    @post("/models/unload", status_code=200)
    async def unload_model(request: Http) -> dict[str, str]:
        """Unload a model; answer when its worker has exited."""
        graces = settings.agent.drain_grace_s + settings.agent.stop_grace_s
        await unload(agent, _read(await request.body(), Unload).model_id, graces + STOPPED_WITHIN_S)
        return {"status": "unloaded"}

    @get("/models/{rest:path}")
    async def endpoint(request: Http, rest: str) -> dict[str, str]:
        """Return the URL of a loaded model, which is this agent's. A gateway replaces the loopback host by its own."""
        # The raw path: an id may contain slashes, encoded or not, also at its beginning.
        path = unquote_to_bytes(request.scope["raw_path"]).decode(errors="replace")
        model_id, _, what = path.removeprefix("/models/").rpartition("/")
        if what != "endpoint":
            raise RequestError(404, f"unknown path: /models{rest}")
        if agent.ready(model_id) is None:
            raise RequestError(404, f"model '{model_id[:LONGEST]}' not loaded on this neuron")
        return {"url": endpoint_url}

    @post(["/v1/chat/completions", "/v1/completions"], status_code=200)
    async def inference(request: Http) -> ASGIApp:
        """Forward a request to the worker of a loaded model, and stream its answer back."""
        body = await request.body()
        return proxy.exchange(_read(body, InferenceRequest).model, request.scope["path"], body)

    return Router(
        "/",
        route_handlers=[
            health, discovery, version, models, load_model, unload_model, endpoint, inference
        ],
        exception_handlers={RequestError: _error_response, HTTPException: _http_error},
        request_max_body_size=settings.gateway.max_body_mb * 1024 * 1024,
    )  # fmt: skip


# A host in that system's terms.


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


# Loading and unloading.


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
            await agent.changed(LOOK_S)
        if instance and instance.state is State.READY:  # (3)
            return
        failure = next((f for f in agent.record().failures if f.instance == answer.instance), None)
        if failure and not agent.record().of(request.model_id):  # (4)
            raise _start_failure(failure)
        await agent.changed(LOOK_S)  # (5)


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
    if declared := agent.scheduler.declared(request.model_id):
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
        await agent.changed(LOOK_S)


def _unload_failure(agent: Agent, instance: Instance) -> RequestError:
    name = instance.function
    if agent.scheduler.in_flight(instance.id):
        return RequestError(404, f"cannot unload '{name}': inference still in flight")
    if instance.state in (State.READY, State.DRAINING):
        why = f"cannot unload '{name}': not every router has stopped using it"
    else:
        why = f"'{name}' is still {instance.state}"
    return RequestError(503, why, RETRY_AFTER_S)


# Bodies and errors.


def _read(body: bytes, kind: type[T]) -> T:
    """Decode a body. Raises RequestError, which names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(422, f"the body is invalid: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from None


def _error_response(_: Http, error: RequestError) -> Response[dict[str, str]]:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    return Response({"error": error.why}, status_code=error.status, headers=headers)


def _http_error(_: Http, error: HTTPException) -> Response[dict[str, str]]:
    return Response({"error": error.detail}, status_code=error.status_code, headers=error.headers)
