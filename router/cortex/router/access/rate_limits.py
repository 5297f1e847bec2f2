"""Holds keys to their limits: from the door, before a request's body is read, to the last byte of its answer.

A request's share is taken by what is known of it: by the length that its head announces, then by the bytes that were
read, then by how many answers it wants. What is over a limit is refused before anything is read on, fetched, counted
or translated for it.

A key without limits takes nothing: its requests are served as they are. While Redis is away nothing can be counted
over all routers, and no request is refused: what is warm goes on.
"""

import asyncio
import secrets
import time
from datetime import UTC, datetime
from math import ceil

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from msgspec import Struct

from cortex.platform.api_keys import Limits, Principal
from cortex.platform.quota import LEASE_S, Quota, Verdict, tickets
from cortex.platform.registry import RecordUnavailable
from cortex.router.dialects.core.errors import Dialect, envelope
from cortex.router.errors import OverLimits, TooManyAnswers
from cortex.router.fleet_view import FleetView
from cortex.router.request.attendance import send_json
from cortex.router.request.request_record import RequestRecord, RequestRecords

log = structlog.get_logger()
Headers = list[tuple[bytes, bytes]]

BYTES_PER_TOKEN = 4
"""What a prompt is taken to have until its worker has counted."""
COVER = 1024 * 1024
"""Bytes of a body of unknown length that are read before they are covered."""
_SHORT = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "requests at a time"}


class RateLimiter:
    """The tickets this router worker holds. `renew()` runs for as long as it does."""

    def __init__(self, quota: Quota, view: FleetView, journeys: RequestRecords) -> None:
        self._quota, self._view, self._journeys = quota, view, journeys
        self._held: dict[str, set[str]] = {}

    async def enter(self, caller: Principal, dialect: Dialect, size: int) -> "Share":
        """Take the share of one request, whose prompt has `size` bytes as far as is known. Raises OverLimits."""
        share = Share(self, caller, dialect)
        if caller.limits:
            await share.enter(size)
        return share

    async def take(self, caller: Principal, ticket: str, tokens: int, answers: int = 1) -> Verdict | None:
        """Take a part of a request's share; None while nothing can be counted."""
        if self._view.away:
            return None
        try:
            verdict = await self._quota.take(caller.id, caller.limits, ticket, tokens, answers)
        except RecordUnavailable as error:
            log.warning("limits_not_counted", why=str(error))
            return None
        if not verdict.short and caller.limits.concurrent and answers:
            self._held.setdefault(caller.id, set()).update(tickets(ticket, answers))
        return verdict

    async def settle(self, caller: Principal, ticket: str, taken: int, used: int, answers: int = 1) -> None:
        """Give a part of a request's share back, but for what it used."""
        held = self._held.get(caller.id, set())
        held.difference_update(tickets(ticket, answers))
        if not held:
            self._held.pop(caller.id, None)
        try:
            await self._quota.settle(caller.id, caller.limits, ticket, taken, used, answers)
        except RecordUnavailable as error:
            log.warning("limits_not_settled", why=str(error))  # the ticket ends with its lease

    async def renew(self) -> None:
        """Hold on to the tickets of requests that are still served, until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                for key, tickets in list(self._held.items()):
                    await self._quota.renew(key, list(tickets))
            except RecordUnavailable:
                continue

    def refusal(self, over: OverLimits, journey: RequestRecord, dialect: Dialect) -> ASGIApp:
        """Return what answers a request that is over a limit, and lists it among those that are over."""

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            fault = over.fault()
            status = fault.status(dialect)
            self._journeys.begun(journey)
            journey.status, journey.fault, journey.why = status, fault.kind, fault.message
            try:
                headers = [*((k.encode(), v.encode()) for k, v in fault.headers().items()), *over.headers]
                await send_json(send, status, envelope(fault, dialect, journey.id), journey.id, headers)
            finally:
                self._journeys.over(journey)

        return refuse


class _Taking(Struct, frozen=True):
    """A part of a share, as it was taken."""

    ticket: str
    tokens: int
    answers: int


class Share:
    """What one request has taken of its key's limits. Of a key without limits, nothing."""

    def __init__(self, metering: RateLimiter, caller: Principal, dialect: Dialect) -> None:
        self._metering, self._caller, self._dialect = metering, caller, dialect
        self._takings: list[_Taking] = []
        self._verdict: Verdict | None = None
        self._size = 0

    async def enter(self, size: int) -> None:
        """Take a request's first part. Raises OverLimits."""
        self._size = size
        await self._take(self._estimate, 1)

    async def cover(self, size: int) -> None:
        """Cover a body that turns out longer than was known, some of it at a time. Raises OverLimits."""
        if size >= self._size + COVER:
            await self.put_right(size, 1)

    async def put_right(self, size: int, answers: int) -> None:
        """Cover a request that was read: `size` bytes of body, and `answers`, each of which counts as a request.

        Raises OverLimits, and TooManyAnswers for more of them than the caller's limits ever hold.
        """
        limits = self._caller.limits
        if not limits:
            return
        most = min(limit for limit in (limits.rpm, limits.concurrent, answers) if limit)
        if answers > most:
            raise TooManyAnswers(answers, most)
        self._size = max(self._size, size)
        if self._verdict is None:
            return
        tokens = min(self._estimate, limits.tpm) - sum(t.tokens for t in self._takings)
        answers -= sum(t.answers for t in self._takings)
        if tokens > 0 or answers > 0:
            await self._take(max(0, tokens), max(0, answers))

    def around(self, app: ASGIApp, journey: RequestRecord) -> ASGIApp:
        """Return what serves a request within its share, and settles it before the last byte of the answer."""
        if self._verdict is None:
            return app
        limits = rate_headers(self._verdict, self._caller.limits, self._dialect, time.time())

        async def metered(scope: Scope, receive: Receive, send: Send) -> None:
            async def within_limits(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *limits]
                elif message["type"] == "http.response.body" and not message["more_body"]:
                    await self.settle(used(journey, self._estimate))  # a client that waits for it may come at once
                await send(message)

            try:
                await app(scope, receive, within_limits)
            finally:
                await self.settle(used(journey, self._estimate))

        return metered

    async def settle(self, tokens: int = 0) -> None:
        """Give the share back, but for the tokens that were used. Does nothing the second time."""
        takings, self._takings = self._takings, []
        if takings:
            await asyncio.shield(self._settle(takings, tokens))

    @property
    def _estimate(self) -> int:
        return self._size // BYTES_PER_TOKEN

    async def _take(self, tokens: int, answers: int) -> None:
        ticket = secrets.token_hex(12)
        verdict = await self._metering.take(self._caller, ticket, tokens, answers)
        if verdict is None:
            return
        if verdict.short:
            limits = rate_headers(verdict, self._caller.limits, self._dialect, time.time())
            raise OverLimits(over_limits_message(verdict, self._caller), verdict.wait_s, limits)
        self._verdict = verdict
        self._takings.append(_Taking(ticket, verdict.taken, answers))

    async def _settle(self, takings: list[_Taking], tokens: int) -> None:
        for taking in takings:
            await self._metering.settle(self._caller, taking.ticket, taking.tokens, tokens, taking.answers)
            tokens = 0


