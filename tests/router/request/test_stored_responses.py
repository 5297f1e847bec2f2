"""Stored responses: what is kept when a client leaves, a cancellation is sent twice, or another router is faster."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from cortex.platform.response_cipher import ResponseCipher
from cortex.platform.response_record import MOST_TURNS, ResponseRecord
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.responses.stored import State
from cortex.router.errors import KeyHoldsTooMuch, ResponseNotFound, TooManyRuns
from cortex.router.http_answer import Client
from cortex.router.request import stored_responses
from cortex.router.request.intake import Body, Intake
from cortex.router.request.stored_responses import MOST_RUNS, Detached, Keeper, Plan, StoredResponses, _Run
from tests.support.incoming import ReadingClient

CIPHER = ResponseCipher("secret")
DONE = b'event: x\ndata: {"type":"response.completed","response":{"status":"completed","output":[]}}\n\n'


def value(status: str) -> bytes:
    return msgspec.json.encode({"response": {"status": status, "output": []}, "items": []})


class Record:
    """Values in memory. `on_runs` is called before a lease is looked up, and `gate` holds back its beginning."""

    ttl_s, most_bytes = 100, 1 << 20

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.on_runs: Callable[[], None] = lambda: None
        self.lease: Callable[[], bool] = lambda: False
        self.gate = asyncio.Event()

    async def read(self, cipher: ResponseCipher, id: str) -> Any:
        return self.values.get(id)

    async def read_list(self, cipher: ResponseCipher, id: str) -> Any:
        return self.values.get(id, [])

    async def runs(self, cipher: ResponseCipher, id: str) -> bool:
        self.on_runs()
        return self.lease()

    async def begin(self, cipher: ResponseCipher, id: str) -> None:
        await self.gate.wait()

    async def write(self, cipher: ResponseCipher, id: str, value: bytes, how: str) -> bool:
        self.values[id] = value
        return True


def stored_in(record: Record) -> StoredResponses:
    return StoredResponses(cast(ResponseRecord, record), Intake(1 << 20))


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is lost is not waited for."""
    monkeypatch.setattr(stored_responses, "RENEWAL_S", 0.0)


async def status_of(responses: StoredResponses) -> str:
    result = await responses.find(CIPHER, "resp_1")
    return str(msgspec.json.decode(result.response)["status"])


async def test_a_client_that_leaves_while_its_answer_is_written_loses_nothing() -> None:
    may_write, written = asyncio.Event(), list[bytes]()

    async def keep(response: bytes) -> None:
        await may_write.wait()
        written.append(response)

    async def serve(keeper: Keeper) -> None:
        keeper.start(200, ())
        keeper.write(DONE)
        try:
            await keeper.end()
        finally:
            await keeper.finish("cancelled")

    task = asyncio.create_task(serve(Keeper(ReadingClient(), keep, lambda size: None)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    may_write.set()
    await asyncio.wait([task])

    assert [msgspec.json.decode(response)["status"] for response in written] == ["completed"]


async def test_a_response_that_ends_while_its_lease_is_looked_up_has_not_failed(no_wait: None) -> None:
    record = Record(resp_1=value("in_progress"))
    record.on_runs = lambda: record.values.update(resp_1=value("completed"))

    assert await status_of(stored_in(record)) == "completed"
    assert record.values["resp_1"] == value("completed")


async def test_a_response_without_a_lease_and_an_end_has_failed(no_wait: None) -> None:
    assert await status_of(stored_in(Record(resp_1=value("in_progress")))) == "failed"


async def test_a_response_whose_lease_is_renewed_meanwhile_runs(no_wait: None) -> None:
    record, looks = Record(resp_1=value("in_progress")), [False, True]
    record.lease = lambda: looks.pop(0)

    assert await status_of(stored_in(record)) == "in_progress"


async def test_a_response_of_this_worker_runs_whatever_redis_says() -> None:
    responses = stored_in(Record(resp_1=value("in_progress")))
    task = asyncio.create_task(asyncio.Event().wait())
    responses._runs[CIPHER.owner, "resp_1"] = _Run(cast("asyncio.Task[None]", task))

    assert await status_of(responses) == "in_progress"
    task.cancel()


async def test_an_answer_over_the_limit_of_its_key_is_passed_on_and_not_stored() -> None:
    written = list[bytes]()

    async def keep(response: bytes) -> None:
        written.append(response)

    def count(size: int) -> None:
        raise KeyHoldsTooMuch(1 << 20)

    client = ReadingClient()
    keeper = Keeper(client, keep, count)
    keeper.start(200, ())
    keeper.write(DONE)
    await keeper.end()
    await keeper.finish("cancelled")

    assert (client.body, client.has_ended, written) == (DONE, True, [])
    assert keeper.failure is not None and "not stored" in keeper.failure.message


async def test_the_bytes_of_an_answer_that_is_recorded_are_counted() -> None:
    sizes = list[int]()

    async def keep(response: bytes) -> None: ...

    keeper = Keeper(ReadingClient(), keep, sizes.append)
    keeper.start(200, ())
    keeper.write(DONE)
    await keeper.end()

    assert sizes == [len(DONE)]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error":{"message":"too long","code":"too_long"}}', "too_long", "too long"),
        (b'{"error":{"message":"too long","code":400}}', "server_error", "too long"),
        (b'{"error":"too long"}', "server_error", "too long"),
        (b'{"error":{"message":null}}', "server_error", "the request ended with status 400"),
        (b'{"detail":[]}', "server_error", "the request ended with status 400"),
        (b"[1]", "server_error", "the request ended with status 400"),
        (b"<html>\xff", "server_error", "the request ended with status 400"),
        (b"", "server_error", "the request ended with status 400"),
    ],
)
async def test_an_error_of_any_form_reaches_the_client_and_is_the_failure(body: bytes, code: str, message: str) -> None:
    async def keep(_: bytes) -> None: ...

    client = ReadingClient()
    keeper = Keeper(client, keep, lambda size: None)

    await keeper.send(400, (), body)

    assert keeper.failure is not None
    assert (keeper.failure.code, keeper.failure.message) == (code, message)
    assert (client.status, client.body) == (400, body)


