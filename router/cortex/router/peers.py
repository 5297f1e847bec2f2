"""Asking all router workers something only each of them knows: its live requests, its last hour.

Whoever asks answers for itself and puts the question into the record; the bell tells the others, who answer into a
list that expires. It waits for as many answers as there are workers that report, and never longer than half a
second: a worker that just died is not waited for long.
"""

import asyncio
import contextlib
import secrets
import time
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.cancel import cancelled
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.fleet_view import FleetView
from cortex.router.metrics.traffic import Bucket, Traffic, together
from cortex.router.request.request_record import RequestRecords, RequestSummary, summary

PATIENCE_S = 0.5
FRESH_S = 1.0
"""An answer about traffic serves everybody who asks within so long."""


class PeerQuestion(Struct, frozen=True):
    """`requests`, `cancel` (of a request id), `find` (one) or `traffic`."""

    about: str
    id: str = ""
    asker: str = ""
    who: str | None = None
    """Only requests of the key with this name; "" of callers without one, None of all."""


class PeerAnswer(Struct, frozen=True, kw_only=True):
    """What one worker says."""

    requests: list[RequestSummary] = []
    cancelled: int = 0
    hour: list[Bucket] = []
    lately: dict[str, Bucket] = {}


class LocalAnswers(Protocol):
    """What a worker answers from."""

    id: str
    journeys: RequestRecords
    traffic: Traffic


class Peers:
    """Asks, and answers. `async with` is not needed: what is under way ends with `close()`."""

    def __init__(self, registry: Registry, view: FleetView, knows: LocalAnswers) -> None:
        self._registry, self._view, self._knows = registry, view, knows
        self._answering: set[asyncio.Task[None]] = set()
        self._traffic: tuple[float, tuple[list[Bucket], dict[str, Bucket]]] = (float("-inf"), ([], {}))
        view.on_question = self._asked

    async def close(self) -> None:
        """Answer no more."""
        await cancelled(self._answering)

    async def requests(self) -> list[RequestSummary]:
        """Return the live requests of all workers, oldest first."""
        found = [t for r in await self._all(PeerQuestion("requests")) for t in r.requests]
        return sorted(found, key=lambda t: t.at)

    async def find(self, id: str) -> list[RequestSummary]:
        """Return the requests of an id, live ones and the last few that are over, wherever they were served."""
        found = [t for r in await self._all(PeerQuestion("find", id)) for t in r.requests]
        return sorted(found, key=lambda t: (t.phase == "over", -t.at))

    async def cancel(self, id: str, who: str) -> int:
        """Cancel one key's requests of an id, wherever they are served; return how many. Clients choose ids, so the
        keys of two tenants may use the same one."""
        return sum(r.cancelled for r in await self._all(PeerQuestion("cancel", id, who=who)))

    async def traffic(self) -> tuple[list[Bucket], dict[str, Bucket]]:
        """Return the last hour of all workers together, and per function the last five minutes."""
        read, known = self._traffic
        if time.monotonic() - read > FRESH_S:
            known = together((r.hour, r.lately) for r in await self._all(PeerQuestion("traffic")))
            self._traffic = (time.monotonic(), known)
        return known

    async def _all(self, question: PeerQuestion) -> list[PeerAnswer]:
        replies = [self._reply(question)]
        others = len(self._view.fleet.routers.keys() - {self._knows.id})
        if not others:
            return replies
        token = secrets.token_hex(8)
        with contextlib.suppress(RecordUnavailable, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                asked = replace(question, asker=self._knows.id)
                await self._registry.ask(token, msgspec.json.encode(asked))
                while others and (answer := await self._registry.next_answer(token, PATIENCE_S)):
                    others -= 1
                    with contextlib.suppress(msgspec.MsgspecError):
                        replies.append(msgspec.json.decode(answer, type=PeerAnswer))
        return replies

    def _asked(self, token: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(self._answer(token))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, token: str) -> None:
        with contextlib.suppress(RecordUnavailable, msgspec.MsgspecError):
            raw = await self._registry.question(token)
            question = msgspec.json.decode(raw, type=PeerQuestion) if raw else None
            if question is not None and question.asker != self._knows.id:
                await self._registry.answer(token, msgspec.json.encode(self._reply(question)))

    def _reply(self, question: PeerQuestion) -> PeerAnswer:
        journeys, router = self._knows.journeys, self._knows.id
        match question.about:
            case "requests":
                return PeerAnswer(requests=[summary(j, router) for j in journeys.live()])
            case "find":
                return PeerAnswer(requests=[summary(j, router) for j in journeys.find(question.id)])
            case "cancel":
                return PeerAnswer(cancelled=journeys.cancel(question.id, question.who))
            case "traffic":
                hour, lately = self._knows.traffic.since(time.time())
                return PeerAnswer(hour=hour, lately=lately)
        return PeerAnswer()
