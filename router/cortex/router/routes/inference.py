"""The inference routes: each parses its dialect and creates an Exchange."""

import time
from collections.abc import Callable
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.passing import Passing
from cortex.functions.servers import server_of
from cortex.platform.api_keys import ANONYMOUS
from cortex.router.access.rate_limits import Share
from cortex.router.activation.load_balancing import affinity, choose
from cortex.router.dialects import dialect, embeddings, engine, gate, native, rerank
from cortex.router.dialects.chat import stream
from cortex.router.dialects.core import limits, wire
from cortex.router.dialects.core.errors import OLLAMA, Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.dialects.ollama import embeddings as ollama_embeddings
from cortex.router.dialects.ollama import request as ollama
from cortex.router.dialects.ollama.answer import Form, Ready
from cortex.router.dialects.ollama.models import untagged
from cortex.router.dialects.responses import request as responses
from cortex.router.dispatch import Handler
from cortex.router.live_catalogue import Target
from cortex.router.request.call import Call
from cortex.router.request.capability_checks import check_dialect, check_route
from cortex.router.request.context_window import fitting
from cortex.router.request.http_answer import Answering, json_answer
from cortex.router.request.incoming import Incoming, unique_id
from cortex.router.request.keep_alive import HEADER, keep_s
from cortex.router.request.model_traits import TraitsCache
from cortex.router.request.prompt_cache import CacheSalts
from cortex.router.request.remote_images import RemoteImages
from cortex.router.request.request_record import COUNT_TOKENS, RequestRecord
from cortex.router.request.stored_responses import Plan, StoredResponses
from cortex.router.request.substitutes import conversation_of
from cortex.router.request.token_count import Count, TokenCount
from cortex.router.request.tokenizer import Tokenizer
from cortex.router.routes.entrance import Entrance

Computed = embeddings.EmbeddingsRequest | rerank.RerankRequest | ollama_embeddings.EmbedRequest
COMPUTES: dict[Dialect, Callable[[bytes, Passing], Computed]] = {
    "embeddings": embeddings.read,
    "rerank": rerank.read,
    "ollama_embed": ollama_embeddings.read,
    "ollama_embeddings": ollama_embeddings.read_older,
}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class _Peek(Struct, frozen=True):
    """The part of a body that routing needs before the function is resolved."""

    model: str
    keep_alive: float | str | None = None


