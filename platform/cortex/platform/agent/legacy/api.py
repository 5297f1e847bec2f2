"""The agent API of the Rust system that cortex replaces, for its gateways and for scripts written against it.

The same paths, shapes, status words and error texts. Where that system was wrong, the right thing in the same
shape: loading what is loaded succeeds, two loads at once are one start, an unload is answered when the worker
is gone, readings are there from the first call. An error is `{"error": "<text>"}`. What keeps it right:

- A gateway of that system takes every status it does not know for `loaded`, and sends requests to what is
  `unloaded`. So what is coming up is `loading`, and what is leaving is not listed.
- Only the scheduler decides. A load is an `ensure`, an unload a `cool`; both then wait for what becomes of it.
- Its `devices` are GPUs. A CPU is none, and memory nobody can measure is what was promised to instances.
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

from cortex.functions.lifecycle import COMING, LIVE, State
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
"""The one engine of that system: GGUF files and safetensors."""
LOOK_S = 1.0
STOPPED_WITHIN_S = 10.0
"""What is allowed for a worker's end, beyond the graces for requests in flight and for TERM."""
RETRY_AFTER_S = 5


class Load(Struct, frozen=True):
    """Body of `POST /models/load`. `devices` must be there, but where it goes is decided by what is free."""

    model_id: str
    harness: str
    quant: str | None = None
    tensor_parallel: Annotated[int, Meta(ge=1, le=1024)] | None = None
    devices: tuple[Annotated[int, Meta(ge=0)], ...] | None = None


class Unload(Struct, frozen=True):
    """Body of `POST /models/unload`."""

    model_id: str = ""


class Ask(Struct, frozen=True):
    """What has to be known of a request for a model."""

    model: str


