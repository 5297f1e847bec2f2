"""Takes a seat for a request to a function with `keep_context`, and restores its saved conversation there before it is
sent.

The agent of the instance's host assigns the slot, whichever router process the request reached, and decides whether a
conversation fits. A router restores only what the caller's own salt marks. Whatever fails, the request is sent as
without; one that has no seat is counted in this router's report, so that the agent trusts no slot after it.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import structlog
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.agent_messages import ContextFailure, LeaveSeat, RestoreContext, Seat, TakeSeat
from cortex.platform.keys import FleetToken
from cortex.platform.record import HostRecord, Instance, SavedContext
from cortex.router.activation.agents import AgentRefused, Agents, AgentUnavailable
from cortex.router.dialects.core.large_object import Body
from cortex.router.fleet_view import FleetView
from cortex.router.request.conversation_chain import Chain, chain_of, marks, owner_of
from cortex.router.request.prompt_cache import with_seat
from cortex.router.request_record import RequestRecord

log = structlog.get_logger()

MOST_TRIED = 1000
MOST_WAIT_S = 60.0
"""How long a request waits for a slot that other router processes use. Then the server queues it."""
AVOIDED_S = 5.0
"""How long no seat is taken at a host whose agent did not answer."""
LEAST_REUSED = 0.5
"""Part of the last prompt that an answer must have found in the cache, or the restore has failed."""


class Match(Struct, frozen=True):
    """A saved conversation that a request continues."""

    host: HostRecord
    context: SavedContext
    length: int
    """Number of the request's messages that it has."""