def routes(entrance: Entrance, images: RemoteImages, salts: CacheSalts, stored: StoredResponses) -> dict[str, Handler]:
    """Return the inference routes of a router, by path. All are POST."""
    exchanges, intake = entrance.exchanges, entrance.intake
    receive, exchange_of = entrance.receive, entrance.exchange_of
    traits_cache, tokenizer = TraitsCache(), Tokenizer(exchanges.upstream)
    catalogue, view, in_flight = exchanges.catalogue, exchanges.view, exchanges.admission.in_flight

    def traits(target: Target, kind: Dialect) -> Traits:
        function = target.function
        return traits_cache.of(
            function, kind, view.profile(target.base.id), view.ready(target.base.id, target.revision)
        )

    async def serve_generation(request: Incoming, kind: Dialect) -> Answering:
        """Serve a request with a worker's chat or completions endpoint."""
        return await receive(request, kind, lambda body, share: generation(request, kind, body, share))

    async def serve_computation(request: Incoming, kind: Dialect, path: str) -> Answering:
        """Serve a request with one JSON answer: embeddings, rerank."""
        return await receive(request, kind, lambda body, share: computation(request, kind, path, body, share))

    async def peek(kind: Dialect, body: bytes) -> _Peek:
        """Return what routing needs of a body."""
        routing = await intake.work(len(body), _peek, body)
        if kind in OLLAMA and catalogue.get(routing.model) is None:
            return replace(routing, model=untagged(routing.model))
        return routing

    async def generation(
        request: Incoming, kind: Dialect, body: bytes, share: Share, plan: Plan | None = None
    ) -> Answering:
        started = time.monotonic()
        routing = await peek(kind, body)
        name = routing.model
        who = request.caller
        target = catalogue.resolve_for(name, who)
        unique, created, headers = plan.unique if plan else unique_id(), int(time.time()), request.headers

        async def parse(target: Target) -> Call:
            """Parse the request for a target."""
            function = target.function
            check_dialect(function, kind, catalogue.usable(who))
            content = await images.inlined(body) if function.remote_images else body
            able = traits(target, kind)
            salt = salts.of(function, who)
            native_dialect = None if plan else native.native_dialect(function, kind, cache_is_shared=not salt)

            def translate() -> tuple[dialect.ParsedRequest, bytes]:
                parsed = (
                    dialect.read_request(kind, content, able)
                    if native_dialect is None
                    else native.read(native_dialect, content, able)
                )
                return parsed, parsed.body(target.worker_model)

            parsed, sent = await intake.work(len(content), translate)
            fit = partial(fitting, model=target.worker_model)
            reply = parsed.answer(unique, created)
            if isinstance(reply, stream.Reply):
                reply = replace(reply, model=function.id)  # same dialect: the answer passes through unchanged
            elif isinstance(reply, responses.Reply | ollama.Reply):
                reply = reply.timed(time.time)
            if plan is not None and isinstance(reply, responses.Reply):
                reply = plan.reply = reply.stored(plan.state)
            return Call(
                dialect=kind,
                path=native.PATHS[native_dialect] if native_dialect else COMPLETIONS if parsed.completes else CHAT,
                body=sent,
                reply=reply,
                streams=reply if parsed.stream else None,
                affinity=affinity(headers, parsed.affinity),
                dropped=gate.header(parsed.dropped),
                answers=parsed.choices,
                cache_salt=salt,
                settle=None if native_dialect else fit(tokenizer, function, kind, parsed, sent, able),
                fitted=reply.fitted,
                cuts=parsed.cuts,
                limit_field=parsed.limit_field,
                keep_s=keep_s(headers.get(HEADER), routing.keep_alive, function),
            )

        call = await parse(target)
        await share.adjust(len(body), call.answers)
        conversation = None
        if catalogue.substitute(name, who) is not None:
            conversation = await intake.work(len(body), conversation_of, kind, body, call.affinity, who.id)
        return exchange_of(request, target, call, parse, name, who, started, share, conversation)

    async def computation(request: Incoming, kind: Dialect, path: str, body: bytes, share: Share) -> Answering:
        started = time.monotonic()
        routing = await peek(kind, body)
        name = routing.model
        who = request.caller
        target = catalogue.resolve_for(name, who)

        async def parse(target: Target) -> Call:
            """Build the request for a target."""
            function = target.function
            check_dialect(function, kind, catalogue.usable(who))
            parsed: Computed = await intake.work(len(body), COMPUTES[kind], body, traits(target, kind).passing)
            sent = await intake.work(len(body), parsed.body, target.worker_model)
            return Call(
                dialect=kind,
                path=path,
                body=sent,
                reply=parsed,
                dropped=gate.header(parsed.dropped),
                cache_salt=salts.of(function, who),
                keep_s=keep_s(request.headers.get(HEADER), routing.keep_alive, function),
            )

        call = await parse(target)
        await share.adjust(len(body), call.answers)
        return exchange_of(request, target, call, parse, name, who, started, share)

    def own_route(route: engine.Route) -> Handler:
        """Return the handler of one of the engines' own routes."""

        async def serve(request: Incoming) -> Answering:
            return await receive(request, route.dialect, lambda body, share: own(request, route, body, share))

        return serve

    async def own(request: Incoming, route: engine.Route, body: bytes, share: Share) -> Answering:
        started, who = time.monotonic(), request.caller
        name = request.name or engine.named_in(request.query)
        name, body = await intake.work(len(body), engine.with_name, body, name)
        target = catalogue.resolve_for(name, who)

        async def parse(target: Target) -> Call:
            """Read the request for a target."""
            function = target.function
            check_route(function, route.path, view.ready(target.base.id, target.revision))
            parsed = await intake.work(len(body), engine.read, route, body, lambda kind: traits(target, kind))
            return Call(
                dialect=route.dialect,
                path=route.path,
                body=parsed.body(target.worker_model),
                reply=parsed.answer(),
                streams=parsed.answer() if parsed.stream else None,
                dropped=gate.header(parsed.dropped),
                cache_salt=salts.of(function, who) if route.dialect == "infill" else "",
                keep_s=keep_s(request.headers.get(HEADER), None, function),
            )

        call = await parse(target)
        await share.adjust(len(body), call.answers)
        return exchange_of(request, target, call, parse, name, who, started, share)

    async def chat(request: Incoming) -> Answering:
        """Chat: OpenAI's dialect, streamed or not."""
        return await serve_generation(request, "chat")

    async def completions(request: Incoming) -> Answering:
        """Text completion: OpenAI's older dialect, streamed or not."""
        return await serve_generation(request, "completions")

    async def responses_(request: Incoming) -> Answering:
        """Responses: OpenAI's newer dialect, streamed or not."""
        plan: Plan | None = None

        async def read(body: bytes, share: Share) -> Answering:
            nonlocal plan
            plan = await stored.plan(request, body)
            if plan is None:
                return await generation(request, "responses", body, share)
            try:
                answering = await generation(request, "responses", plan.body, share, plan)
                if plan.state.background:
                    await stored.begin(plan)
            except BaseException:
                plan.held.release()
                raise
            return plan.held.held_by(answering)

        answering = await receive(request, "responses", read)
        return answering if plan is None else stored.answering(plan, answering, request.id)

    async def messages_(request: Incoming) -> Answering:
        """Chat: Anthropic's dialect, streamed or not."""
        return await serve_generation(request, "messages")

    async def embeddings_(request: Incoming) -> Answering:
        """Embed texts."""
        return await serve_computation(request, "embeddings", "/v1/embeddings")

    async def rerank_(request: Incoming) -> Answering:
        """Rank documents by how well they answer a query."""
        return await serve_computation(request, "rerank", "/v1/rerank")

    async def ollama_chat(request: Incoming) -> Answering:
        """Chat: Ollama's dialect, streamed unless the client says otherwise."""
        return await serve_ollama(request, "ollama_chat", "chat")

    async def ollama_generate(request: Incoming) -> Answering:
        """Answer one prompt: Ollama's dialect."""
        return await serve_ollama(request, "ollama_generate", "generate")

    async def serve_ollama(request: Incoming, kind: Dialect, form: Form) -> Answering:
        async def read(body: bytes, share: Share) -> Answering:
            if await intake.work(len(body), ollama.is_empty, body):
                return await loading(request, kind, form, body, share)
            return await generation(request, kind, body, share)

        return await receive(request, kind, read)

    async def loading(request: Incoming, kind: Dialect, form: Form, body: bytes, share: Share) -> Answering:
        """Serve a request without a prompt: it loads the function, or with a `keep_alive` of 0 lets its idle instances
        go, as any request with 0 does. A cold one is not started for that."""
        started, routing, who = time.monotonic(), await peek(kind, body), request.caller
        target = catalogue.resolve_for(routing.model, who)
        keep = keep_s(request.headers.get(HEADER), routing.keep_alive, target.function)
        reply = Ready(form, routing.model, "unload" if keep == 0 else "load", time.time)
        if keep == 0:
            ready = view.ready(target.base.id, target.revision)
            for instance in ready:
                with in_flight.track(target.base.id, instance.id, target.share):
                    in_flight.keep(instance.id, keep)
            if not ready:
                await share.settle()
                return json_answer(200, reply.plain(b"").body, request.id).send
        call = Call(dialect=kind, path="", body=b"", reply=reply, keep_s=keep)

        async def parse(_: Target) -> Call:
            return call

        return exchange_of(request, target, call, parse, routing.model, who, started, share)

    async def ollama_embed(request: Incoming) -> Answering:
        """Embed texts: Ollama's dialect."""
        return await serve_computation(request, "ollama_embed", "/v1/embeddings")

    async def ollama_embeddings_(request: Incoming) -> Answering:
        """Embed one text: Ollama's older dialect."""
        return await serve_computation(request, "ollama_embeddings", "/v1/embeddings")

    async def count_tokens(request: Incoming) -> Answering:
        """Count a prompt's tokens with the worker's tokenizer; a cold function is not started."""
        return await receive(
            request, "messages", lambda body, share: counting(request, body, share), costs_tokens=False
        )

    async def counting(request: Incoming, body: bytes, share: Share) -> Answering:
        started, who = time.monotonic(), request.caller
        routing = await peek("messages", body)
        name = routing.model
        target = catalogue.resolve_for(name, who)
        function = target.function
        read_s = time.monotonic() - started
        id = request.id
        request_record = RequestRecord(id, function.id, name, COUNT_TOKENS, streams=False, read_s=read_s)
        request_record.key = who.id
        request_record.who = who.name if who.id != ANONYMOUS else ""

        async def count() -> Count:
            content = await images.inlined(body) if function.remote_images else body
            parsed = await intake.work(len(content), messages.read_count, content, traits(target, "messages"))
            ready = choose(view.ready(target.base.id, target.revision), view.elsewhere)
            if ready is None or server_of(function, ready.server).counts == "no":
                return Count(limits.estimate(parsed.upstream.request), is_estimate=True)
            placed = view.placed(ready.id)
            request_record.forwarded(ready.id, placed[1] if placed else "")
            with in_flight.track(target.base.id, ready.id, target.share):
                prompt = parsed.count(target.base.name_at_worker)  # an adapter may not be loaded, and counts the same
                return Count(await tokenizer.count(function, ready, prompt), is_estimate=False)

        return share.wrap(TokenCount(exchanges.request_records, function, request_record, count), request_record)

    return {
        CHAT: chat,
        COMPLETIONS: completions,
        "/v1/responses": responses_,
        "/v1/messages": messages_,
        "/v1/messages/count_tokens": count_tokens,
        "/v1/embeddings": embeddings_,
        "/v1/rerank": rerank_,
        "/v2/rerank": rerank_,  # of Cohere's clients
        "/api/chat": ollama_chat,
        "/api/generate": ollama_generate,
        "/api/embed": ollama_embed,
        "/api/embeddings": ollama_embeddings_,
        **{path: own_route(route) for path, route in engine.ROUTES.items()},
    }


def _peek(body: bytes) -> _Peek:
    return wire.peek(body, _Peek)