def used(journey: RequestRecord, estimate: int) -> int:
    """Return the tokens of a request that is over.

    (1) nothing, if it never went to a worker;
    (2) what its worker counted, of an answer that came to its end;
    (3) of any other, the prompt, as estimated if it was not counted, and a token for every piece that came, or more
        where pieces held more.
    """
    if not (journey.instance or journey.tries or journey.pieces):  # (1)
        return 0
    counted = journey.tokens_in + journey.tokens_out
    if counted and not (journey.left or journey.fault):  # (2)
        return counted
    return (journey.tokens_in or estimate) + max(journey.tokens_out, journey.pieces, journey.rough_tokens)  # (3)


def over_limits_message(verdict: Verdict, caller: Principal) -> str:
    """Return which of its limits a caller is over, and when to come back."""
    most = {"requests": caller.limits.rpm, "tokens": caller.limits.tpm, "concurrent": caller.limits.concurrent}
    limit = f"{most[verdict.short]} {_SHORT[verdict.short]}"
    return f"the key '{caller.name}' may make {limit}; try again in {max(1, ceil(verdict.wait_s))} s"


def rate_headers(verdict: Verdict, limits: Limits, dialect: Dialect, now: float) -> Headers:
    """Return what each dialect's clients look for to pace themselves."""
    found = [
        (what, most, left, full_s)
        for what, most, left, full_s in (
            ("requests", limits.rpm, verdict.requests_left, verdict.requests_full_s),
            ("tokens", limits.tpm, verdict.tokens_left, verdict.tokens_full_s),
        )
        if most
    ]
    if dialect == "messages":
        return [
            (f"anthropic-ratelimit-{what}-{name}".encode(), value.encode())
            for what, most, left, full_s in found
            for name, value in (("limit", str(most)), ("remaining", str(left)), ("reset", _instant(now + full_s)))
        ]
    return [
        (f"x-ratelimit-{name}-{what}".encode(), value.encode())
        for what, most, left, full_s in found
        for name, value in (("limit", str(most)), ("remaining", str(left)), ("reset", f"{full_s:.3f}s"))
    ]


def _instant(at: float) -> str:
    return datetime.fromtimestamp(ceil(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
