"""Which saved conversation a request gets, and in which slot it may be used."""

import asyncio
from typing import Any, cast

import pytest

from cortex.functions.spec import revision
from cortex.platform.agent_messages import ContextAnswer, ContextFailure, LeaveSeat, RestoreContext, TakeSeat
from cortex.platform.agent_messages import Seat as TakenSeat
from cortex.platform.contexts.seats import Seats
from cortex.platform.fleet import Fleet
from cortex.platform.keys import FleetToken
from cortex.platform.record import HostRecord, Instance, SavedContext
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.fleet_view import FleetView
from cortex.router.request.context_restores import ContextRestores
from cortex.router.request.conversation_chain import chain_of, mark_of
from cortex.router.request_record import RequestRecord
from tests.support.factories import a_function, a_host, a_saved_context, an_instance

MINE, THEIRS = "salt of mine", "salt of theirs"
REVISION = revision(a_function())
INSTANCE = an_instance("i1", host="host-a")
FIRST = b'{"messages":["one"]}'
SECOND = b'{"messages":["one","two","three"]}'


def saved(body: bytes = FIRST, *, salt: str = MINE, host: str = "host-a", **rest: Any) -> SavedContext:
    mark = mark_of(salt, host, "org/model", chain_of(body)[-1])
    return a_saved_context(mark=mark, revision=REVISION, **rest)


class Router:
    """A router worker with hosts, and agents that answer: that of host-a with real seats."""

    def __init__(self, *hosts: HostRecord, tokens: int = 2000, name: str = "r1", seats: Seats | None = None) -> None:
        self.fleet, self.tokens, self.router = Fleet(hosts={h.name: h for h in hosts}), tokens, name
        self.requests: list[tuple[str, RestoreContext]] = []
        self.failures: list[ContextFailure] = []
        self.seats, self.is_away, self.calls = seats or Seats(), False, 0
        self.restores = ContextRestores(cast(FleetView, self), cast(Agents, self), cast(FleetToken, self))

    def instance(self, id: str) -> tuple[HostRecord, Instance]:
        return self.fleet.hosts["host-a"], INSTANCE

    def for_context(self, host: str, context: str) -> str:
        return f"key of {context} on {host}"

    async def take_seat(self, host: HostRecord, request: TakeSeat) -> TakenSeat:
        self.calls += 1
        if self.is_away:
            raise AgentUnavailable("gone")
        return self.seats.take(request, 0.0, None) or TakenSeat(wait=True)

    async def leave_seat(self, host: HostRecord, request: LeaveSeat) -> None:
        self.seats.leave(request)

    async def restore_context(self, host: HostRecord, request: RestoreContext) -> ContextAnswer:
        self.requests.append((host.name, request))
        if self.tokens < 0:
            raise AgentUnavailable("gone")
        return ContextAnswer(tokens=self.tokens)

    async def context_failed(self, host: HostRecord, failure: ContextFailure) -> None:
        self.failures.append(failure)

    async def send(
        self, body: bytes, salt: str = MINE, *, cached: int = 1900, number: int | None = 2
    ) -> tuple[str, int]:
        """Send a request; return its body at the worker, and what was restored."""
        record = RequestRecord("r", "org/model", "org/model", "chat", streams=False, read_s=0)
        async with self.restores.seat(INSTANCE, number, salt, body, record) as sent:
            record.tokens_in, record.cached = 2000, cached
        return bytes(sent).decode().removeprefix(body.decode()[:-1]), record.restored


def host(*contexts: SavedContext, name: str = "host-a") -> HostRecord:
    record = a_host(INSTANCE, contexts=contexts)
    return HostRecord(name=name, address=f"http://{name}:1", contexts=record.contexts, instances=record.instances)


async def test_a_conversation_that_comes_back_is_restored_once_and_its_cache_used() -> None:
    router = Router(host(saved()))

    first, again = await router.send(SECOND), await router.send(SECOND, salt=THEIRS)

    assert first == (',"id_slot":0}', 2000)
    assert again == (',"id_slot":1,"cache_prompt":false}', 0)
    assert [(h, r.instance, r.slot, r.host) for h, r in router.requests] == [("host-a", "i1", 0, "")]


async def test_no_key_gets_the_conversation_of_another() -> None:
    router = Router(host(saved(salt=THEIRS), saved(salt="")))

    assert await router.send(SECOND) == (',"id_slot":0,"cache_prompt":false}', 0)
    assert router.requests == []


