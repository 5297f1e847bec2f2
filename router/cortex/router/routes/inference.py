"""The inference routes: each reads its dialect into an Exchange."""

from collections.abc import Callable
from functools import partial

from cortex.functions.passing import Passing
from cortex.router.access.rate_limits import Share
from cortex.router.dialects import embeddings, engine, gate, rerank
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.ollama import embeddings as ollama_embeddings
from cortex.router.dialects.ollama import request as ollama
from cortex.router.dialects.ollama.answer import Form
from cortex.router.dispatch import Handler
from cortex.router.http_answer import Answering
from cortex.router.live_catalogue import Target
from cortex.router.request.call import Call
from cortex.router.request.capability_checks import check_dialect, check_route
from cortex.router.request.incoming import Incoming
from cortex.router.request.stored_responses import Plan, StoredResponses
from cortex.router.routes.counting import count_tokens
from cortex.router.routes.entrance import Serve
from cortex.router.routes.generation import CHAT, COMPLETIONS, GenerationReader, LoadReader
from cortex.router.routes.reader import JsonReader, Reading

Computed = embeddings.EmbeddingsRequest | rerank.RerankRequest | ollama_embeddings.EmbedRequest
COMPUTES: dict[Dialect, Callable[[bytes, Passing], Computed]] = {
    "embeddings": embeddings.read,
    "rerank": rerank.read,
    "ollama_embed": ollama_embeddings.read,
    "ollama_embeddings": ollama_embeddings.read_older,
}


class ComputationReader(JsonReader):
    """Reads a request with one JSON answer: embeddings, rerank. `path` is the worker's."""

    def __init__(
        self, reading: Reading, request: Incoming, kind: Dialect, body: bytes, share: Share, path: str
    ) -> None:
        super().__init__(reading, request, kind, body, share)
        self._path = path

    async def parse(self, target: Target) -> Call:
        """Read the request for a target."""
        check_dialect(target.function, self.kind, self.others)
        size, passing = len(self.body), self._reading.traits(target, self.kind).passing
        parsed: Computed = await self.intake.work(size, COMPUTES[self.kind], self.body, passing)
        return Call(
            dialect=self.kind,
            path=self._path,
            body=await self.intake.work(size, parsed.body, target.worker_model),
            reply=parsed,
            dropped=gate.header(parsed.dropped),
            cache_salt=self._reading.salts.of(target.function, self.caller),
            keep_s=self.keep_s(target),
        )


class EngineReader(JsonReader):
    """Reads a request for one of the engines' own routes."""

    def __init__(self, reading: Reading, request: Incoming, route: engine.Route, body: bytes, share: Share) -> None:
        super().__init__(reading, request, route.dialect, body, share)
        self._route = route

    async def model(self) -> str:
        """Return the name of the model, which these routes have in the path, in the query or in the body."""
        name = self.request.name or engine.model_in(self.request.query)
        name, self.body = await self.intake.work(len(self.body), engine.with_name, self.body, name)
        return name

    async def parse(self, target: Target) -> Call:
        """Read the request for a target."""
        route, reading = self._route, self._reading
        check_route(target.function, route.path, reading.ready(target))
        parsed = await self.intake.work(
            len(self.body), engine.read, route, self.body, lambda kind: reading.traits(target, kind)
        )
        return Call(
            dialect=route.dialect,
            path=route.path,
            body=parsed.body(target.worker_model),
            reply=parsed.answer(),
            streams=parsed.answer() if parsed.stream else None,
            dropped=gate.header(parsed.dropped),
            cache_salt=reading.salts.of(target.function, self.caller) if route.dialect == "infill" else "",
            keep_s=self.keep_s(target),
        )


def routes(reading: Reading, stored: StoredResponses) -> dict[str, Handler]:
    """Return the inference routes of a router, by path. All are POST."""
    entrance, intake = reading.entrance, reading.entrance.intake

    def handler_of(kind: Dialect, serve: Serve, *, costs_tokens: bool = True) -> Handler:
        """Return the handler that has a request's body read within its key's limits, and then served."""
        return partial(entrance.receive, kind, serve, costs_tokens=costs_tokens)

    def generation(kind: Dialect) -> Handler:
        return handler_of(
            kind, lambda request, body, share: GenerationReader(reading, request, kind, body, share).answer()
        )

    def computation(kind: Dialect, path: str) -> Handler:
        return handler_of(
            kind, lambda request, body, share: ComputationReader(reading, request, kind, body, share, path).answer()
        )

    def ollama_generation(kind: Dialect, form: Form) -> Handler:
        async def serve(request: Incoming, body: bytes, share: Share) -> Answering:
            if await intake.work(len(body), ollama.is_empty, body):
                return await LoadReader(reading, request, kind, body, share, form).answer()
            return await GenerationReader(reading, request, kind, body, share).answer()

        return handler_of(kind, serve)

    def own(route: engine.Route) -> Handler:
        return handler_of(
            route.dialect, lambda request, body, share: EngineReader(reading, request, route, body, share).answer()
        )

    async def responses(request: Incoming) -> Answering:
        """Serve a request of OpenAI's newer dialect, whose answer may be stored."""
        plan: Plan | None = None

        async def read(request: Incoming, body: bytes, share: Share) -> Answering:
            nonlocal plan
            plan = await stored.plan(request, body)
            if plan is None:
                return await GenerationReader(reading, request, "responses", body, share).answer()
            try:
                answering = await GenerationReader(reading, request, "responses", plan.body, share, plan).answer()
                if plan.state.background:
                    await stored.begin(plan)
            except BaseException:
                plan.held.release()
                raise
            return plan.held.release_after(answering)

        answering = await entrance.receive("responses", read, request)
        return answering if plan is None else stored.answering(plan, answering, request.id)

    return {
        CHAT: generation("chat"),
        COMPLETIONS: generation("completions"),
        "/v1/responses": responses,
        "/v1/messages": generation("messages"),
        "/v1/messages/count_tokens": handler_of("messages", partial(count_tokens, reading), costs_tokens=False),
        "/v1/embeddings": computation("embeddings", "/v1/embeddings"),
        "/v1/rerank": computation("rerank", "/v1/rerank"),
        "/v2/rerank": computation("rerank", "/v1/rerank"),  # of Cohere's clients
        "/api/chat": ollama_generation("ollama_chat", "chat"),
        "/api/generate": ollama_generation("ollama_generate", "generate"),
        "/api/embed": computation("ollama_embed", "/v1/embeddings"),
        "/api/embeddings": computation("ollama_embeddings", "/v1/embeddings"),
        **{path: own(route) for path, route in engine.ROUTES.items()},
    }