class ContextRestores:
    """The seats and restores of one router worker."""

    def __init__(self, view: FleetView, agents: Agents, token: FleetToken) -> None:
        self._view, self._agents, self._token = view, agents, token
        self._tried: dict[str, None] = {}
        """Ids that were tried: they are gone, and the record may not know it yet."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._unseated: dict[str, int] = {}
        """Requests that were sent without a seat, by instance."""
        self._avoided: dict[str, float] = {}
        """Hosts whose agent did not answer, and until when it is not called for seats."""

    def unseated(self, instances: Collection[str]) -> dict[str, int]:
        """Return how many requests were sent without a seat to those of these instances that had any."""
        self._unseated = {i: number for i, number in self._unseated.items() if i in instances}
        return dict(self._unseated)

    @asynccontextmanager
    async def seat(
        self, instance: Instance, number: int | None, salt: str, body: Body, record: RequestRecord
    ) -> AsyncIterator[Body]:
        """Take a seat for a request until it ends, restore its conversation there if it was saved, and yield the body
        to send. Afterwards, the slot's conversation can be saved. `number`: slots of the instance; None: the request's
        slots are unknown."""
        record.restored = 0  # of an earlier attempt
        chain, match = chain_of(body) if number else (), None
        request = self._request(instance, number or 0, salt, chain)
        left = LeaveSeat(id=request.id, instance=instance.id)
        try:
            seat = await self._take(instance, request)
            if seat.slot is not None and chain:
                match = self.find(instance, salt, chain, seat.continues)
                record.restored = await self.restore(instance, seat.slot, match) if match is not None else 0
            if record.restored or not salt:  # without a salt, all share the cache
                seat = replace(seat, may_reuse=True)
            yield body if seat.slot is None and not salt else with_seat(body, seat)
            if seat.slot is not None and chain:
                left = replace(left, mark=request.marks[-1], tokens=record.tokens_in or 0)
        finally:
            await self._leave(instance, left)
        if match is not None and record.restored:
            await self.check(instance, match, record.cached or 0, record.tokens_in or 0)

    def _request(self, instance: Instance, number: int, salt: str, chain: Chain) -> TakeSeat:
        known = list(marks(salt, instance.host, instance.function, chain))
        return TakeSeat(
            id=secrets.token_hex(8),
            router=self._view.router,
            instance=instance.id,
            owner=owner_of(salt, instance.host),
            marks=tuple(mark for _length, mark in reversed(known)),
            first=known[-1][0] if known else 1,
            slots=number,
        )

    async def _take(self, instance: Instance, request: TakeSeat) -> Seat:
        """Return the seat of a request once it has one; none, without waiting, if the agent cannot be called: what is
        ready serves."""
        began = time.monotonic()
        host = self._view.fleet.hosts.get(instance.host)
        if host is not None and self._avoided.get(instance.host, 0.0) < began:
            try:
                while time.monotonic() - began < MOST_WAIT_S:
                    seat = await self._agents.take_seat(host, request)
                    if not seat.wait:
                        return seat
            except (AgentUnavailable, AgentRefused) as error:
                self._avoided = {h: until for h, until in self._avoided.items() if until > began}
                self._avoided[instance.host] = time.monotonic() + AVOIDED_S
                log.warning("no_seat", function=instance.function, instance=instance.id, why=str(error))
        self._unseated[instance.id] = self._unseated.get(instance.id, 0) + 1
        return Seat()

    async def _leave(self, instance: Instance, request: LeaveSeat) -> None:
        """End a seat, also while this request is being cancelled. The agent ends those that it does not hear of."""
        host = self._view.fleet.hosts.get(instance.host)
        if host is None or self._avoided.get(instance.host, 0.0) >= time.monotonic():
            return
        leaving = asyncio.create_task(self._call_leave(host, request))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        await asyncio.wait((leaving,))  # cancelled, this request ends at once, and its seat a little later

    async def _call_leave(self, host: HostRecord, request: LeaveSeat) -> None:
        with contextlib.suppress(AgentUnavailable, AgentRefused):
            await self._agents.leave_seat(host, request)

    def find(self, instance: Instance, salt: str, chain: Chain, at_least: int) -> Match | None:
        """Return the saved conversation with the most messages of a request, more than `at_least`; of several, one on
        the instance's own host, then the newest."""
        best: Match | None = None
        for host in self._view.fleet.hosts.values():
            saved = {
                c.mark: c
                for c in sorted(host.contexts, key=lambda c: c.at)
                if (c.function, c.revision) == (instance.function, instance.revision) and c.id not in self._tried
            }
            if not saved:
                continue
            for length, mark in marks(salt, host.name, instance.function, chain):
                if length <= at_least or (best is not None and length < best.length):
                    break
                if mark in saved:
                    match = Match(host, saved[mark], length)
                    best = match if best is None or _is_better(match, best, instance.host) else best
                    break
        return best

    async def restore(self, instance: Instance, slot: int, match: Match) -> int:
        """Restore a conversation into a slot; return the tokens that the slot has then, 0: it was not restored."""
        self._tried[match.context.id] = None
        if len(self._tried) > MOST_TRIED:
            del self._tried[next(iter(self._tried))]
        placed = self._view.instance(instance.id)
        if placed is None:
            return 0
        other = match.host if match.host.name != placed[0].name else None
        request = RestoreContext(
            instance=instance.id,
            slot=slot,
            context=match.context,
            host=other.name if other else "",
            address=other.address if other else "",
            key=self._token.for_context(other.name, match.context.id) if other else "",
        )
        try:
            answer = await self._agents.restore_context(placed[0], request)
        except (AgentUnavailable, AgentRefused) as error:
            log.warning("context_not_restored", function=instance.function, instance=instance.id, why=str(error))
            return 0
        return answer.tokens

    async def check(self, instance: Instance, match: Match, cached: int, prompt: int) -> None:
        """Report a restored conversation that an answer did not use: its engine restores it, and processes the prompt
        all the same."""
        expected = min(match.context.prompt_tokens, prompt)
        placed = self._view.instance(instance.id)
        if cached >= LEAST_REUSED * expected or not prompt or placed is None:
            return
        why = f"an answer found {cached} of {expected} restored tokens in the engine's cache"
        try:
            await self._agents.context_failed(placed[0], ContextFailure(context=match.context, why=why))
        except (AgentUnavailable, AgentRefused) as error:
            log.warning("context_failure_not_reported", function=instance.function, why=str(error))


def _is_better(one: Match, other: Match, host: str) -> bool:
    def rank(match: Match) -> tuple[int, bool, float]:
        return match.length, match.host.name == host, match.context.at

    return rank(one) > rank(other)
