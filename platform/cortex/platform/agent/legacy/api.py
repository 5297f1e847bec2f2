"""The agent API of the Rust system that cortex replaces, for its gateways and for scripts written against it.

Paths, shapes, status words and error texts are the same. Defects of that system are corrected in the same shapes: a
load of a loaded model succeeds, two concurrent loads are one start, an unload is answered after the worker has exited,
and readings exist from the first call. An error is `{"error": "<text>"}`. Rules:

- A gateway of that system treats any unknown status as `loaded`, and sends requests to what is `unloaded`. So a
  starting model is `loading`, and a leaving one is not listed.
- Its `devices` are GPUs, never the CPU. Memory that cannot be measured is the memory reserved for instances.
"""

import platform
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from litestar import Request, Response, Router, get, post
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.types import ASGIApp
from msgspec import Struct

from cortex.functions.names import LONGEST
from cortex.platform import clock
from cortex.platform.agent.host_name import name_taken
from cortex.platform.agent.legacy.host_view import activation, describe_host, list_models, readings, silence
from cortex.platform.agent.legacy.loading import Load, RequestError, load, unload
from cortex.platform.agent.legacy.proxy import Proxy
from cortex.platform.agent.loop import Agent
from cortex.platform.agent.routes.body import decode, read
from cortex.platform.record import HostRecord
from cortex.platform.settings import Settings

Http = Request[Any, Any, Any]

STOPPED_WITHIN_S = 10.0
"""Time for a worker's end, in addition to the graces for requests in flight and for TERM."""


class Unload(Struct, frozen=True):
    """Body of `POST /models/unload`."""

    model_id: str = ""


class InferenceRequest(Struct, frozen=True):
    """The only field of an inference request that the agent reads."""

    model: str


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
        await load(agent, await read(request, Load), within_s)
        return {"status": "loaded"}

    @post("/models/unload", status_code=200)
    async def unload_model(request: Http) -> dict[str, str]:
        """Unload a model; answer when its worker has exited."""
        graces = settings.agent.drain_grace_s + settings.agent.stop_grace_s
        await unload(agent, (await read(request, Unload)).model_id, graces + STOPPED_WITHIN_S)
        return {"status": "unloaded"}

    @get("/models/{rest:path}")
    async def endpoint(request: Http, rest: FromPath[str]) -> dict[str, str]:
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
        return proxy.exchange(decode(body, InferenceRequest).model, request.scope["path"], body)

    return Router(
        "/",
        route_handlers=[
            health, discovery, version, models, load_model, unload_model, endpoint, inference
        ],
        exception_handlers={RequestError: _error_response, HTTPException: _http_error},
        request_max_body_size=settings.gateway.max_body_mb * 1024 * 1024,
    )  # fmt: skip


# Errors.


def _error_response(_: Http, error: RequestError) -> Response[dict[str, str]]:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    return Response({"error": error.why}, status_code=error.status, headers=headers)


def _http_error(_: Http, error: HTTPException) -> Response[dict[str, str]]:
    return Response({"error": error.detail}, status_code=error.status_code, headers=error.headers)
