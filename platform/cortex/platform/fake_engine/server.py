"""The fake engine's HTTP server: it paces and sends answers, and decides nothing.

A client that disconnects cancels its handler at once; an answer needs no other clean-up. Requests and bodies are never
logged.
"""

import asyncio
import hmac
import os
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import msgspec
from aiohttp import BodyPartReader, web

from cortex.platform.fake_engine import replay
from cortex.platform.fake_engine.engine import FakeEngine, Pace, step_pause_s
from cortex.platform.fake_engine.job import JOBS, Job
from cortex.platform.fake_engine.ledger import Entry
from cortex.platform.fake_engine.media import FORM_PATHS, MEDIA_JOBS, Form, form_job
from cortex.platform.fake_engine.outcome import Drop, Fail, Hang, Serve, is_last, is_over, outcome
from cortex.platform.fake_engine.request import PoolingRequest, ScoreRequest, TokenizeRequest, inputs
from cortex.platform.fake_engine.script import BadScript, Script
from cortex.platform.fake_engine.shapes import SHAPES
from cortex.platform.fake_engine.step import Step

OPEN_PATHS = frozenset({"/health", "/metrics"})
CONTROL_PATHS = frozenset({"/sleep", "/wake_up", "/is_sleeping"})
PATHS_WHILE_LOADING = OPEN_PATHS | {"/fake"}
BODY_LIMIT = 256 << 20  # images arrive inside JSON
CONTEXT = 32768
RETRY_AFTER_S = 1

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_changes = msgspec.json.Decoder(dict[str, object])
_tokenize = msgspec.json.Decoder(TokenizeRequest)
_score = msgspec.json.Decoder(ScoreRequest)
_pooling = msgspec.json.Decoder(PoolingRequest)


def create_app(engine: FakeEngine, key: str | None, control_key: str | None = None) -> web.Application:
    """Return the worker's application. With a `key`, all paths but OPEN_PATHS require it; with a `control_key`,
    CONTROL_PATHS require that one."""
    routes = Routes(engine, key, control_key)
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
            web.post("/score", routes.score),
            web.post("/pooling", routes.pooling),
            web.post("/sleep", routes.sleep),
            web.post("/wake_up", routes.wake_up),
            web.get("/is_sleeping", routes.is_sleeping),
            *(web.post(path, routes.infer) for path in (*JOBS, *MEDIA_JOBS)),
            *(web.post(path, routes.infer_form) for path in FORM_PATHS),
        ]
    )
    return app