class NotDone(Exception):
    """The answer is no, with a status and one line that says why."""

    def __init__(self, status: int, why: str, retry_after: int | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.retry_after = status, why, retry_after


def routes(agent: Agent, relay: Proxy, settings: Settings, has_token: Callable[[Http], bool]) -> Router:
    """Return the routes."""
    born = time.monotonic()
    scheme = "https" if settings.agent.tls_cert else "http"
    endpoint_url = f"{scheme}://localhost:{settings.agent.listen.rpartition(':')[2]}"

    @get("/health", opt={"needs": "nothing"})
    async def health(request: Http) -> dict[str, Any]:
        """Say whether the agent is well and what its devices hold; with the token, also what is wrong, its name and its
        models."""
        host, holder, now = agent.record(), agent.publisher.name_holder, clock.now()
        hung = silence(host, now)
        stuck = [f"{i.function}: {i.problem}" for i in host.instances if i.problem]
        problems = [*([f"nothing is published: {name_taken(holder)}"] if holder else []), *host.problems, *stuck]
        well = not (problems or hung)
        shown = {
            "status": "ok" if well else "degraded",
            "uptime_secs": int(time.monotonic() - born),
            "devices": readings(host),
        }
        if not has_token(request):
            return {**shown, "activation": activation(HostRecord(name="", address="", at=0.0))}
        return {
            **shown,
            "host": host.name,
            "activation": activation(host),
            **({"problems": problems} if problems else {}),
            **hung,
        }

    @get("/discovery")
    async def discovery() -> dict[str, Any]:
        """Say what this host is made of."""
        reading = agent.reading()
        return discovered(agent.record(), driver=reading.driver, cuda=reading.cuda)

    @get("/version")
    async def version() -> dict[str, Any]:
        """Say which cortex this is."""
        host = agent.record()
        return {
            "package_version": host.version,
            "git_sha": "unknown",  # a release is known by its version
            "git_dirty": False,
            "features": sorted(host.engines),
            "python_version": platform.python_version(),
        }

    @get("/models")
    async def models() -> list[dict[str, Any]]:
        """List the models that are loaded or loading."""
        return listed(agent.record(), agent.scheduler.function_of)

    @post("/models/load", status_code=200)
    async def load_model(request: Http) -> dict[str, str]:
        """Load a model; answered when it is ready."""
        # A start that takes too long has failed by then, which says more than a clock that ran out.
        within_s = settings.agent.start_ceiling_s + STOPPED_WITHIN_S
        await load(agent, _read(await request.body(), Load), within_s)
        return {"status": "loaded"}

    @post("/models/unload", status_code=200)
    async def unload_model(request: Http) -> dict[str, str]:
        """Unload a model; answered when its worker is gone."""
        graces = settings.agent.drain_grace_s + settings.agent.stop_grace_s
        await unload(agent, _read(await request.body(), Unload).model_id, graces + STOPPED_WITHIN_S)
        return {"status": "unloaded"}

    @get("/models/{rest:path}")
    async def endpoint(request: Http, rest: str) -> dict[str, str]:
        """Say where a loaded model is served: here. A gateway replaces the loopback host by the one it knows."""
        # The raw path: an id may hold slashes, encoded or not, also at its beginning.
        path = unquote_to_bytes(request.scope["raw_path"]).decode(errors="replace")
        model_id, _, what = path.removeprefix("/models/").rpartition("/")
        if what != "endpoint":
            raise NotDone(404, f"there is nothing at /models{rest}")
        if agent.ready(model_id) is None:
            raise NotDone(404, f"model '{model_id[:LONGEST]}' not loaded on this neuron")
        return {"url": endpoint_url}

    @post(["/v1/chat/completions", "/v1/completions"], status_code=200)
    async def inference(request: Http) -> ASGIApp:
        """Pass a request on to the worker of a loaded model, and its answer back as it comes."""
        body = await request.body()
        return relay.exchange(_read(body, Ask).model, request.scope["path"], body)

    return Router(
        "/",
        route_handlers=[
            health, discovery, version, models, load_model, unload_model, endpoint, inference
        ],
        exception_handlers={NotDone: _refused, HTTPException: _http_error},
        request_max_body_size=settings.gateway.max_body_mb * 1024 * 1024,
    )  # fmt: skip


# What a host looks like in that system's words.


def gpus(host: HostRecord) -> dict[int, Device]:
    """Return the GPUs by their indexes, or by their places in the record where some have none of their own."""
    found = [d for d in host.devices if d.kind == "gpu"]
    own = {d.index: d for d in found if d.index is not None}
    return dict(sorted(own.items())) if len(own) == len(found) else dict(enumerate(found))


def readings(host: HostRecord) -> list[dict[str, int]]:
    """Return what each GPU holds; what no hardware reports is what instances were promised."""
    found = []
    for index, device in gpus(host).items():
        promised = device.foreign_mb + sum(i.memory_mb for i in host.instances if device.id in i.devices)
        used = promised if device.used_mb is None else device.used_mb
        found.append(
            {
                "index": index,
                "vram_used_mb": used,
                "vram_free_mb": max(0, device.total_mb - used),
                "utilization_pct": device.utilization_pct or 0,  # its readers know numbers only
                "temp_c": device.temp_c or 0,
            }
        )
    return found


def silence(host: HostRecord, now: float) -> dict[str, dict[str, float]]:
    """Return the paths that do not answer, with the seconds since; nothing while all do: that system knows no such
    field."""
    return {"silent": {path: round(now - since, 1) for path, since in host.silent.items()}} if host.silent else {}


def activation(host: HostRecord) -> dict[str, Any]:
    """Return which models come up, are up or failed; each is in one place only.

    The state is always `ready`: it speaks of what an agent loads by itself at its start, which is nothing.
    """
    up = dict.fromkeys(i.function for i in host.instances if i.state is State.READY)
    # One that starts goes before one that waits for its weights or for room; then first come, first named.
    coming = sorted(
        (i for i in host.instances if i.state in COMING), key=lambda i: (i.state is not State.STARTING, i.created)
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


def discovered(host: HostRecord, *, driver: str = "", cuda: str = "") -> dict[str, Any]:
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


def listed(host: HostRecord, function_of: Callable[[str], Function | None]) -> list[dict[str, Any]]:
    """Return the models that are loaded or loading, each once."""
    shown: dict[str, Instance] = {}
    for instance in host.instances:
        if instance.state in LIVE and (instance.function not in shown or instance.state is State.READY):
            shown[instance.function] = instance
    index = {device.id: n for n, device in gpus(host).items()}
    entries = []
    for model_id, instance in shown.items():
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


async def load(agent: Agent, asked: Load, within_s: float) -> None:
    """Return once the model is ready. Raises NotDone. Nobody's leaving ends the load: it is the agent's."""
    try:
        async with asyncio.timeout(within_s):
            await _loaded(agent, asked)
    except TimeoutError:
        raise NotDone(503, f"'{asked.model_id}' was not ready after {within_s:g} s", RETRY_AFTER_S) from None


async def _loaded(agent: Agent, asked: Load) -> None:
    """See the model through to ready:

    (1) it cannot be started, or not now;
    (2) it is on its way: wait;
    (3) it is ready;
    (4) its start failed;
    (5) it was let go in the same moment, or is started once more: ask again.
    """
    while True:
        going = await agent.ensure(Ensure(_wanted(agent, asked)))
        if isinstance(going, Rejected):  # (1)
            raise _refusal(asked.model_id, going)
        while (instance := agent.instance(going.instance)) and instance.state in COMING:  # (2)
            await agent.changed(LOOK_S)
        if instance and instance.state is State.READY:  # (3)
            return
        failure = next((f for f in agent.record().failures if f.instance == going.instance), None)
        if failure and not agent.record().of(asked.model_id):  # (4)
            raise _failed(failure)
        await agent.changed(LOOK_S)  # (5)


def _wanted(agent: Agent, asked: Load) -> Function:
    """Return what to load: as the catalogue declares it, as it runs already, else as asked. Raises NotDone."""
    engine = _engine(asked.harness, asked.quant)
    if fault := fault_in(asked.model_id):
        raise NotDone(422, f"model_id {fault}")
    here = gpus(agent.record())
    for index in asked.devices or ():
        if here and index not in here:
            known = ", ".join(map(str, here))
            raise NotDone(400, f"devices: there is no device {index} on this host, only {known}")
    if declared := agent.scheduler.declared(asked.model_id):
        return declared
    for instance in agent.record().of(asked.model_id):
        if running := agent.scheduler.function_of(instance.id):
            return running
    return Function(id=asked.model_id, engine=engine, quant=asked.quant or "", min_devices=asked.tensor_parallel or 1)


def _engine(harness: str, quant: str | None) -> Engine:
    if harness == CANDLE:
        return Engine.LLAMACPP if quant else Engine.VLLM
    try:
        return Engine(harness)
    except ValueError:
        raise NotDone(400, f"unknown harness: {harness[:LONGEST]}") from None


def _refusal(model_id: str, refused: Rejected) -> NotDone:
    """Waiting helps or it does not: 503 with Retry-After, or 422."""
    why = f"cannot load '{model_id}': {refused.reason}"
    if refused.when is When.NEVER:
        return NotDone(422, why)
    wait_s = max(1, math.ceil(refused.retry_at - time.time())) if refused.retry_at else RETRY_AFTER_S
    return NotDone(503, why, wait_s)


def _failed(failure: Failure) -> NotDone:
    why = f"cannot load '{failure.function}': {failure.reason}"
    return NotDone(503, why, RETRY_AFTER_S) if failure.kind is FailureKind.ROOM else NotDone(400, why)


async def unload(agent: Agent, model_id: str, within_s: float) -> None:
    """Return once no worker of the model is left. Raises NotDone."""
    if not model_id:
        raise NotDone(400, "missing model_id")
    leaving = {i.id for i in agent.record().instances if i.function == model_id}
    if not leaving:
        raise NotDone(404, f"model '{model_id[:LONGEST]}' not loaded on this neuron")
    await agent.cool(model_id)
    deadline = time.monotonic() + within_s
    while here := [i for i in agent.record().instances if i.id in leaving]:
        over = time.monotonic() > deadline
        for instance in here:
            if instance.state is State.READY or over:  # it serves on: the grace is over
                raise _kept(agent, instance)
        await agent.changed(LOOK_S)


def _kept(agent: Agent, instance: Instance) -> NotDone:
    name = instance.function
    if agent.scheduler.in_flight(instance.id):
        return NotDone(404, f"cannot unload '{name}': inference still in flight")
    if instance.state in (State.READY, State.DRAINING):
        why = f"cannot unload '{name}': not every router has stopped using it"
    else:
        why = f"'{name}' is still {instance.state}"
    return NotDone(503, why, RETRY_AFTER_S)


# In and out.


def _read(body: bytes, kind: type[T]) -> T:
    """Decode a body. Raises NotDone that names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise NotDone(422, f"the body is not right: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotDone(400, f"the body is not valid JSON: {error}") from None


def _refused(_: Http, error: NotDone) -> Response[dict[str, str]]:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    return Response({"error": error.why}, status_code=error.status, headers=headers)


def _http_error(_: Http, error: HTTPException) -> Response[dict[str, str]]:
    return Response({"error": error.detail}, status_code=error.status_code, headers=error.headers)
