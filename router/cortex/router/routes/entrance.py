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

Reading = Callable[[bytes, Share], Awaitable[Answering]]
FormReading = Callable[[Upload, Share], Awaitable[Answering]]


class Entrance:
    """Receives the requests of one router worker."""

    def __init__(self, exchanges: Exchanges, intake: Intake, uploads: Uploads, rate_limiter: RateLimiter) -> None:
        self.exchanges, self.intake = exchanges, intake
        self._uploads, self._rate_limiter = uploads, rate_limiter

    async def receive(self, request: Incoming, kind: Dialect, read: Reading, *, costs_tokens: bool = True) -> Answering:
        """Check the key's limits, read the body, and account for its memory until the request is answered."""

        async def receive(share: Share) -> Answering:
            held = await self.intake.body(request, share.cover if costs_tokens else no_cover)
            try:
                if costs_tokens:
                    await share.adjust(len(held.bytes), 1)
                return held.held_by(await read(held.bytes, share))
            except BaseException:
                held.release()
                raise

        return await self._within_limits(request, kind, (request.content_length or 0) if costs_tokens else 0, receive)

    async def receive_form(self, request: Incoming, kind: Dialect, read: FormReading) -> Answering:
        """Check the key's limits, and read a form until its function is known. Its size costs no tokens: the audio that
        the worker measures does."""

        async def receive(share: Share) -> Answering:
            upload = await self._uploads.begin(request, kind)
            try:
                return upload.held_by(await read(upload, share))
            except BaseException:
                await upload.release()
                raise

        return await self._within_limits(request, kind, 0, receive)

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
            headers=request.headers.items(),
            conversation=conversation,
        )
        return share.wrap(exchange, exchange.request_record)

    async def _within_limits(
        self, request: Incoming, kind: Dialect, size: int, receive: Callable[[Share], Awaitable[Answering]]
    ) -> Answering:
        """Receive a request with its key's share of limits, which is given back if that fails."""
        who, started = request.caller, time.monotonic()
        try:
            share = await self._rate_limiter.enter(who, kind, size)
            try:
                return await receive(share)
            except BaseException:
                await share.settle()
                raise
        except OverLimits as error:
            read_s = time.monotonic() - started
            request_record = RequestRecord(request.id, "", "", kind, streams=False, read_s=read_s)
            request_record.key, request_record.who = who.id, who.name
            fault = error.fault()
            request_record.rejected(fault.status(kind), fault.kind, error.reason)
            self.exchanges.request_records.begun(request_record)
            self.exchanges.request_records.over(request_record)
            raise