async def test_a_client_that_does_not_read_is_cut_off_and_the_response_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "STALL_S", 0.01)
    client, resumed = ReadingClient(), asyncio.Event()
    client.is_full = True
    detached = Detached(client)

    detached.on_writable = resumed.set
    await asyncio.wait_for(resumed.wait(), 5)

    assert client.has_aborted
    assert not detached.is_full
    detached.write(b"goes nowhere")


async def test_a_client_that_reads_in_time_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    client, resumed = ReadingClient(), list[bool]()
    detached = Detached(client)

    detached.on_writable = lambda: resumed.append(True)
    assert client.on_writable is not None
    client.on_writable()

    assert resumed == [True]
    assert detached._stall is None


@pytest.mark.parametrize("id", ["conv_1", "resp_", "resp_a/b", "resp_" + "a" * 65, "x"])
async def test_only_the_id_of_a_response_is_deleted_as_one(id: str) -> None:
    record = Record(**{id: value("completed")})

    with pytest.raises(ResponseNotFound):
        await stored_in(record).delete(CIPHER, id, "resp")
    assert id in record.values


async def test_a_second_cancellation_does_not_interrupt_the_end_of_the_first() -> None:
    responses, ended = stored_in(Record()), list[bool]()
    began, may_end = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
            ended.append(True)

    task = asyncio.create_task(run())
    responses._runs[CIPHER.owner, "resp_1"] = _Run(task)
    await began.wait()
    stops = [asyncio.create_task(responses.stop(CIPHER, "resp_1")) for _ in range(2)]
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(*stops)

    assert ended == [True]


async def test_requests_at_the_same_time_begin_no_more_responses_than_a_key_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Plan, "response", lambda *_: b"{}")
    record = Record()
    responses = stored_in(record)
    state = State(store=True, background=True)
    plans = [Plan(state, CIPHER, b"", [], b"[]", cast(Body, None)) for _ in range(MOST_RUNS + 1)]

    begins = [asyncio.create_task(responses.begin(plan)) for plan in plans]
    await asyncio.sleep(0)
    record.gate.set()
    results = await asyncio.gather(*begins, return_exceptions=True)

    assert [type(result) for result in results if result] == [TooManyRuns]


async def test_a_response_counts_between_its_begin_and_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "response", lambda *_: b"{}")
    record = Record()
    record.gate.set()
    responses = stored_in(record)
    state = State(store=True, background=True)
    plans = [Plan(state, CIPHER, b"", [], b"[]", cast(Body, None)) for _ in range(MOST_RUNS)]

    for plan in plans:
        await responses.begin(plan)
    with pytest.raises(TooManyRuns):
        await responses.begin(plans[0])

    async def never(_: Client) -> None:
        await asyncio.Event().wait()

    for plan in plans:
        await responses.answering(plan, never, "r")(ReadingClient())
    assert not responses._beginning
    with pytest.raises(TooManyRuns):
        await responses.begin(plans[0])
    await responses.close()
    await responses.begin(plans[0])


async def test_a_response_whose_begin_fails_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "response", lambda *_: b"{}")
    record = Record()
    responses = stored_in(record)
    plan = Plan(State(store=True, background=True), CIPHER, b"", [], b"[]", cast(Body, None))

    begin = asyncio.create_task(responses.begin(plan))
    await asyncio.sleep(0)
    begin.cancel()
    await asyncio.wait([begin])

    assert not responses._beginning


async def test_a_conversation_at_its_limit_of_turns_is_refused() -> None:
    responses = stored_in(Record(conv_1=[b"{}"] + [b"[]"] * (MOST_TURNS - 1)))

    with pytest.raises(BadRequest, match="begin a new one") as refused:
        await responses._context(CIPHER, State(store=True, conversation="conv_1"))

    assert refused.value.param == "conversation"


async def test_the_id_of_a_conversation_is_no_response() -> None:
    with pytest.raises(ResponseNotFound):
        await stored_in(Record(conv_1=[b"{}"])).find(CIPHER, "conv_1")