async def test_a_request_of_another_beginning_gets_no_conversation() -> None:
    router = Router(host(saved(SECOND), saved(b'{"messages":["else"]}')))

    assert (await router.send(FIRST))[1] == 0
    assert router.requests == []


async def test_another_function_or_revision_has_other_conversations() -> None:
    mark = saved().mark
    contexts = a_saved_context(mark=mark, revision="other"), a_saved_context(mark=mark, function="x", revision=REVISION)

    assert (await Router(host(*contexts)).send(SECOND))[1] == 0


async def test_the_longest_is_taken_then_that_of_the_own_host_then_the_newest() -> None:
    short, old, new = saved(id="a"), saved(SECOND, id="b", at=1.0), saved(SECOND, id="c", at=2.0)
    away = saved(SECOND, host="host-b", id="d", at=9.0)
    longer = b'{"messages":["one","two","three","four"]}'

    own = Router(host(short, old, new), host(away, name="host-b"))
    await own.send(longer)
    other = Router(host(short), host(away, name="host-b"))
    await other.send(longer)

    assert own.requests[0][1].context.id == "c"
    (at, request) = other.requests[0]
    assert (at, request.host, request.address) == ("host-a", "host-b", "http://host-b:1")
    assert request.key == "key of d on host-b"


async def test_a_conversation_that_is_still_in_its_slot_is_not_restored() -> None:
    router = Router(host(saved()))
    router.restores._tried["0" * 16] = None
    await router.send(SECOND)
    router.restores._tried.clear()

    again, restored = await router.send(SECOND)

    assert (again, restored) == (',"id_slot":0}', 0)


async def test_a_failed_restore_is_not_used_and_not_tried_again() -> None:
    for tokens in (0, -1):
        router = Router(host(saved()), tokens=tokens)

        answers = [await router.send(SECOND) for _ in range(2)]

        assert answers == [(',"id_slot":0,"cache_prompt":false}', 0), (',"id_slot":0}', 0)]
        assert len(router.requests) == 1


async def test_without_keys_the_slots_are_everyones_and_without_slots_nothing_changes() -> None:
    router = Router(host(saved(salt="")))

    assert await router.send(SECOND, "", number=None) == ("}", 0)
    assert await router.send(SECOND, "") == (',"id_slot":0}', 2000)


async def test_an_answer_that_did_not_use_the_restored_tokens_is_reported() -> None:
    used, unused = Router(host(saved())), Router(host(saved()))

    await used.send(SECOND, cached=1800)
    await unused.send(SECOND, cached=0)

    assert used.failures == []
    assert [f.why for f in unused.failures] == ["an answer found 0 of 1900 restored tokens in the engine's cache"]


async def test_a_conversation_is_found_in_its_slot_by_every_router_process() -> None:
    one = Router(host())
    other = Router(host(), name="r2", seats=one.seats)

    first, others, again = await one.send(FIRST), await other.send(FIRST, THEIRS), await other.send(SECOND)

    assert [first[0], others[0]] == [',"id_slot":0,"cache_prompt":false}', ',"id_slot":1,"cache_prompt":false}']
    assert again == (',"id_slot":0}', 0)
    assert one.seats.conversations("i1", {}) == one.seats.conversations("i1", {"r1": 0, "r2": 0}) != ()


async def test_without_an_agent_a_request_is_sent_without_a_seat_and_counted() -> None:
    router = Router(host())
    await router.send(FIRST)
    router.is_away = True

    answers = [await router.send(SECOND, salt) for salt in (MINE, "", MINE)]

    assert answers == [(',"cache_prompt":false}', 0), ("}", 0), (',"cache_prompt":false}', 0)]
    assert router.calls == 2  # an agent that did not answer delays one request
    assert router.restores.unseated({"i1"}) == {"i1": 3}
    assert router.seats.conversations("i1", router.restores.unseated({"i1"}) and {"r1": 3}) == ()
    assert router.restores.unseated(()) == {}


async def test_a_request_that_ends_early_leaves_its_seat_without_a_conversation() -> None:
    router = Router(host())
    record = RequestRecord("r", "org/model", "org/model", "chat", streams=False, read_s=0)

    with pytest.raises(asyncio.CancelledError):
        async with router.restores.seat(INSTANCE, 2, MINE, FIRST, record):
            raise asyncio.CancelledError

    assert router.seats.conversations("i1", {}) == ()
    assert (await router.send(SECOND, THEIRS))[0] == ',"id_slot":1,"cache_prompt":false}'
