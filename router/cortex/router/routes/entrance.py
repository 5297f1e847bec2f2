"""Receive requests for inference: enforce their key's limits, read a body or a form, and create an Exchange."""

import time
from collections.abc import Awaitable, Callable

from cortex.platform.api_keys import Principal
from cortex.router.access.rate_limits import RateLimiter, Share
from cortex.router.dialects.core.errors import Dialect
from cortex.router.errors import OverLimits
from cortex.router.http_answer import Answering
from cortex.router.live_catalogue import Target
from cortex.router.request.call import Call
from cortex.router.request.exchange import Exchange, Exchanges, Parse
from cortex.router.request.incoming import Incoming
from cortex.router.request.intake import Intake, no_cover
from cortex.router.request.substitutes import Conversation
from cortex.router.request.upload import Upload, Uploads
from cortex.router.request_record import RequestRecord

Serve = Callable[[Incoming, bytes, Share], Awaitable[Answering]]
"""Returns what answers a request whose body is read."""
ServeForm = Callable[[Incoming, Upload, Share], Awaitable[Answering]]


class Entrance:
    """Receives the requests of one router worker."""

    def __init__(self, exchanges: Exchanges, intake: Intake, uploads: Uploads, rate_limiter: RateLimiter) -> None:
        self.exchanges, self.intake = exchanges, intake
        self._uploads, self._rate_limiter = uploads, rate_limiter

    async def receive(self, kind: Dialect, serve: Serve, request: Incoming, *, costs_tokens: bool = True) -> Answering:
        """Check the key's limits, read the body, and account for its memory until the request is answered."""
        share, held, started = None, None, time.monotonic()
        try:
            size = (request.content_length or 0) if costs_tokens else 0
            share = await self._rate_limiter.enter(request.caller, kind, size)
            held = await self.intake.body(request, share.cover if costs_tokens else no_cover)
            if costs_tokens and share.is_limited:
                await share.adjust(len(held.bytes), 1)
            return held.release_after(await serve(request, held.bytes, share))
        except BaseException as error:
            if held is not None:
                held.release()
            await self._give_back(share, error, request, kind, started)
            raise

    async def receive_form(self, kind: Dialect, serve: ServeForm, request: Incoming) -> Answering:
        """Check the key's limits, and read a form until its function is known. Its size costs no tokens: the audio that
        the worker measures does."""
        share, upload, started = None, None, time.monotonic()
        try:
            share = await self._rate_limiter.enter(request.caller, kind, 0)
            upload = await self._uploads.begin(request, kind)
            return upload.release_after(await serve(request, upload, share))
        except BaseException as error:
            if upload is not None:
                await upload.release()
            await self._give_back(share, error, request, kind, started)
            raise

    def exchange_of(
        self,
        request: Incoming,
        target: Target,
        call: Call,
        parse: Parse,
        name: str,
        who: Principal,
        started: float,
        share: Share,
        conversation: Conversation | None = None,
    ) -> Answering:
        """Return what serves a request that was read since `started`, by the monotonic clock."""
        exchange = Exchange(
            self.exchanges,
            target,
            call,
            request.id,
            who,
            name=name,
            read_s=time.monotonic() - started,
            parse=parse,
            headers=request.headers,
            conversation=conversation,
        )
        return share.wrap(exchange, exchange.request_record)

    async def _give_back(
        self, share: Share | None, error: BaseException, request: Incoming, kind: Dialect, started: float
    ) -> None:
        """Give a request's share of limits back that ends before it is served, and record it if it is over them."""
        if share is not None:
            await share.settle()
        if isinstance(error, OverLimits):
            who, read_s = request.caller, time.monotonic() - started
            request_record = RequestRecord(request.id, "", "", kind, streams=False, read_s=read_s)
            request_record.key, request_record.who = who.id, who.name
            fault = error.fault()
            request_record.reject(fault.status(kind), fault.kind, error.reason)
            self.exchanges.request_records.begin(request_record)
            self.exchanges.request_records.over(request_record)
