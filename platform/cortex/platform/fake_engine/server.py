"""The fake engine's HTTP: what a worker answers on its port. It paces and sends, and decides nothing.

A client that leaves cancels its handler at once, and that is all the clean-up an answer needs. There is no
access log, and nothing here ever logs a body.
"""

import hmac
import os
import zlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import msgspec
from aiohttp import web

from cortex.platform.fake_engine import replay
from cortex.platform.fake_engine.engine import FakeEngine, Pace, step_pause_s
from cortex.platform.fake_engine.job import JOBS, Job
from cortex.platform.fake_engine.ledger import Entry
from cortex.platform.fake_engine.outcome import Drop, Fail, Hang, Serve, is_last, is_over, outcome
from cortex.platform.fake_engine.request import TokenizeRequest
from cortex.platform.fake_engine.script import BadScript
from cortex.platform.fake_engine.shapes import SHAPES
from cortex.platform.fake_engine.step import Step

OPEN_PATHS = frozenset({"/health", "/metrics"})
PATHS_WHILE_LOADING = OPEN_PATHS | {"/fake"}
BODY_LIMIT = 256 << 20  # images arrive inside JSON
CONTEXT = 32768
RETRY_AFTER_S = 1

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_changes = msgspec.json.Decoder(dict[str, object])
_tokenize = msgspec.json.Decoder(TokenizeRequest)


def create_app(engine: FakeEngine, key: str | None) -> web.Application:
    """The worker's routes over `engine`, closed to all who lack `key` if there is one."""
    routes = Routes(engine, key)
    app = web.Application(middlewares=[routes.guard], client_max_size=BODY_LIMIT)
    app.add_routes(
        [
            web.get("/health", routes.health),
            web.get("/metrics", routes.metrics),
            web.get("/fake", routes.report),
            web.post("/fake", routes.change),
            web.put("/fake", routes.start_over),
            web.get("/v1/models", routes.models),
            web.post("/tokenize", routes.tokenize),
            *(web.post(path, routes.infer) for path in JOBS),
        ]
    )
    return app


