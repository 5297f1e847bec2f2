"""Enforces the limits of API keys, from before a request's body is read to the last byte of its answer.

A request's share is estimated in steps: from its Content-Length, then from the bytes read, then from the number of
answers it requests. A request over a limit is rejected before the router reads, fetches, counts or translates more.

Requests of a key without limits are not counted. While Redis is unavailable, usage cannot be counted across routers
and no request is rejected: warm functions keep serving.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from math import ceil

import structlog
from msgspec import Struct

from cortex.platform.api_keys import Limits, Principal
from cortex.platform.quota import LEASE_S, Quota, Verdict, tickets
from cortex.platform.registry import RecordUnavailable
from cortex.router.access.budgets import Budgets
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.media import PATHS
from cortex.router.errors import OverLimits, TooManyAnswers
from cortex.router.fleet_view import FleetView
from cortex.router.http_answer import Answering, Client, PassingClient
from cortex.router.request_record import RequestRecord

log = structlog.get_logger()
Headers = list[tuple[bytes, bytes]]

BYTES_PER_TOKEN = 4
"""Estimate for a prompt until its worker reports the count."""
TOKENS_PER_AUDIO_S = 10
"""As OpenAI counts audio in prompts: a token is 100 ms."""
COVER = 1024 * 1024
"""Bytes read of a body of unknown length before its share is raised."""
_SHORT = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "requests at a time"}


class RateLimiter:
    """The tickets this router worker holds. `renew()` runs while the worker does."""

    def __init__(self, quota: Quota, view: FleetView, budgets: Budgets | None = None) -> None:
        self._quota, self._view, self._budgets = quota, view, budgets
        self._held: dict[str, set[str]] = {}

    async def enter(self, caller: Principal, dialect: Dialect, size: int) -> "Share":
        """Take the share of one request whose body has `size` bytes so far. Raises OverLimits, or OverBudget."""
        warning: Headers = []
        if self._budgets is not None and caller.budget:
            self._budgets.check(caller, time.time())
            warning = self._budgets.headers(caller, time.time())
        share = Share(self, caller, dialect, warning)
        if share.is_limited:
            await share.enter(size)
        return share

    async def take(self, caller: Principal, ticket: str, tokens: int, answers: int = 1) -> Verdict | None:
        """Take a part of a request's share; None while usage cannot be counted."""
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

    async def settle(self, caller: Principal, ticket: str, reserved: int, used: int, answers: int = 1) -> None:
        """Give back the unused rest of a part of a request's share."""
        held = self._held.get(caller.id, set())
        held.difference_update(tickets(ticket, answers))
        if not held:
            self._held.pop(caller.id, None)
        try:
            await self._quota.settle(caller.id, caller.limits, ticket, reserved, used, answers)
        except RecordUnavailable as error:
            log.warning("limits_not_settled", why=str(error))  # the ticket expires with its lease

    async def renew(self) -> None:
        """Renew the tickets of requests in flight, until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                for key, tickets in list(self._held.items()):
                    await self._quota.renew(key, list(tickets))
            except RecordUnavailable:
                continue


class _Part(Struct, frozen=True):
    """One part of a share, under a ticket of its own."""

    ticket: str
    tokens: int
    answers: int


class Share:
    """The part of its key's limits that one request has reserved; empty for a key without limits."""

    def __init__(self, limiter: RateLimiter, caller: Principal, dialect: Dialect, warning: Headers) -> None:
        """`warning` has the headers of an answer to a caller whose budget is nearly spent."""
        self.is_limited = bool(caller.limits)
        self._limiter, self._caller, self._dialect, self._warning = limiter, caller, dialect, warning
        self._parts: list[_Part] = []
        self._verdict: Verdict | None = None
        self._size = 0

    async def enter(self, size: int) -> None:
        """Take a request's first part. Raises OverLimits."""
        self._size = size
        await self._take(self._estimate, 1)

    async def cover(self, size: int) -> None:
        """Raise the share for a body that grows, one step of `COVER` bytes at a time. Raises OverLimits."""
        if size >= self._size + COVER:
            await self.adjust(size, 1)

    async def adjust(self, size: int, answers: int) -> None:
        """Raise the share to `size` bytes of body and `answers`, each of which counts as a request.

        Raises OverLimits, or TooManyAnswers if the caller's limits can never cover them.
        """
        limits = self._caller.limits
        if not self.is_limited:
            return
        bound = min(limit for limit in (limits.rpm, limits.concurrent, answers) if limit)
        if answers > bound:
            raise TooManyAnswers(answers, bound)
        self._size = max(self._size, size)
        if self._verdict is None:
            return
        tokens = min(self._estimate, limits.tpm) - sum(p.tokens for p in self._parts)
        answers -= sum(p.answers for p in self._parts)
        if tokens > 0 or answers > 0:
            await self._take(max(0, tokens), max(0, answers))

    def wrap(self, answering: Answering, request_record: RequestRecord) -> Answering:
        """Return what answers with the headers of limits and budget, and settles the share before the last byte of the
        answer."""
        if self._verdict is None and not self._warning:
            return answering
        limits = self._warning
        if self._verdict is not None:
            limits = [*rate_headers(self._verdict, self._caller.limits, self._dialect, time.time()), *limits]

        async def settle() -> None:
            await self.settle(used(request_record, self._estimate))

        async def limited(client: Client) -> None:
            try:
                await answering(_LimitedClient(client, limits, settle))
            finally:
                await settle()

        return limited

    async def settle(self, tokens: int = 0) -> None:
        """Give the share back, less the tokens used. Calling it again does nothing."""
        parts, self._parts = self._parts, []
        if parts:
            await asyncio.shield(self._settle(parts, tokens))

    @property
    def _estimate(self) -> int:
        return self._size // BYTES_PER_TOKEN

    async def _take(self, tokens: int, answers: int) -> None:
        ticket = secrets.token_hex(12)
        verdict = await self._limiter.take(self._caller, ticket, tokens, answers)
        if verdict is None:
            return
        if verdict.short:
            limits = rate_headers(verdict, self._caller.limits, self._dialect, time.time())
            raise OverLimits(over_limits_message(verdict, self._caller), verdict.wait_s, limits)
        self._verdict = verdict
        self._parts.append(_Part(ticket, verdict.taken, answers))

    async def _settle(self, parts: list[_Part], tokens: int) -> None:
        for part in parts:
            await self._limiter.settle(self._caller, part.ticket, part.tokens, tokens, part.answers)
            tokens = 0


