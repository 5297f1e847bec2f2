"""The inference routes: each parses its dialect and creates an Exchange."""

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp
from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.servers import server_of
from cortex.platform.api_keys import ANONYMOUS, Principal
from cortex.router.access.auth import caller
from cortex.router.access.rate_limits import RateLimiter, Share
from cortex.router.activation.load_balancing import affinity, choose
from cortex.router.dialects import dialect, embeddings, gate, native, rerank
from cortex.router.dialects.chat import stream
from cortex.router.dialects.core import limits, wire
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.dialects.responses import request as responses
from cortex.router.errors import OverLimits
from cortex.router.live_catalogue import Target
from cortex.router.request.capability_checks import check_dialect
from cortex.router.request.context_window import fitting
from cortex.router.request.exchange import Call, Exchanges, Parse
from cortex.router.request.intake import Intake
from cortex.router.request.model_traits import TraitsCache
from cortex.router.request.prompt_cache import CacheSalts
from cortex.router.request.remote_images import RemoteImages
from cortex.router.request.request_record import COUNT_TOKENS, RequestRecord
from cortex.router.request.token_count import Count, TokenCount
from cortex.router.request.tokenizer import Tokenizer

Http = Request[Any, Any, Any]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


Handler = Callable[[bytes, Share], Awaitable[ASGIApp]]


class _Peek(Struct, frozen=True):
    """The part of a body that routing needs before the function is resolved."""

    model: str


