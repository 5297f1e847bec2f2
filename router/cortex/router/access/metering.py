"""Holds keys to their limits: around an exchange, before it begins and after its last byte.

A key without limits never comes here: its exchange is served as it is. While Redis is away nothing can be counted
over all routers, and nobody is refused: what is warm goes on.
"""

import asyncio
import secrets
import time
from datetime import UTC, datetime
from math import ceil

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from cortex.platform.api_keys import Limits, Principal
from cortex.platform.quota import LEASE_S, Quota, Verdict, tickets
from cortex.platform.registry import RecordAway
from cortex.router.dialects.errors import Dialect, Fault, Kind, envelope
from cortex.router.refusals import TooManyAnswers
from cortex.router.request.journey import Journey, Journeys
from cortex.router.view import View

log = structlog.get_logger()
Headers = list[tuple[bytes, bytes]]

BYTES_PER_TOKEN = 4
"""What a prompt is taken to have until its worker has counted."""
_SHORT = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "requests at a time"}


class Metering:
    """The tickets this router worker holds. `renew()` runs for as long as it does."""

    def __init__(self, quota: Quota, view: View, journeys: Journeys) -> None:
        self._quota, self._view, self.journeys = quota, view, journeys
        self._held: dict[str, set[str]] = {}

    def around(self, exchange: ASGIApp, journey: Journey, caller: Principal, size: int, answers: int = 1) -> ASGIApp:
        """Return what serves an exchange within its caller's limits; `size` is that of its prompt in bytes, `answers`
        how many its worker gives, each of which counts as a request.

        Raises TooManyAnswers for more of them than the caller's limits ever hold.
        """
        limits = caller.limits
        if not limits:
            return exchange
        most = min(limit for limit in (limits.rpm, limits.concurrent, answers) if limit)
        if answers > most:
            raise TooManyAnswers(answers, most)
        return Metered(self, exchange, journey, caller, size // BYTES_PER_TOKEN, answers)

    async def take(self, caller: Principal, ticket: str, tokens: int, answers: int = 1) -> Verdict | None:
        """Take a request's share; None while nobody can count."""
        if self._view.away:
            return None
        try:
            verdict = await self._quota.take(caller.id, caller.limits, ticket, tokens, answers)
        except RecordAway as error:
            log.warning("limits_not_counted", why=str(error))
            return None
        if not verdict.short and caller.limits.concurrent:
            self._held.setdefault(caller.id, set()).update(tickets(ticket, answers))
        return verdict

    async def settle(self, caller: Principal, ticket: str, taken: int, used: int, answers: int = 1) -> None:
        """Give a request's share back, but for what it used."""
        held = self._held.get(caller.id, set())
        held.difference_update(tickets(ticket, answers))
        if not held:
            self._held.pop(caller.id, None)
        try:
            await self._quota.settle(caller.id, caller.limits, ticket, taken, used, answers)
        except RecordAway as error:
            log.warning("limits_not_settled", why=str(error))  # the ticket ends with its lease

    async def renew(self) -> None:
        """Hold on to the tickets of requests that are still served, for ever."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                for key, tickets in list(self._held.items()):
                    await self._quota.renew(key, list(tickets))
            except RecordAway:
                continue


class Metered:
    """One exchange of a key with limits."""

    def __init__(
        self, metering: Metering, exchange: ASGIApp, journey: Journey, caller: Principal, tokens: int, answers: int
    ) -> None:
        self._metering, self._exchange, self._journey, self._caller = metering, exchange, journey, caller
        self._tokens, self._answers = tokens, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, or say when to come back."""
        ticket = secrets.token_hex(12)
        verdict = await self._metering.take(self._caller, ticket, self._tokens, self._answers)
        if verdict is None:
            await self._exchange(scope, receive, send)
            return
        journey = self._journey
        told = rate_headers(verdict, self._caller.limits, _dialect(journey), time.time())
        if verdict.short:
            fault = too_many(verdict, self._caller)
            self._metering.journeys.begun(journey)
            journey.status, journey.fault, journey.why = 429, fault.kind, fault.message
            try:
                await _refuse(send, journey, fault, told)
            finally:
                self._metering.journeys.over(journey)
            return

        settled = False

        async def settle() -> None:
            nonlocal settled
            if not settled:
                settled = True
                tokens = used(journey, self._tokens)
                await asyncio.shield(self._metering.settle(self._caller, ticket, verdict.taken, tokens, self._answers))

        async def within_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *told]
            elif message["type"] == "http.response.body" and not message["more_body"]:
                await settle()  # before the last byte: who waits for it may come again at once
            await send(message)

        try:
            await self._exchange(scope, receive, within_limits)
        finally:
            await settle()


def used(journey: Journey, estimate: int) -> int:
    """Return the tokens of a request that is over.

    (1) what its worker counted; (2) of one that was cut off, the prompt as counted or estimated, and a token for every
    piece that came, or more where pieces held more; (3) nothing, if no worker answered.
    """
    is_whole = not (journey.left or journey.fault)
    if is_whole and (journey.tokens_in or journey.tokens_out):  # (1)
        return journey.tokens_in + journey.tokens_out
    if not journey.pieces:  # (3)
        return journey.tokens_in + journey.tokens_out
    return (journey.tokens_in or estimate) + max(journey.tokens_out, journey.pieces, journey.rough_tokens)  # (2)


def too_many(verdict: Verdict, caller: Principal) -> Fault:
    """Return what a caller is told who is over a limit."""
    most = {"requests": caller.limits.rpm, "tokens": caller.limits.tpm, "concurrent": caller.limits.concurrent}
    limit = f"{most[verdict.short]} {_SHORT[verdict.short]}"
    return Fault(
        kind=Kind.RATE_LIMITED,
        message=f"the key '{caller.name}' may make {limit}; try again in {max(1, ceil(verdict.wait_s))} s",
        retry_after_s=verdict.wait_s,
    )


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


def _dialect(journey: Journey) -> Dialect:
    dialect: Dialect = journey.dialect  # type: ignore[assignment]
    return dialect


async def _refuse(send: Send, journey: Journey, fault: Fault, told: Headers) -> None:
    dialect = _dialect(journey)
    body = envelope(fault, dialect, journey.id)
    identity = journey.id.encode()
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", identity),
        (b"request-id", identity),
        *((k.encode(), v.encode()) for k, v in fault.headers().items()),
        *told,
    ]
    await send({"type": "http.response.start", "status": fault.status(dialect), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
