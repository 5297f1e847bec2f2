"""The routes of inference: each reads its dialect and hands over to an Exchange."""

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
from cortex.router.access.rate_limits import Share
from cortex.router.activation.load_balancing import affinity, choose
from cortex.router.dialects import dialect, embeddings, gate, native, rerank
from cortex.router.dialects.chat import stream
from cortex.router.dialects.core import limits, wire
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.sizes import check_size
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.errors import OverLimits
from cortex.router.live_catalogue import Target
from cortex.router.request.capability_checks import check_dialect
from cortex.router.request.context_window import fitting
from cortex.router.request.exchange import Call, Exchange, Services
from cortex.router.request.model_traits import TraitsCache
from cortex.router.request.request_record import COUNT_TOKENS, RequestRecord
from cortex.router.request.token_count import Count, TokenCount
from cortex.router.request.tokenizer import Tokenizer
from cortex.router.runtime import Runtime

Http = Request[Any, Any, Any]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


Served = Callable[[bytes, Share], Awaitable[ASGIApp]]


class _Peek(Struct, frozen=True):
    """What routing needs to know of a body before its function, and so its shape, is known."""

    model: str


def routes(runtime: Runtime, services: Services) -> list[HTTPRouteHandler]:
    """Return the inference routes of a router."""
    abilities, tokenizer, intake = TraitsCache(), Tokenizer(services.upstream), runtime.intake

    def traits(target: Target, kind: Dialect) -> Traits:
        function, view = target.function, runtime.view
        return abilities.of(function, kind, view.known(function.id), view.ready(function.id, target.revision))

    async def generated(request: Http, kind: Dialect) -> ASGIApp:
        """Serve a request that a worker's chat or completions answers."""
        return await take_in(request, kind, lambda body, share: generation(request, kind, body, share))

    async def computed(request: Http, kind: Dialect, path: str) -> ASGIApp:
        """Serve a request with one plain answer: embeddings, rerank."""
        return await take_in(request, kind, lambda body, share: computation(request, kind, path, body, share))

    async def take_in(request: Http, kind: Dialect, served: Served, *, costs_tokens: bool = True) -> ASGIApp:
        """Hold a request to its key's limits, then read its body and hold that until the request has been answered."""
        who, began = caller(request), time.monotonic()
        try:
            share = await runtime.metering.enter(who, kind, (request.content_length or 0) if costs_tokens else 0)
            try:
                held = await intake.body(request, who.id, share.cover if costs_tokens else _uncovered)
                try:
                    if costs_tokens:
                        await share.put_right(len(held.bytes), 1)
                    return held.held_by(await served(held.bytes, share))
                except BaseException:
                    held.release()
                    raise
            except BaseException:
                await share.settle()
                raise
        except OverLimits as over:
            journey = RequestRecord(request_id(request), "", "", kind, streams=False, read_s=time.monotonic() - began)
            journey.who = who.name
            return runtime.metering.refusal(over, journey, kind)

    async def peek(body: bytes) -> str:
        """Return the model's name in a body whose weight is within bounds."""
        return await intake.work(len(body), _weigh_and_peek, body)

    async def generation(request: Http, kind: Dialect, body: bytes, share: Share) -> ASGIApp:
        began = time.monotonic()
        name = await peek(body)
        who = caller(request)
        target = runtime.directory.find_for(name, who)
        unique, created, headers = secrets.token_hex(12), int(time.time()), request.headers

        async def understand(target: Target) -> Call:
            """Read the request for what its name stands for."""
            function = target.function
            check_dialect(function, kind)
            given = await runtime.images.inlined(body) if function.remote_images else body
            able = traits(target, kind)
            salt = runtime.cache_salt(function, who)
            spoken = native.native_dialect(function, kind, cache_is_shared=not salt)

            def translate() -> tuple[dialect.ParsedRequest, bytes]:
                asked = dialect.read_request(kind, given, able) if spoken is None else native.read(spoken, given, able)
                return asked, asked.body(function.id)

            asked, sent = await intake.work(len(given), translate)
            reply = asked.answer(unique, created)
            if isinstance(reply, stream.Reply):
                reply = replace(reply, model=function.id)  # same dialect: the answer goes back as the worker gave it
            return Call(
                dialect=kind,
                path=native.PATHS[spoken] if spoken else COMPLETIONS if kind == "completions" else CHAT,
                body=sent,
                reply=reply,
                streams=reply if asked.stream else None,
                affinity=affinity(headers, asked.affinity),
                dropped=gate.header(asked.dropped),
                answers=asked.choices,
                cache_salt=salt,
                settle=None if spoken else fitting(tokenizer, function, kind, asked, sent, able),
            )

        call = await understand(target)
        await share.put_right(len(body), call.answers)
        return exchange_of(request, target, call, understand, name, who, began, share)

    async def computation(request: Http, kind: Dialect, path: str, body: bytes, share: Share) -> ASGIApp:
        began = time.monotonic()
        name = await peek(body)
        who = caller(request)
        target = runtime.directory.find_for(name, who)

        async def understand(target: Target) -> Call:
            """Write the request for what its name stands for."""
            function = target.function
            check_dialect(function, kind)
            read = embeddings.read if kind == "embeddings" else rerank.read
            asked: embeddings.EmbeddingsRequest | rerank.RerankRequest = await intake.work(
                len(body), read, body, traits(target, kind).passing
            )
            sent = await intake.work(len(body), asked.body, function.id)
            return Call(
                dialect=kind,
                path=path,
                body=sent,
                reply=asked,
                dropped=gate.header(asked.dropped),
                cache_salt=runtime.cache_salt(function, who),
            )

        call = await understand(target)
        await share.put_right(len(body), call.answers)
        return exchange_of(request, target, call, understand, name, who, began, share)

    def exchange_of(
        request: Http,
        target: Target,
        call: Call,
        understand: Callable[[Target], Awaitable[Call]],
        name: str,
        who: Principal,
        began: float,
        share: Share,
    ) -> ASGIApp:
        read_s = time.monotonic() - began
        exchange = Exchange(
            services, target, call, request_id(request), who, asked=name, read_s=read_s, understand=understand
        )
        return share.around(exchange, exchange.journey)

    @post(CHAT, status_code=200, opt={"needs": "inference"})
    async def chat_completions(request: Http) -> ASGIApp:
        """Chat: OpenAI's dialect, streamed or not."""
        return await generated(request, "chat")

    @post(COMPLETIONS, status_code=200, opt={"needs": "inference"})
    async def completions(request: Http) -> ASGIApp:
        """Complete a text: OpenAI's older dialect, streamed or not."""
        return await generated(request, "completions")

    @post("/v1/responses", status_code=200, opt={"needs": "inference"})
    async def responses(request: Http) -> ASGIApp:
        """Respond: OpenAI's newer dialect, streamed or not."""
        return await generated(request, "responses")

    @post("/v1/messages", status_code=200, opt={"needs": "inference"})
    async def messages_(request: Http) -> ASGIApp:
        """Chat: Anthropic's dialect, streamed or not."""
        return await generated(request, "messages")

    @post("/v1/embeddings", status_code=200, opt={"needs": "inference"})
    async def embeddings_(request: Http) -> ASGIApp:
        """Embed texts."""
        return await computed(request, "embeddings", "/v1/embeddings")

    @post("/v1/rerank", status_code=200, opt={"needs": "inference"})
    async def rerank_(request: Http) -> ASGIApp:
        """Rank documents by how well they answer a query."""
        return await computed(request, "rerank", "/v1/rerank")

    @post("/v1/messages/count_tokens", status_code=200, opt={"needs": "inference"})
    async def count_tokens(request: Http) -> ASGIApp:
        """Count a prompt's tokens with the worker's own tokenizer; a cold function is not started for it."""
        return await take_in(
            request, "messages", lambda body, share: counting(request, body, share), costs_tokens=False
        )

    async def counting(request: Http, body: bytes, share: Share) -> ASGIApp:
        began, who = time.monotonic(), caller(request)
        name = await peek(body)
        target = runtime.directory.find_for(name, who)
        function = target.function
        read_s = time.monotonic() - began
        journey = RequestRecord(request_id(request), function.id, name, COUNT_TOKENS, streams=False, read_s=read_s)
        journey.who = who.name if who.id != ANONYMOUS else ""

        async def count() -> Count:
            given = await runtime.images.inlined(body) if function.remote_images else body
            asked = await intake.work(len(given), messages.read_count, given, traits(target, "messages"))
            ready = choose(runtime.view.ready(function.id, target.revision), runtime.view.elsewhere)
            if ready is None or server_of(function, ready.server).counts == "no":
                return Count(limits.estimate(asked.upstream.request), is_estimate=True)
            placed = runtime.view.placed(ready.id)
            journey.forwarded(ready.id, placed[1] if placed else "")
            with runtime.flights.aboard(function.id, ready.id):
                return Count(await tokenizer.count(function, ready, asked.count(function.id)), is_estimate=False)

        return share.around(TokenCount(services.journeys, function, journey, count), journey)

    return [
        chat_completions, completions, responses, messages_, embeddings_, rerank_, count_tokens,
    ]  # fmt: skip


def request_id(request: Http) -> str:
    """Return the client's own request id when it is tame, else a fresh one."""
    given = request.headers.get("x-request-id", "")
    return given if _GIVEN_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


async def _uncovered(size: int) -> None:
    """Cover nothing: the request costs no tokens."""


def _weigh_and_peek(body: bytes) -> str:
    check_size(body)
    return wire.read(body, _Peek).model