def routes(
    exchanges: Exchanges, intake: Intake, rate_limiter: RateLimiter, images: RemoteImages, salts: CacheSalts
) -> list[HTTPRouteHandler]:
    """Return the inference routes of a router."""
    traits_cache, tokenizer = TraitsCache(), Tokenizer(exchanges.upstream)
    catalogue, view, in_flight = exchanges.catalogue, exchanges.view, exchanges.admission.in_flight

    def traits(target: Target, kind: Dialect) -> Traits:
        function = target.function
        return traits_cache.of(function, kind, view.profile(function.id), view.ready(function.id, target.revision))

    async def serve_generation(request: Http, kind: Dialect) -> ASGIApp:
        """Serve a request with a worker's chat or completions endpoint."""
        return await receive(request, kind, lambda body, share: generation(request, kind, body, share))

    async def serve_computation(request: Http, kind: Dialect, path: str) -> ASGIApp:
        """Serve a request with one JSON answer: embeddings, rerank."""
        return await receive(request, kind, lambda body, share: computation(request, kind, path, body, share))

    async def receive(request: Http, kind: Dialect, handler: Handler, *, costs_tokens: bool = True) -> ASGIApp:
        """Check the key's limits, read the body, and account for its memory until the request is answered."""
        who, started = caller(request), time.monotonic()
        try:
            share = await rate_limiter.enter(who, kind, (request.content_length or 0) if costs_tokens else 0)
            try:
                held = await intake.body(request, who.id, share.cover if costs_tokens else _ignore_size)
                try:
                    if costs_tokens:
                        await share.adjust(len(held.bytes), 1)
                    return held.held_by(await handler(held.bytes, share))
                except BaseException:
                    held.release()
                    raise
            except BaseException:
                await share.settle()
                raise
        except OverLimits as error:
            read_s = time.monotonic() - started
            request_record = RequestRecord(request_id(request), "", "", kind, streams=False, read_s=read_s)
            request_record.who = who.name
            return rate_limiter.reject(error, request_record, kind)

    async def peek(body: bytes) -> str:
        """Return the model's name in a body."""
        return await intake.work(len(body), _peek, body)

    async def generation(request: Http, kind: Dialect, body: bytes, share: Share) -> ASGIApp:
        started = time.monotonic()
        name = await peek(body)
        who = caller(request)
        target = catalogue.resolve_for(name, who)
        unique, created, headers = secrets.token_hex(12), int(time.time()), request.headers

        async def parse(target: Target) -> Call:
            """Parse the request for a target."""
            function = target.function
            check_dialect(function, kind)
            content = await images.inlined(body) if function.remote_images else body
            able = traits(target, kind)
            salt = salts.of(function, who)
            native_dialect = native.native_dialect(function, kind, cache_is_shared=not salt)

            def translate() -> tuple[dialect.ParsedRequest, bytes]:
                parsed = (
                    dialect.read_request(kind, content, able)
                    if native_dialect is None
                    else native.read(native_dialect, content, able)
                )
                return parsed, parsed.body(function.id)

            parsed, sent = await intake.work(len(content), translate)
            reply = parsed.answer(unique, created)
            if isinstance(reply, stream.Reply):
                reply = replace(reply, model=function.id)  # same dialect: the answer passes through unchanged
            elif isinstance(reply, responses.Reply):
                reply = reply.timed(time.time)
            return Call(
                dialect=kind,
                path=native.PATHS[native_dialect] if native_dialect else COMPLETIONS if kind == "completions" else CHAT,
                body=sent,
                reply=reply,
                streams=reply if parsed.stream else None,
                affinity=affinity(headers, parsed.affinity),
                dropped=gate.header(parsed.dropped),
                answers=parsed.choices,
                cache_salt=salt,
                settle=None if native_dialect else fitting(tokenizer, function, kind, parsed, sent, able),
                fitted=reply.fitted,
                cuts=parsed.cuts,
                limit_field=parsed.limit_field,
            )

        call = await parse(target)
        await share.adjust(len(body), call.answers)
        return exchange_of(request, target, call, parse, name, who, started, share)

    async def computation(request: Http, kind: Dialect, path: str, body: bytes, share: Share) -> ASGIApp:
        started = time.monotonic()
        name = await peek(body)
        who = caller(request)
        target = catalogue.resolve_for(name, who)

        async def parse(target: Target) -> Call:
            """Build the request for a target."""
            function = target.function
            check_dialect(function, kind)
            read = embeddings.read if kind == "embeddings" else rerank.read
            parsed: embeddings.EmbeddingsRequest | rerank.RerankRequest = await intake.work(
                len(body), read, body, traits(target, kind).passing
            )
            sent = await intake.work(len(body), parsed.body, function.id)
            return Call(
                dialect=kind,
                path=path,
                body=sent,
                reply=parsed,
                dropped=gate.header(parsed.dropped),
                cache_salt=salts.of(function, who),
            )

        call = await parse(target)
        await share.adjust(len(body), call.answers)
        return exchange_of(request, target, call, parse, name, who, started, share)

    def exchange_of(
        request: Http,
        target: Target,
        call: Call,
        parse: Parse,
        name: str,
        who: Principal,
        started: float,
        share: Share,
    ) -> ASGIApp:
        read_s = time.monotonic() - started
        exchange = exchanges.exchange(target, call, request_id(request), who, name=name, read_s=read_s, parse=parse)
        return share.wrap(exchange, exchange.request_record)

    @post(CHAT, status_code=200, opt={"needs": "inference"})
    async def chat_completions(request: Http) -> ASGIApp:
        """Chat: OpenAI's dialect, streamed or not."""
        return await serve_generation(request, "chat")

    @post(COMPLETIONS, status_code=200, opt={"needs": "inference"})
    async def completions(request: Http) -> ASGIApp:
        """Text completion: OpenAI's older dialect, streamed or not."""
        return await serve_generation(request, "completions")

    @post("/v1/responses", status_code=200, opt={"needs": "inference"})
    async def responses_(request: Http) -> ASGIApp:
        """Responses: OpenAI's newer dialect, streamed or not."""
        return await serve_generation(request, "responses")

    @post("/v1/messages", status_code=200, opt={"needs": "inference"})
    async def messages_(request: Http) -> ASGIApp:
        """Chat: Anthropic's dialect, streamed or not."""
        return await serve_generation(request, "messages")

    @post("/v1/embeddings", status_code=200, opt={"needs": "inference"})
    async def embeddings_(request: Http) -> ASGIApp:
        """Embed texts."""
        return await serve_computation(request, "embeddings", "/v1/embeddings")

    @post(["/v1/rerank", "/v2/rerank"], status_code=200, opt={"needs": "inference"})
    async def rerank_(request: Http) -> ASGIApp:
        """Rank documents by how well they answer a query. Cohere's clients use the second path."""
        return await serve_computation(request, "rerank", "/v1/rerank")

    @post("/v1/messages/count_tokens", status_code=200, opt={"needs": "inference"})
    async def count_tokens(request: Http) -> ASGIApp:
        """Count a prompt's tokens with the worker's tokenizer; a cold function is not started."""
        return await receive(
            request, "messages", lambda body, share: counting(request, body, share), costs_tokens=False
        )

    async def counting(request: Http, body: bytes, share: Share) -> ASGIApp:
        started, who = time.monotonic(), caller(request)
        name = await peek(body)
        target = catalogue.resolve_for(name, who)
        function = target.function
        read_s = time.monotonic() - started
        id = request_id(request)
        request_record = RequestRecord(id, function.id, name, COUNT_TOKENS, streams=False, read_s=read_s)
        request_record.who = who.name if who.id != ANONYMOUS else ""

        async def count() -> Count:
            content = await images.inlined(body) if function.remote_images else body
            parsed = await intake.work(len(content), messages.read_count, content, traits(target, "messages"))
            ready = choose(view.ready(function.id, target.revision), view.elsewhere)
            if ready is None or server_of(function, ready.server).counts == "no":
                return Count(limits.estimate(parsed.upstream.request), is_estimate=True)
            placed = view.placed(ready.id)
            request_record.forwarded(ready.id, placed[1] if placed else "")
            with in_flight.aboard(function.id, ready.id):
                return Count(await tokenizer.count(function, ready, parsed.count(function.id)), is_estimate=False)

        return share.wrap(TokenCount(exchanges.request_records, function, request_record, count), request_record)

    return [
        chat_completions, completions, responses_, messages_, embeddings_, rerank_, count_tokens,
    ]  # fmt: skip


def request_id(request: Http) -> str:
    """Return the client's request id if it is valid, else a new one."""
    id = request.headers.get("x-request-id", "")
    return id if _CLIENT_ID.fullmatch(id) else f"req_{secrets.token_hex(12)}"


async def _ignore_size(size: int) -> None:
    """Do nothing, for a request that costs no tokens."""


def _peek(body: bytes) -> str:
    return wire.read(body, _Peek).model