class Routes:
    """The handlers. One instance serves one engine."""

    def __init__(self, engine: FakeEngine, key: str | None) -> None:
        self._engine = engine
        self._key = key.encode() if key else None

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keep out strangers and early callers, and give every error OpenAI's envelope."""
        if request.path not in OPEN_PATHS and not self._is_known(request):
            return failure(401, "Unauthorized", code="invalid_api_key")
        if request.path not in PATHS_WHILE_LOADING and not self._engine.ready:
            return failure(503, "Loading model", code="model_loading")
        try:
            return await handler(request)
        except (msgspec.MsgspecError, BadScript) as error:
            return failure(400, str(error))
        except web.HTTPException as error:
            return failure(error.status, error.reason)

    async def health(self, _: web.Request) -> web.StreamResponse:
        """200 when ready, 503 before that, late or never if scripted."""
        engine = self._engine
        await Pace(engine).wait(lambda script: script.slow_health_s)
        while engine.script.hang == "loading" and not engine.ready:
            await engine.script_changes()
        if not engine.ready:
            return reply({"status": "loading", "progress": engine.progress}, status=503)
        return reply({"status": "ok"})

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """A few gauges, where vLLM has them under vLLM's names."""
        engine = self._engine
        model = engine.model.replace("\\", r"\\").replace('"', r"\"")
        gauges = {
            "vllm:num_requests_running": engine.ledger.counts["running"],
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
            "fake:memory_mb": engine.script.memory_mb,
        }
        lines = [f'# TYPE {name} gauge\n{name}{{model_name="{model}"}} {value}\n' for name, value in gauges.items()]
        return web.Response(text="".join(lines))

    async def report(self, _: web.Request) -> web.StreamResponse:
        """The script, and what came of it."""
        engine = self._engine
        ledger = engine.ledger
        return reply(
            {
                "pid": os.getpid(),
                "model": engine.model,
                "state": "ready" if engine.ready else "loading",
                "progress": engine.progress,
                "script": engine.script,
                "started": ledger.started,
                "finished": ledger.counts["finished"],
                "aborted": ledger.counts["aborted"],
                "failed": ledger.counts["failed"],
                "in_flight": ledger.counts["running"],
                "requests": list(ledger.entries),
                "memory_mb": engine.script.memory_mb,
                "leaked_mb": engine.leaked_mb,
                "left_behind": engine.left_behind,
            }
        )

    async def change(self, request: web.Request) -> web.StreamResponse:
        """Change some of the script."""
        self._engine.change(_changes.decode(await request.read()))
        return await self.report(request)

    async def start_over(self, request: web.Request) -> web.StreamResponse:
        """Change some of the script of the start, and count from zero."""
        self._engine.start_over(_changes.decode(await request.read()))
        return await self.report(request)

    async def models(self, _: web.Request) -> web.StreamResponse:
        """The one model, by the name that the script says."""
        script = self._engine.script
        return reply(SHAPES[script.shape].model_list(script.wrong_model or self._engine.model))

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """A word is a token, its id a checksum."""
        words = _tokenize.decode(await request.read()).words
        ids = [zlib.crc32(word.encode()) & 0xFFFF for word in words]
        return reply({"count": len(ids), "max_model_len": CONTEXT, "tokens": ids, "token_strs": words})

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """Serve a request, or do to it whatever else outcome has in store."""
        engine = self._engine
        job = JOBS[request.path](await request.read(), engine.script, engine.model)
        if engine.script.check_model and job.model != engine.model:
            return failure(404, f"The model `{job.model}` does not exist.", code="model_not_found")
        opened = engine.ledger.opened(
            path=request.path,
            model=job.model,
            stream=job.stream,
            prompt_tokens=job.prompt_tokens,
            traceparent=request.headers.get("traceparent", ""),
        )
        with opened as entry:
            engine.leak()
            response = await self._meet_fate(request, job, entry)
        if entry.outcome == "finished" and is_last(engine.script, engine.ledger.served):
            engine.crash(engine.script.crash_code)
        return response

    async def _meet_fate(self, request: web.Request, job: Job, entry: Entry) -> web.StreamResponse:
        engine = self._engine
        while isinstance(met := outcome(engine.script, entry.nth), Hang):
            await engine.script_changes()
        match met:
            case Drop():
                engine.ledger.fail(entry)
                return hang_up(request, web.StreamResponse())
            case Fail(status):
                engine.ledger.fail(entry)
                return failure(status, "The script says so.", code="worker_error")
            case Serve():
                return await self._serve(request, job, entry, met)

    async def _serve(self, request: web.Request, job: Job, entry: Entry, fated: Serve) -> web.StreamResponse:
        """Send the answer at the script's pace, as far as it is fated to get."""
        engine = self._engine
        shape = SHAPES[engine.script.shape]
        response = web.StreamResponse()
        response.headers["Content-Type"] = shape.content_type if job.stream else "application/json"
        if job.stream and shape.headers_first:
            await response.prepare(request)

        kept = bytearray()
        pace = Pace(engine)
        await pace.wait(lambda script: script.ttft_s)
        for step in self._steps(job):
            await pace.wait(partial(step_pause_s, step))
            if is_over(fated.die_after, entry.tokens, step.tokens):
                engine.crash(engine.script.crash_code)
            if is_over(fated.cut_after, entry.tokens, step.tokens):
                engine.ledger.fail(entry)
                return hang_up(request, response)
            entry.tokens += step.tokens
            if not job.stream:
                kept += step.data
                continue
            if not response.prepared:
                await response.prepare(request)
            await response.write(step.data)

        if not response.prepared:
            response.content_length = len(kept)
            await response.prepare(request)
        await response.write_eof(bytes(kept))
        return response

    def _steps(self, job: Job) -> Iterable[Step]:
        line = self._engine.next_line()
        if line is None:
            return job.steps
        return replay.stream(line) if job.stream else replay.whole(line)

    def _is_known(self, request: web.Request) -> bool:
        if self._key is None:
            return True
        given = request.headers.get("Authorization", "").encode()
        return hmac.compare_digest(given, b"Bearer " + self._key)


def reply(payload: object, *, status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(body=msgspec.json.encode(payload), status=status, content_type="application/json")


def failure(status: int, message: str, *, code: str | None = None) -> web.Response:
    """An error in OpenAI's envelope, with all four of its keys."""
    kinds = {429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    response = reply({"error": {"message": message, "type": kind, "param": None, "code": code}}, status=status)
    if status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def hang_up(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection once what was written is out; aiohttp then finds that it cannot send the rest."""
    if request.transport is not None:
        request.transport.close()
    return response