class Routes:
    """The handlers for one engine."""

    def __init__(self, engine: FakeEngine, key: str | None, control_key: str | None = None) -> None:
        self._engine = engine
        self._key = key.encode() if key else None
        self._control_key = control_key.encode() if control_key else self._key
        self._moving = asyncio.Lock()
        self._moves: set[asyncio.Future[web.StreamResponse]] = set()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Reject requests without the key or before the engine is ready, and put errors into OpenAI's envelope."""
        if request.path not in OPEN_PATHS and not self._has_key(request):
            return failure(401, "Unauthorized", code="invalid_api_key")
        if request.path not in PATHS_WHILE_LOADING and not self._engine.ready:
            return failure(503, "Loading model", code="model_loading")
        try:
            return await handler(request)
        except (msgspec.MsgspecError, BadScript) as error:
            return failure(400, str(error), param=_field(str(error)))
        except web.HTTPException as error:
            return failure(error.status, error.reason)

    async def health(self, _: web.Request) -> web.StreamResponse:
        """Answer 200 when ready, 503 before and after the engine died; late or never, if scripted."""
        engine = self._engine
        await Pace(engine).wait(lambda script: script.slow_health_s)
        while engine.script.hang == "loading" and not engine.ready:
            await engine.script_changes()
        if not engine.ready:
            return reply({"status": "loading", "progress": engine.progress}, status=503)
        if engine.script.engine_dead:
            return reply({"status": "the engine has died"}, status=503)
        return reply({"status": "ok"})

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """Answer with a few gauges, under vLLM's names where vLLM has them."""
        engine = self._engine
        model = engine.model.replace("\\", r"\\").replace('"', r"\"")
        gauges = {
            "vllm:num_requests_running": engine.ledger.counts["running"],
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
            "fake:memory_mb": engine.memory_mb,
        }
        lines = [f'# TYPE {name} gauge\n{name}{{model_name="{model}"}} {value}\n' for name, value in gauges.items()]
        return web.Response(text="".join(lines))

    async def report(self, _: web.Request) -> web.StreamResponse:
        """Answer with the script, the counters and the last requests."""
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
                "memory_mb": engine.memory_mb,
                "asleep": engine.asleep,
                "moving": self._moving.locked(),
                "leaked_mb": engine.leaked_mb,
                "left_behind": engine.orphans,
            }
        )

    async def change(self, request: web.Request) -> web.StreamResponse:
        """Change options of the script."""
        self._engine.change(_changes.decode(await request.read()))
        return await self.report(request)

    async def start_over(self, request: web.Request) -> web.StreamResponse:
        """Change options of the initial script, and reset the counters."""
        self._engine.start_over(_changes.decode(await request.read()))
        return await self.report(request)

    async def models(self, _: web.Request) -> web.StreamResponse:
        """Answer with the model, or with the script's `wrong_model`."""
        script = self._engine.script
        return reply(SHAPES[script.shape].model_list(script.wrong_model or self._engine.model))

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """Answer with one token per word; its id is a checksum."""
        words = _tokenize.decode(await request.read()).words
        ids = [zlib.crc32(word.encode()) & 0xFFFF for word in words]
        return reply({"count": len(ids), "max_model_len": CONTEXT, "tokens": ids, "token_strs": words})

    async def score(self, request: web.Request) -> web.StreamResponse:
        """Answer with the share of words that each pair of texts has in common, in vLLM's form."""
        pairs = _score.decode(await request.read()).pairs
        data = [
            {"index": i, "object": "score", "score": len(one & other) / max(1, len(one | other))}
            for i, (one, other) in enumerate(pairs)
        ]
        return reply({"object": "list", "model": self._engine.model, "data": data, "usage": _usage_of(pairs)})

    async def pooling(self, request: web.Request) -> web.StreamResponse:
        """Answer with the lengths of each input's words, in vLLM's form."""
        texts = inputs(_pooling.decode(await request.read()).input)
        data = [
            {"index": i, "object": "pooling", "data": [float(len(w)) for w in words]} for i, words in enumerate(texts)
        ]
        return reply({"object": "list", "model": self._engine.model, "data": data, "usage": _usage_of(texts)})

    async def sleep(self, request: web.Request) -> web.StreamResponse:
        """Fall asleep as vLLM does, or fail as the script requests."""
        level, engine = request.query.get("level", "1"), self._engine
        if level not in ("1", "2"):
            return failure(400, "level: expected 1 or 2")

        async def fall_asleep() -> web.StreamResponse:
            await Pace(engine).wait(lambda script: script.sleep_s)
            if (refused := await self._fault(lambda script: script.on_sleep)) is not None:
                return refused
            engine.sleep()
            return reply({"status": "sleeping", "level": int(level)})

        return await self._move(fall_asleep())

    async def wake_up(self, _: web.Request) -> web.StreamResponse:
        """Wake up as vLLM does, or fail as the script requests."""
        engine = self._engine

        async def wake() -> web.StreamResponse:
            await Pace(engine).wait(lambda script: script.wake_s)
            if (refused := await self._fault(lambda script: script.on_wake)) is not None:
                return refused
            engine.wake(garbled=engine.script.on_wake == "garble")
            return reply({"status": "awake", "tags": None})

        return await self._move(wake())

    async def is_sleeping(self, _: web.Request) -> web.StreamResponse:
        """Answer whether it is asleep, after what is under way."""
        async with self._moving:
            return reply({"is_sleeping": self._engine.asleep})

    async def _move(self, work: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        """Fall asleep or wake up, one after the other. A client that leaves does not end it."""

        async def move() -> web.StreamResponse:
            async with self._moving:
                return await work

        task = asyncio.ensure_future(move())
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)
        return await asyncio.shield(task)

    async def _fault(self, scripted: Callable[[Script], str | None]) -> web.StreamResponse | None:
        """Hang, crash or return the refusal that the script requests; None: it requests none."""
        engine = self._engine
        while scripted(engine.script) == "hang":
            await engine.script_changes()
        if scripted(engine.script) == "crash":
            engine.crash(engine.script.crash_code)
        refuses = scripted(engine.script) == "refuse"
        return failure(500, "the engine refused", code="internal_error") if refuses else None

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """Serve a request, or let it fail as the script requests."""
        engine = self._engine
        body = await request.read()
        await engine.awake()
        job = (JOBS | MEDIA_JOBS)[request.path](body, engine.answering, engine.model)
        if engine.script.check_model and job.model != engine.model:
            return failure(404, f"The model `{job.model}` does not exist.", code="model_not_found")
        running = engine.ledger.opened(
            path=request.path,
            model=job.model,
            stream=job.stream,
            prompt_tokens=job.prompt_tokens,
            traceparent=request.headers.get("traceparent", ""),
        )
        with running as entry:
            engine.leak()
            response = await self._respond(request, job, entry)
        if entry.outcome == "finished" and is_last(engine.script, engine.ledger.served):
            engine.crash(engine.script.crash_code)
        return response

    async def infer_form(self, request: web.Request) -> web.StreamResponse:
        """Serve a form. Its request runs from the first byte, because a large form is most of its work."""
        engine = self._engine
        with engine.ledger.opened(path=request.path, model="", stream=False, prompt_tokens=0) as entry:
            form = Form()
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                assert isinstance(part, BodyPartReader)
                if part.filename is None:
                    form.fields[part.name or ""] = await part.text()
                    continue
                form.files.append(part.name or "")
                while data := await part.read_chunk(64 * 1024):
                    form.add(data)
                    entry.received += len(data)
            await engine.awake()
            job = form_job(request.path, form, engine.answering, engine.model)
            entry.model, entry.stream = job.model, job.stream
            response = await self._respond(request, job, entry)
        if entry.outcome == "finished" and is_last(engine.script, engine.ledger.served):
            engine.crash(engine.script.crash_code)
        return response

    async def _respond(self, request: web.Request, job: Job, entry: Entry) -> web.StreamResponse:
        engine = self._engine
        while isinstance(current := outcome(engine.script, entry.nth), Hang):
            await engine.script_changes()
        match current:
            case Drop():
                engine.ledger.fail(entry)
                return hang_up(request, web.StreamResponse())
            case Fail(status, message):
                engine.ledger.fail(entry)
                return failure(status, message, code="worker_error")
            case Serve():
                return await self._serve(request, job, entry, current)

    async def _serve(self, request: web.Request, job: Job, entry: Entry, limits: Serve) -> web.StreamResponse:
        """Send the answer at the script's pace, up to the limits of its outcome."""
        engine = self._engine
        shape = SHAPES[engine.script.shape]
        response = web.StreamResponse()
        response.headers["Content-Type"] = job.content_type or (
            shape.content_type if job.stream else "application/json"
        )
        if job.stream and shape.headers_first:
            await response.prepare(request)

        body = bytearray()
        pace = Pace(engine)
        await pace.wait(lambda script: script.ttft_s)
        for step in self._steps(job):
            await pace.wait(partial(step_pause_s, step))
            if is_over(limits.die_after, entry.tokens, step.tokens):
                engine.crash(engine.script.crash_code)
            if is_over(limits.cut_after, entry.tokens, step.tokens):
                engine.ledger.fail(entry)
                return hang_up(request, response)
            entry.tokens += step.tokens
            if not job.stream:
                body += step.data
                continue
            if not response.prepared:
                await response.prepare(request)
            await response.write(step.data)

        if not response.prepared:
            response.content_length = len(body)
            await response.prepare(request)
        await response.write_eof(bytes(body))
        return response

    def _steps(self, job: Job) -> Iterable[Step]:
        line = self._engine.next_line()
        if line is None:
            return job.steps
        return replay.stream(line) if job.stream else replay.whole(line)

    def _has_key(self, request: web.Request) -> bool:
        key = self._control_key if request.path in CONTROL_PATHS else self._key
        if key is None:
            return True
        authorization = request.headers.get("Authorization", "").encode()
        return hmac.compare_digest(authorization, b"Bearer " + key)


def reply(payload: object, *, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(body=msgspec.json.encode(payload), status=status, content_type="application/json")


def failure(status: int, message: str, *, code: str | None = None, param: str | None = None) -> web.Response:
    """Return an error in OpenAI's envelope, with all four keys."""
    kinds = {429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    response = reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status=status)
    if status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def _field(message: str) -> str | None:
    """Return the field that a message begins with, as in "voice: expected a name"."""
    name, colon, _ = message.partition(": ")
    return name if colon and name.isidentifier() else None


def hang_up(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection after the bytes written so far; aiohttp then fails to send the rest."""
    if request.transport is not None:
        request.transport.close()
    return response


def _usage_of(texts: Iterable[Iterable[object]]) -> dict[str, int]:
    words = sum(len([*words]) for words in texts)
    return {"prompt_tokens": words, "total_tokens": words}
