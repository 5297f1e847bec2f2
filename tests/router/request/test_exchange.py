"""How a request waits, boards and looks its name up again. Workers are never reached: what is shown comes before."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.agent_messages import Accepted, Ensure, Rejected
from cortex.platform.api_keys import LOCAL, Principal, Priority, anonymous
from cortex.platform.fleet import Fleet
from cortex.platform.in_flight import InFlight
from cortex.platform.keys import FleetToken
from cortex.platform.record import Death, HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.platform.scheduling.failures import Failures, Incident
from cortex.platform.scheduling.ledger import Entry
from cortex.platform.scheduling.placement import When
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents
from cortex.router.activation.load_balancing import choose
from cortex.router.activation.probe import Pulse
from cortex.router.activation.proposer import Proposer
from cortex.router.decision_log import DecisionLog
from cortex.router.dialects.chat import stream as chat_stream
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.request import admission, client_answer, exchange
from cortex.router.request.adapters import AdapterLoads
from cortex.router.request.admission import Admission
from cortex.router.request.call import Call
from cortex.router.request.context_restores import ContextRestores
from cortex.router.request.deaths import Deaths
from cortex.router.request.exchange import Exchange, Exchanges
from cortex.router.request.substitutes import Conversation, Substitutes
from cortex.router.request.substitutes import Stage as Turn
from cortex.router.request.upstream import Answer, Broken, EngineFailed, Upstream
from cortex.router.request_record import RequestRecord, RequestRecords
from cortex.router.tracing import Tracing
from tests.support.catalogues import aliases, entry, fake
from tests.support.factories import a_host, an_instance
from tests.support.incoming import ReadingClient


class Stage:
    """A router whose record, agents and workers are values; `file` is its catalogue."""

    def __init__(self, folder: Path, text: str, *instances: Instance) -> None:
        self.file = folder / "models.toml"
        self.file.write_text(text)
        self.directory = LiveCatalogue(self.file)
        self.host = a_host(*instances)
        self.view = FleetView(cast(Registry, self), "router-1")
        self.directory.on_change = self.view.wake
        self.in_flight = InFlight("router-1")
        self.proposals: list[Ensure] = []
        self.no_room: Rejected | None = None
        self.pulse_result, self.breaks, self.error = Pulse.WELL, asyncio.Event(), Broken("closed")
        self.breaks.set()
        self.shared: list[Death] = []
        self.posted: list[tuple[str, int]] = []
        """The instances that requests were sent to, with how many were in flight there."""
        proposer = Proposer(self.view, cast(Agents, self), self.in_flight)
        self.activator = Activator(self.view, cast(Registry, self), proposer, self.in_flight, self.directory, self)
        self.admission = Admission(self.view, self.activator, self.in_flight)
        self.exchanges = Exchanges(
            self.view,
            self.directory,
            self.admission,
            cast(Upstream, self),
            Deaths(self.view, self, cast(Registry, self), DecisionLog("router-1"), "router-1"),
            RequestRecords([]),
            cast(Tracing, self),
            Substitutes(self),
            AdapterLoads(self.view, cast(Agents, self)),
            ContextRestores(self.view, cast(Agents, self), cast(FleetToken, self)),
        )

    # What the router reads and asks.

    async def fleet(self, now: float) -> Fleet:
        return Fleet(hosts={self.host.name: self.host}, at=now)

    async def claim(self, function: str, token: str, ttl_s: float) -> bool:
        return True

    async def release(self, function: str, token: str) -> None:
        return None

    async def ensure(self, host: HostRecord, request: Ensure) -> Accepted | Rejected:
        self.proposals.append(request)
        if self.no_room is not None:
            return self.no_room
        starting = an_instance(
            f"new-{len(self.proposals)}", function=request.function.id, revision=revision(request.function)
        )
        return Accepted(starting.id, starting.state)

    async def pulse(self, instance: Instance) -> Pulse:
        return self.pulse_result

    async def ledger(self) -> dict[str, Entry]:
        return {}

    async def share_death(self, token: str, death: Death) -> None:
        self.shared.append(death)

    def start(self, request_record: object, headers: object) -> dict[str, str]:
        return {}

    async def post(self, instance: Instance, path: str, body: bytes, more: object = None, **_: object) -> Answer:
        self.posted.append((instance.id, self.in_flight.on(instance.id)))
        await self.breaks.wait()
        raise self.error

    # What happens.

    async def shows(self, *instances: Instance) -> None:
        """Have the record say so."""
        self.host = a_host(*instances)
        await self.view.refresh()

    def fails(self, function: str, id: str) -> None:
        """Have the host say that an instance died while it served."""
        failure = Failures().add(self.of(function, id), Incident("it was killed", died=True), 1.0)
        self.host = replace(self.host, failures=(*self.host.failures, failure))

    async def edit(self, text: str) -> None:
        self.file.write_text(text)
        for _ in range(2):
            await self.directory.check()

    def of(self, name: str, id: str = "one") -> Instance:
        target = self.directory.resolve(name)
        return an_instance(id, function=target.function.id, revision=target.revision, ready=1.0)

    @asynccontextmanager
    async def asking(
        self,
        name: str,
        *,
        stream: bool = False,
        caller: Principal = LOCAL,
        client: ReadingClient | None = None,
        conversation: Conversation | None = None,
        read: asyncio.Event | None = None,
        refuses: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[tuple[asyncio.Task[None], ReadingClient]]:
        """Send a request; what it says to its client so far. A request for another target than the first is read once
        `read` is set. Reading it fails while it `refuses`."""

        async def parse(target: Target) -> Call:
            if refuses():
                raise BadRequest("this model calls no tools", "tool_choice")
            if target is not first and read is not None:
                await read.wait()
            reply = chat_stream.Reply(id="c", model=target.function.id)
            return Call(
                dialect="chat",
                path="/v1/chat/completions",
                body=b'{"model":"%s"}' % target.function.id.encode(),
                reply=reply,
                streams=reply if stream else None,
            )

        sent, first = client or ReadingClient(), self.directory.resolve(name)
        call = await parse(first)
        exchange = Exchange(self.exchanges, first, call, "r", caller, name=name, parse=parse, conversation=conversation)
        task = asyncio.ensure_future(exchange(sent))
        try:
            yield task, sent
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.activator.close()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110 (no event tells)
                await asyncio.sleep(0)


async def ended(task: "asyncio.Task[None]") -> None:
    await asyncio.wait_for(task, 5)


async def test_a_request_is_in_flight_from_the_step_in_which_its_instance_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report between choosing and boarding would say that nothing is in flight on what may drain."""
    stage = Stage(tmp_path, fake("f"))
    gaps: list[int] = []

    def watched(*args: Any) -> Instance | None:
        instance = choose(*args)
        if instance is not None:
            asyncio.get_running_loop().call_soon(lambda: gaps.append(stage.in_flight.on(instance.id)))
        return instance

    monkeypatch.setattr(admission, "choose", watched)
    async with stage.asking("f", stream=True) as (task, _):
        await stage.until(lambda: bool(stage.proposals))
        await stage.shows(stage.of("f"))
        await ended(task)

    assert gaps
    assert set(gaps) == {1}
    assert stage.posted[0] == ("one", 1)