class _LimitedClient(PassingClient):
    """A client whose answer has headers of limits and budget. `settle` is awaited before the last byte, because the
    client may send its next request at once."""

    def __init__(self, client: Client, headers: Headers, settle: Callable[[], Awaitable[None]]) -> None:
        super().__init__(client)
        self._headers, self._settle = headers, settle

    async def send(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        await self._settle()
        await self._client.send(status, [*headers, *self._headers], body)

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._client.start(status, [*headers, *self._headers])

    async def end(self) -> None:
        await self._settle()
        await self._client.end()


def used(request_record: RequestRecord, estimate: int) -> int:
    """Return the tokens that a finished request used:

    (1) none, if it never reached a worker;
    (2) the worker's count, if the answer was complete; for media, what stands for it;
    (3) otherwise the prompt (estimated if not counted) plus one token per piece, or more if pieces held more.
    """
    if not (request_record.instance or request_record.tries or request_record.pieces):  # (1)
        return 0
    counted = request_record.tokens_in + request_record.tokens_out
    if request_record.dialect in PATHS or (counted and not (request_record.left or request_record.fault)):  # (2)
        return counted or media_tokens(request_record.audio_s, request_record.characters)
    tokens_out = max(request_record.tokens_out, request_record.pieces, request_record.rough_tokens)
    return (request_record.tokens_in or estimate) + tokens_out  # (3)


def media_tokens(audio_s: float, characters: int) -> int:
    """Return the tokens that audio and text to speak count as, where a worker counts none. An image counts as the
    request it is, and so does audio of unknown length."""
    return ceil(audio_s * TOKENS_PER_AUDIO_S) + ceil(characters / BYTES_PER_TOKEN)


def over_limits_message(verdict: Verdict, caller: Principal) -> str:
    """Return which limit a caller has exceeded and when to retry."""
    limits = {"requests": caller.limits.rpm, "tokens": caller.limits.tpm, "concurrent": caller.limits.concurrent}
    limit = f"{limits[verdict.short]} {_SHORT[verdict.short]}"
    return f"the key '{caller.name}' may make {limit}; try again in {max(1, ceil(verdict.wait_s))} s"


def rate_headers(verdict: Verdict, limits: Limits, dialect: Dialect, now: float) -> Headers:
    """Return the rate-limit headers that clients of the dialect expect."""
    quotas = [
        (unit, limit, left, full_s)
        for unit, limit, left, full_s in (
            ("requests", limits.rpm, verdict.requests_left, verdict.requests_full_s),
            ("tokens", limits.tpm, verdict.tokens_left, verdict.tokens_full_s),
        )
        if limit
    ]
    if dialect == "messages":
        return [
            (f"anthropic-ratelimit-{unit}-{name}".encode(), value.encode())
            for unit, limit, left, full_s in quotas
            for name, value in (("limit", str(limit)), ("remaining", str(left)), ("reset", _instant(now + full_s)))
        ]
    return [
        (f"x-ratelimit-{name}-{unit}".encode(), value.encode())
        for unit, limit, left, full_s in quotas
        for name, value in (("limit", str(limit)), ("remaining", str(left)), ("reset", f"{full_s:.3f}s"))
    ]


def _instant(at: float) -> str:
    return datetime.fromtimestamp(ceil(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
