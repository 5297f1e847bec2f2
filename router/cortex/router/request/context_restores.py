"""Restores the saved conversation of a request into its slot, before the request is sent.

A router restores only into a slot that it alone assigns, and only what the caller's own salt marks. The agent of the
instance's host decides whether the conversation fits. Whatever fails, the request is sent as without.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.agent_messages import ContextFailure, RestoreContext
from cortex.platform.keys import FleetToken
from cortex.platform.record import HostRecord, Instance, SavedContext
from cortex.router.activation.agents import AgentRefused, Agents, AgentUnavailable
from cortex.router.fleet_view import FleetView
from cortex.router.request.conversation_chain import Chain, chain_of, mark_of, marks
from cortex.router.request.prompt_cache import SlotTable, seated
from cortex.router.request_record import RequestRecord

log = structlog.get_logger()

MOST_TRIED = 1000
LEAST_REUSED = 0.5
"""Part of the last prompt that an answer must have found in the cache, or the restore has failed."""


class Match(Struct, frozen=True):
    """A saved conversation that a request continues."""

    host: HostRecord
    context: SavedContext
    length: int
    """Number of the request's messages that it has."""


class ContextRestores:
    """The restores of one router worker."""

    def __init__(self, slots: SlotTable, view: FleetView, agents: Agents, token: FleetToken) -> None:
        self.slots, self._view, self._agents, self._token = slots, view, agents, token
        self._tried: dict[str, None] = {}
        """Ids that were tried: they are gone, and the record may not know it yet."""

    @asynccontextmanager
    async def seat(
        self, instance: Instance, number: int | None, salt: str, body: bytes, company: int, record: RequestRecord
    ) -> AsyncIterator[bytes]:
        """Assign a slot to a request until it ends (see `SlotTable.seat`), restore its conversation there if it was
        saved, and yield the body to send. Afterwards, the slot's conversation can be saved."""
        chain, match = chain_of(body) if number else (), None
        with self.slots.seat(instance.id, number, salt, body, company, chain) as seat:
            if seat.slot is not None and chain:
                match = self.find(instance, salt, chain, seat.continues)
                record.restored = await self.restore(instance, seat.slot, match) if match is not None else 0
            if record.restored:
                seat = self.slots.restored(instance.id, seat, salt)
            if not salt:  # all share the cache
                seat = replace(seat, may_reuse=True)
            yield body if seat.slot is None and not salt else seated(body, seat)
            if chain:
                mark = mark_of(salt, instance.host, instance.function, chain[-1])
                self.slots.served(instance.id, seat, salt, chain[-1], mark, record.tokens_in or 0)
        if match is not None and record.restored:
            await self.check(instance, match, record.cached or 0, record.tokens_in or 0)

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