async def test_what_broke_is_tried_twice_more_and_refused_and_nothing_is_started_beside_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f"))
    await stage.shows(stage.of("f"))

    async with stage.asking("f") as (task, sent):
        await ended(task)

    assert (sent.status, len(stage.posted), stage.proposals) == (502, 3, [])
    assert stage.in_flight.counts() == ({}, {})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_was_alone_on_a_dying_worker_is_not_sent_again(tmp_path: Path, stream: bool) -> None:
    stage = Stage(tmp_path, fake("f"))
    stage.pulse_result = Pulse.GONE
    await stage.shows(stage.of("f", "one"), stage.of("f", "two"))
    stage.fails("f", "one")
    await stage.view.refresh()

    async with stage.asking("f", stream=stream) as (task, sent):
        await ended(task)

    assert (sent.status, len(stage.posted)) == (502, 1)
    assert [death.alone for death in stage.shared] == [True]


async def test_requests_on_a_dying_worker_together_are_sent_again_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f"))
    stage.pulse_result = Pulse.GONE
    stage.breaks.clear()
    await stage.shows(stage.of("f", "a"))
    async with stage.asking("f") as (first, one), stage.asking("f") as (second, other):
        await stage.until(lambda: len(stage.posted) == 2)
        for name in "abc":
            stage.fails("f", name)
        stage.host = replace(stage.host, instances=tuple(stage.of("f", name) for name in "abc"))
        await stage.view.refresh()

        stage.breaks.set()
        await ended(first)
        await ended(second)

    assert [one.status, other.status] == [502, 502]
    assert [instance for instance, _ in stage.posted] == ["a", "a", "b", "c"]


