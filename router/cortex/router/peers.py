"""Queries all router workers for data that each holds itself: live requests and the last hour's traffic.

The querying worker answers for itself and writes the question to the record. The bell notifies the others, which append
their answers to a list that expires. The query waits for one answer per reporting worker, for at most `PATIENCE_S`,
because a worker may just have died.
"""

import asyncio
import contextlib
import secrets
import time

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.cancel import cancel_tasks
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.router.api_types import RequestSummary
from cortex.router.fleet_view import FleetView
from cortex.router.metrics.traffic import Bucket, Traffic, merge
from cortex.router.request_record import RequestRecords, summary

PATIENCE_S = 2.0
FRESH_S = 1.0
"""How long traffic data is cached."""


class PeerQuestion(Struct, frozen=True):
    """A query `about` `requests`, `find` or `cancel` (of a request id), or `traffic`."""

    about: str
    id: str = ""
    asker: str = ""
    who: str | None = None
    """Only requests of the key with this name; "" for callers without a key, None for all."""


class PeerAnswer(Struct, frozen=True, kw_only=True):
    """One worker's answer."""

    requests: list[RequestSummary] = []
    cancelled: int = 0
    hour: list[Bucket] = []
    lately: dict[str, Bucket] = {}


class Peers:
    """Queries the other workers and answers their queries. `close()` ends answers in progress."""

    def __init__(self, registry: Registry, view: FleetView, request_records: RequestRecords, traffic: Traffic) -> None:
        self._registry, self._view = registry, view
        self._request_records, self._own_traffic = request_records, traffic
        self._answering: set[asyncio.Task[None]] = set()
        self._traffic: tuple[float, tuple[list[Bucket], dict[str, Bucket]]] = (float("-inf"), ([], {}))
        view.on_question = self._on_question

    async def close(self) -> None:
        """Cancel the answers in progress."""
        await cancel_tasks(self._answering)

    async def requests(self) -> list[RequestSummary]:
        """Return the live requests of all workers, oldest first."""
        summaries = [s for a in await self._all(PeerQuestion("requests")) for s in a.requests]
        return sorted(summaries, key=lambda t: t.at)

    async def find(self, id: str) -> list[RequestSummary]:
        """Return the live and recent requests with an id, from all workers."""
        summaries = [s for a in await self._all(PeerQuestion("find", id)) for s in a.requests]
        return sorted(summaries, key=lambda t: (t.phase == "over", -t.at))

    async def cancel(self, id: str, who: str) -> int:
        """Cancel one key's requests with an id on all workers; return how many. Clients choose ids, so keys of several
        tenants may use the same one."""
        return sum(a.cancelled for a in await self._all(PeerQuestion("cancel", id, who=who)))

    async def traffic(self) -> tuple[list[Bucket], dict[str, Bucket]]:
        """Return the last hour of all workers, and per function the last five minutes."""
        read_at, traffic = self._traffic
        if time.monotonic() - read_at > FRESH_S:
            traffic = merge((a.hour, a.lately) for a in await self._all(PeerQuestion("traffic")))
            self._traffic = (time.monotonic(), traffic)
        return traffic

    async def _all(self, question: PeerQuestion) -> list[PeerAnswer]:
        answers = [self._local_answer(question)]
        others = len(self._view.fleet.routers.keys() - {self._view.router})
        if not others:
            return answers
        token = secrets.token_hex(8)
        with contextlib.suppress(RecordUnavailable, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                query = replace(question, asker=self._view.router)
                await self._registry.ask(token, msgspec.json.encode(query))
                while others and (answer := await self._registry.next_answer(token, PATIENCE_S)):
                    others -= 1
                    with contextlib.suppress(msgspec.MsgspecError):
                        answers.append(msgspec.json.decode(answer, type=PeerAnswer))
        return answers

    def _on_question(self, token: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(self._answer(token))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, token: str) -> None:
        with contextlib.suppress(RecordUnavailable, msgspec.MsgspecError):
            raw = await self._registry.question(token)
            question = msgspec.json.decode(raw, type=PeerQuestion) if raw else None
            if question is not None and question.asker != self._view.router:
                await self._registry.answer(token, msgspec.json.encode(self._local_answer(question)))

    def _local_answer(self, question: PeerQuestion) -> PeerAnswer:
        records, router = self._request_records, self._view.router
        match question.about:
            case "requests":
                return PeerAnswer(requests=[summary(r, router) for r in records.live()])
            case "find":
                return PeerAnswer(requests=[summary(r, router) for r in records.find(question.id)])
            case "cancel":
                return PeerAnswer(cancelled=records.cancel(question.id, question.who))
            case "traffic":
                hour, lately = self._own_traffic.since(time.time())
                return PeerAnswer(hour=hour, lately=lately)
        return PeerAnswer()