async def test_what_killed_two_workers_alone_is_refused_for_a_while_and_others_are_served(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f"))
    stage.pulse_result = Pulse.GONE
    await stage.shows(*(stage.of("f", n) for n in "abcd"))
    for name in "abcd":
        stage.fails("f", name)
    await stage.view.refresh()
    statuses = []
    for _ in range(3):
        async with stage.asking("f") as (task, sent):
            await ended(task)
        statuses.append(sent.status)

    assert statuses == [502, 502, 503]
    assert b"suspected_request" in sent.body
    assert len(stage.posted) == 2


async def test_a_request_that_two_engines_in_a_row_answer_that_they_are_dead_counts_as_the_cause(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, fake("f"))
    stage.error = EngineFailed("its engine has failed")
    await stage.shows(*(stage.of("f", n) for n in "abcd"))
    statuses = []
    for _ in range(3):
        async with stage.asking("f") as (task, sent):
            await ended(task)
        statuses.append((sent.status, len(stage.posted)))

    assert statuses == [(502, 2), (502, 4), (503, 4)]
    assert [death.alone for death in stage.shared] == [True, True]


class SettlingClient(ReadingClient):
    """A client whose limits are settled before a whole answer is sent: it waits for a stream to begin, in vain."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = asyncio.Event()

    async def send(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), 0.1)
        await super().send(status, headers, body)

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        super().start(status, headers)
        self._begun.set()


async def test_no_keep_alive_begins_a_stream_while_an_error_is_about_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_answer, "FIRST_KEEP_ALIVE_S", 0.02)
    stage = Stage(tmp_path, fake("f"))
    stage.pulse_result = Pulse.GONE
    await stage.shows(stage.of("f"))
    stage.fails("f", "one")
    await stage.view.refresh()

    async with stage.asking("f", stream=True, client=SettlingClient()) as (task, sent):
        await ended(task)

    assert (sent.status, sent.has_ended) == (502, True)


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_the_stop_of_the_router_cancels_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool, leaves: bool
) -> None:
    monkeypatch.setattr(client_answer, "FIRST_KEEP_ALIVE_S", 0.0)
    monkeypatch.setattr(exchange, "stopping", lambda: True)
    stage = Stage(tmp_path, fake("f"))
    async with stage.asking("f", stream=stream) as (task, sent):
        await stage.until(lambda: bool(sent.body) if stream else bool(stage.proposals))
        before = sent.body
        sent.is_lost = leaves
        task.cancel()
        await asyncio.wait((task,))
        (record,) = stage.exchanges.request_records.find("r")

    assert task.cancelled() is leaves
    assert (b"this router stops" in sent.body.removeprefix(before)) is not leaves
    assert sent.has_ended is not leaves
    assert record.fault == ("" if leaves else "no_capacity")


async def test_what_waits_for_a_slot_of_an_instance_that_is_closed_waits_as_for_a_start(tmp_path: Path) -> None:
    stage = Stage(tmp_path, entry("f", engine="llamacpp", source="/w.gguf", target_concurrency=1))
    stage.breaks.clear()
    busy = replace(stage.of("f", "busy"), server="llama-server")
    await stage.shows(busy)
    async with stage.asking("f") as (first, _), stage.asking("f") as (second, _):
        await stage.until(lambda: stage.in_flight.on("busy") == 2)
        await stage.shows(replace(busy, state=State.DRAINING, yields_to="g"))
        first.cancel()
        await stage.until(lambda: stage.in_flight.waiting_for("f") == 1)
        left = stage.in_flight.on("busy")
        await stage.until(lambda: bool(stage.proposals))
        stage.breaks.set()
        await stage.shows(replace(stage.of("f", "next"), server="llama-server"))
        await ended(second)

    assert left == 0
    assert [instance for instance, _ in stage.posted] == ["busy", "next", "next", "next"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_for_an_entry_that_is_edited_waits_for_its_new_revision(tmp_path: Path, stream: bool) -> None:
    stage = Stage(tmp_path, fake("f"))
    async with stage.asking("f", stream=stream) as (task, _):
        await stage.until(lambda: len(stage.proposals) == 1)
        await stage.edit(fake("f", "--changed"))
        await stage.until(lambda: len(stage.proposals) == 2)
        await stage.shows(stage.of("f", "edited"))
        await ended(task)

    assert [a.function.args for a in stage.proposals] == [(), ("--changed",)]
    assert stage.posted[0][0] == "edited"


@pytest.mark.parametrize("operator", [True, False])
async def test_a_held_stream_says_why_no_host_has_room_until_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: bool
) -> None:
    monkeypatch.setattr(client_answer, "FIRST_KEEP_ALIVE_S", 0.0)
    monkeypatch.setattr(client_answer, "KEEP_ALIVE_S", 0.0)
    stage = Stage(tmp_path, fake("f"))
    stage.no_room = Rejected("foreign processes hold 100964 MiB", When.LATER)
    caller = LOCAL if operator else anonymous()
    async with stage.asking("f", stream=True, caller=caller) as (task, sent):
        await stage.until(lambda: b"no room" in sent.body)
        held = sent.body
        stage.no_room = None
        await stage.shows(replace(stage.of("f"), state=State.STARTING))
        await stage.until(lambda: sent.body.endswith(b": waiting\n\n"))
        await stage.shows(stage.of("f"))
        await ended(task)

    assert b": no room for 'f' now" in held
    assert (b"host-a: foreign processes hold 100964 MiB" in held) is operator


async def test_a_request_for_a_name_that_is_removed_is_refused_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f") + fake("g"))
    async with stage.asking("f") as (task, sent):
        await stage.until(lambda: bool(stage.proposals))
        await stage.edit(fake("g"))
        await ended(task)

    assert (sent.status, b"model_not_found" in sent.body, len(stage.proposals)) == (404, True, 1)
    assert stage.in_flight.counts() == ({}, {})


async def test_a_request_for_an_alias_that_is_moved_goes_where_it_leads_now(tmp_path: Path) -> None:
    both = fake("f") + fake("g")
    stage = Stage(tmp_path, both + aliases({"a": "f"}))
    async with stage.asking("a") as (task, _):
        await stage.until(lambda: bool(stage.proposals))
        waited_for = stage.in_flight.counts()[1]
        await stage.edit(both + aliases({"a": "g"}))
        await stage.until(lambda: len(stage.proposals) == 2)
        waits_for = stage.in_flight.counts()[1]
        await stage.shows(stage.of("g"))
        await ended(task)

    assert (waited_for, waits_for) == ({"f": 1}, {"g": 1})
    assert stage.posted[0][0] == "one"


async def test_edits_do_not_start_the_start_clock_anew(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f", start_timeout_s=0.5))
    async with stage.asking("f") as (task, sent):
        edits = 0
        while not task.done():
            edits += 1
            assert edits < 200
            await stage.edit(fake("f", f"--n{edits}", start_timeout_s=0.5))
            await asyncio.wait((task,), timeout=0.05)

    assert (sent.status, b"was not ready after 0.5 s" in sent.body) == (503, True)
    assert edits > 1


async def test_who_lets_others_go_first_counts_as_waiting_and_has_the_start_clock(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f", start_timeout_s=0.3))
    stage.admission.gate.join("f", Priority.HIGH)
    async with stage.asking("f") as (task, sent):
        await stage.until(lambda: bool(stage.proposals))
        await stage.shows(stage.of("f"))
        await asyncio.sleep(0)
        waiting = stage.in_flight.waiting_for("f")
        await ended(task)

    assert (waiting, stage.posted) == (1, [])
    assert (sent.status, b"was not ready after 0.3 s" in sent.body) == (503, True)


# A request that breaks before it is served


class BrokenTracing:
    """Tracing that fails on what a caller sent."""

    def __init__(self, request_records: RequestRecords) -> None:
        self._request_records = request_records
        self.live: list[RequestRecord] = []

    def start(self, request_record: RequestRecord, headers: object) -> dict[str, str]:
        self.live = self._request_records.live()
        raise ValueError("a header that means nothing")


async def test_a_request_whose_trace_cannot_begin_is_not_listed_as_under_way() -> None:
    ended: list[RequestRecord] = []
    request_records = RequestRecords([ended.extend])
    tracing = BrokenTracing(request_records)
    nothing = cast(Any, None)
    parts = (request_records, cast(Any, tracing), nothing, nothing)
    restores = ContextRestores(nothing, nothing, nothing)
    exchanges = Exchanges(nothing, nothing, nothing, nothing, nothing, *parts, restores)
    target = Target(Function(id="org/model", engine=Engine.FAKE), "revision")
    call = Call(dialect="chat", path="/v1/chat/completions", body=b"{}", reply=nothing)
    exchange = Exchange(exchanges, target, call, "req_1", anonymous())

    with pytest.raises(ValueError, match="means nothing"):
        await exchange(ReadingClient())

    request_records.settle()

    assert tracing.live == [exchange.request_record]
    assert request_records.live() == []
    assert ended == [exchange.request_record]


# Substitutes.

CHAT = fake("big") + fake("small") + '[aliases]\nchat = { use = "big", on_cold = { use = "small" } }\n'
FIRST = Conversation(Turn.FIRST, "k")


async def test_a_request_that_its_substitutes_worker_died_of_does_not_go_on_to_its_own_function(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CHAT)
    stage.pulse_result = Pulse.GONE
    await stage.shows(stage.of("small", "small-1"))
    stage.fails("small", "small-1")
    await stage.view.refresh()

    async with stage.asking("chat", conversation=FIRST) as (task, sent):
        await ended(task)

    assert sent.status == 502
    assert [instance for instance, _ in stage.posted] == ["small-1"]


async def test_a_request_that_killed_two_workers_of_the_substitute_waits_for_its_own_function(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CHAT)
    stage.pulse_result = Pulse.GONE
    for number in range(2):
        await stage.shows(stage.of("small", f"small-{number}"))
        stage.fails("small", f"small-{number}")
        await stage.view.refresh()
        async with stage.asking("chat", conversation=FIRST) as (task, _):
            await ended(task)
    await stage.shows(stage.of("small", "small-2"))

    async with stage.asking("chat", conversation=FIRST) as (task, _):
        await stage.until(lambda: bool(stage.in_flight.waiting_for("big")))

    assert [instance for instance, _ in stage.posted] == ["small-0", "small-1"]


async def test_no_stream_begins_while_its_request_is_read_for_the_substitute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_answer, "FIRST_KEEP_ALIVE_S", 0.0)
    stage, read = Stage(tmp_path, CHAT), asyncio.Event()
    stage.breaks.clear()
    await stage.shows(stage.of("small", "small-1"))

    async with stage.asking("chat", stream=True, conversation=FIRST, read=read) as (_, sent):
        for _ in range(3):
            await asyncio.sleep(0)
        status = sent.status
        read.set()
        await stage.until(lambda: bool(sent.status and stage.posted))

    assert status == 0
    assert (sent.headers[b"x-cortex-function"], sent.headers[b"x-cortex-substitute"]) == (b"small", b"small")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_for_a_model_that_was_unknown_is_read_again_after_its_start(
    tmp_path: Path, stream: bool
) -> None:
    stage = Stage(tmp_path, fake("f"))
    known = lambda: stage.view.profile("f") is not None  # noqa: E731

    async with stage.asking("f", stream=stream, refuses=known) as (task, sent):
        await stage.until(lambda: bool(stage.proposals))
        stage.host = replace(a_host(stage.of("f")), models={"f": ModelProfile()})
        await stage.view.refresh()
        await ended(task)

    assert (sent.status, stage.posted) == (400, [])
    assert b"this model calls no tools" in sent.body


async def test_a_request_for_a_known_model_is_read_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, fake("f"))
    stage.host = replace(a_host(), models={"f": ModelProfile()})
    await stage.view.refresh()
    reads = itertools.count()

    async with stage.asking("f", refuses=lambda: next(reads) > 0) as (task, sent):
        await stage.until(lambda: bool(stage.proposals))
        stage.host = replace(a_host(stage.of("f")), models={"f": ModelProfile()})
        await stage.view.refresh()
        await ended(task)

    assert sent.status == 502
