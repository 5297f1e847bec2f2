"""The engine: each line has one result, whatever happens in between."""

import asyncio
import contextlib
import errno
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from cortex.router.batches import engine as engine_module
from cortex.router.batches.batch import Batch, Status
from cortex.router.batches.engine import Bounds, Engine, NoAnswer, Send
from cortex.router.batches.folder import INPUT, Folder
from cortex.router.batches.lines import Answer, Line
from cortex.router.batches.results import RESULTS, Results
from tests.router.batches.batches import add_batch, entry, file_size_limit, ids, text

BOUNDS = Bounds(most_lines=1000, longest_line=10_000, ttl_s=60.0)
WITHIN_S = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder."""
    return Folder(tmp_path / "files")


async def answers(batch: Batch, line: Line, body: bytes) -> Answer:
    """Answer any line."""
    return Answer(status=200, body=b'{"answer": %s}' % json.dumps(line.custom_id).encode())


async def run(folder: Folder, send: Send) -> None:
    """Run the open batches to their ends."""
    await asyncio.wait_for(Engine(folder, send, BOUNDS).run(), WITHIN_S)


def ended(folder: Folder, batch: Batch) -> Batch:
    """Return a batch as it is now."""
    now = folder.batch(batch.key, batch.id)
    assert now is not None
    return now


async def test_each_line_has_one_answer(folder: Folder) -> None:
    batch = add_batch(folder, text(*(entry(f"l{i}") for i in range(50))))

    await run(folder, answers)

    assert sorted(ids(folder.content("k1", batch.output_file))) == sorted(f"l{i}" for i in range(50))
    assert ended(folder, batch).status is Status.COMPLETED
    assert ended(folder, batch).counts.succeeded == 50


async def test_a_line_that_has_a_result_is_not_sent_again_after_a_kill(folder: Folder) -> None:
    batch = add_batch(folder, text(*(entry(f"l{i}") for i in range(60))))
    sent, stopped = Counter[str](), asyncio.Event()

    async def counts(batch: Batch, line: Line, body: bytes) -> Answer:
        sent[line.custom_id] += 1
        if sent.total() == 20:
            stopped.set()
            await asyncio.Event().wait()  # until this process is killed
        return await answers(batch, line, body)

    first = asyncio.create_task(Engine(folder, counts, BOUNDS).run())
    await asyncio.wait_for(stopped.wait(), WITHIN_S)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    before = dict(sent)
    work = folder.work_folder(batch)
    had_results = set(ids(work / "results.jsonl"))
    await run(folder, counts)

    assert had_results
    assert all(sent[id] == before[id] for id in had_results)
    assert sorted(ids(folder.content("k1", batch.output_file))) == sorted(f"l{i}" for i in range(60))


async def test_a_temporary_failure_is_retried_and_a_permanent_one_is_an_error(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("waits"), entry("breaks"), entry("away")))
    tries = Counter[str]()

    async def sends(batch: Batch, line: Line, body: bytes) -> Answer:
        tries[line.custom_id] += 1
        match line.custom_id:
            case "waits" if tries["waits"] == 1:
                return Answer(status=503, body=b"{}")
            case "away" if tries["away"] == 1:
                raise NoAnswer("the router is away")
            case "breaks":
                return Answer(status=502, body=b'{"error": {}}')
        return await answers(batch, line, body)

    await run(folder, sends)

    assert sorted(ids(folder.content("k1", batch.output_file))) == ["away", "waits"]
    (error,) = folder.content("k1", batch.error_file).read_text().splitlines()
    assert json.loads(error)["response"]["status_code"] == 502
    assert tries["breaks"] == 3


async def test_a_revoked_key_fails_the_batch_and_its_lines_say_so(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a"), entry("b")))

    async def refuses(batch: Batch, line: Line, body: bytes) -> Answer:
        return Answer(status=401, body=b"{}", may_retry=False)

    await run(folder, refuses)

    now = ended(folder, batch)
    assert (now.status, now.problems[0].code) == (Status.FAILED, "key_gone")
    assert sorted(ids(folder.content("k1", batch.error_file))) == ["a", "b"]


async def test_a_cancelled_batch_ends_with_a_result_for_each_line(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a"), entry("b")))

    async def cancels(batch: Batch, line: Line, body: bytes) -> Answer:
        folder.request_cancel(batch)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    await run(folder, cancels)

    assert ended(folder, batch).status is Status.CANCELLED
    assert ended(folder, batch).counts.cancelled == 2
    assert sorted(ids(folder.content("k1", batch.error_file))) == ["a", "b"]


async def test_an_expired_batch_ends(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")), expires=1.0)

    await run(folder, answers)

    assert ended(folder, batch).status is Status.EXPIRED


async def test_an_invalid_file_fails_before_a_line_is_sent(folder: Folder) -> None:
    batch = add_batch(folder, text(entry("a")) + b"no\n")

    await run(folder, lambda *_: pytest.fail("a line was sent"))

    assert ended(folder, batch).status is Status.FAILED
    assert ended(folder, batch).problems[0].line == 2


async def test_damaged_results_fail_their_batch_and_no_other(folder: Folder) -> None:
    damaged, whole = add_batch(folder, text(entry("a"))), add_batch(folder, text(entry("b")), key="k2")
    (folder.work_folder(damaged) / RESULTS).write_bytes(b"\0" * 20 + b"\n")

    await run(folder, answers)

    assert [p.code for p in ended(folder, damaged).problems] == ["results_damaged"]
    assert ended(folder, damaged).status is Status.FAILED
    assert ended(folder, whole).status is Status.COMPLETED


async def test_a_file_that_is_gone_fails_its_batch_and_no_other(folder: Folder) -> None:
    lost, whole = add_batch(folder, text(entry("a"))), add_batch(folder, text(entry("b")), key="k2")
    (folder.work_folder(lost) / INPUT).unlink()

    await run(folder, answers)

    assert [p.code for p in ended(folder, lost).problems] == ["input_damaged"]
    assert ended(folder, lost).status is Status.FAILED
    assert ended(folder, whole).status is Status.COMPLETED


async def test_a_file_that_is_damaged_meanwhile_fails_its_batch_with_a_result_for_each_line(folder: Folder) -> None:
    damaged = add_batch(folder, text(entry("a"), entry("b"), entry("c")))
    whole = add_batch(folder, text(entry("d")), key="k2")

    async def damages(batch: Batch, line: Line, body: bytes) -> Answer:
        path = folder.work_folder(damaged) / INPUT
        path.write_bytes(b"\0" * path.stat().st_size)
        return await answers(batch, line, body)

    await run(folder, damages)

    now = ended(folder, damaged)
    assert (now.status, now.problems[0].code) == (Status.FAILED, "input_damaged")
    written = [folder.content("k1", file) for file in (now.output_file, now.error_file)]
    assert sorted(id for path in written if path.exists() for id in ids(path)) == ["a", "b", "c"]
    assert ended(folder, whole).status is Status.COMPLETED


async def test_a_batch_whose_value_is_damaged_fails_with_the_results_that_it_has(folder: Folder) -> None:
    damaged, whole = add_batch(folder, text(entry("a"), entry("b"))), add_batch(folder, text(entry("c")), key="k2")
    (folder.work_folder(damaged) / RESULTS).write_bytes(b'{"custom_id": "a"}\n')
    (folder.path / "keys" / "k1" / f"{damaged.id}.json").write_bytes(b"{")

    await run(folder, answers)

    now = ended(folder, damaged)
    assert (now.status, now.problems[0].code, now.counts.succeeded) == (Status.FAILED, "batch_damaged", 1)
    assert ids(folder.content("k1", now.output_file)) == ["a"]
    assert ended(folder, whole).status is Status.COMPLETED


async def test_the_damaged_value_of_an_input_ends_no_batch(folder: Folder) -> None:
    damaged, whole = add_batch(folder, text(entry("a"))), add_batch(folder, text(entry("b")), key="k2")
    (folder.path / "keys" / "k1" / f"{damaged.input_file}.json").write_bytes(b"{")

    await run(folder, answers)

    assert {ended(folder, b).status for b in (damaged, whole)} == {Status.COMPLETED}


async def test_a_cancelled_batch_waits_after_a_fault_as_any_other(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "FAULT_S", 1.0)  # shortens a pause, and changes no decision
    cancelled, whole = add_batch(folder, text(entry("only"))), add_batch(folder, text(entry("b")), key="k2")
    folder.request_cancel(cancelled)
    add, tried = Results.add, list[float]()

    def broken(results: Results, line: bytes, *, to_errors: bool) -> None:
        if b'"only"' in line:
            tried.append(time.monotonic())
            if len(tried) == 1:
                raise OSError(errno.EIO, "I/O error")  # which no file system here can be made to give
        add(results, line, to_errors=to_errors)

    monkeypatch.setattr(Results, "add", broken)
    await run(folder, answers)

    assert tried[1] - tried[0] >= 1.0
    assert ended(folder, cancelled).status is Status.CANCELLED
    assert ended(folder, whole).status is Status.COMPLETED


async def test_a_failing_disk_interrupts_one_batch_and_loses_no_line(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "FAULT_S", 0.1)  # shortens a pause, and changes no decision
    fails, whole = add_batch(folder, text(entry("a"), entry("b"))), add_batch(folder, text(entry("c")), key="k2")
    add, faults = Results.add, 0

    def broken(results: Results, line: bytes, *, to_errors: bool) -> None:
        nonlocal faults
        if b'"a"' in line and faults < 2:
            faults += 1
            raise OSError(errno.EIO, "I/O error")  # which no file system here can be made to give
        add(results, line, to_errors=to_errors)

    monkeypatch.setattr(Results, "add", broken)
    await run(folder, answers)

    assert faults == 2
    assert sorted(ids(folder.content("k1", fails.output_file))) == ["a", "b"]
    assert {ended(folder, b).status for b in (fails, whole)} == {Status.COMPLETED}


async def test_batches_whose_lines_only_wait_leave_their_places_to_others(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RUNS", 2)
    monkeypatch.setattr(engine_module, "TURN_S", 0.1)  # shortens a pause, and changes no decision
    waiting = [add_batch(folder, text(entry("a")), key=key) for key in ("k1", "k2")]
    last = add_batch(folder, text(entry("b")), key="k3")

    async def sends(batch: Batch, line: Line, body: bytes) -> Answer:
        if batch.key != "k3" and ended(folder, last).status.is_open:
            return Answer(status=429, body=b"{}")
        return await answers(batch, line, body)

    await run(folder, sends)

    assert {ended(folder, b).status for b in (*waiting, last)} == {Status.COMPLETED}


async def test_a_batch_that_was_set_aside_may_be_cancelled_at_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RUNS", 1)
    monkeypatch.setattr(engine_module, "TURN_S", 0.1)  # shortens a pause, and changes no decision
    waits, goes = add_batch(folder, text(entry("a"))), add_batch(folder, text(entry("b")), key="k2")

    async def sends(batch: Batch, line: Line, body: bytes) -> Answer:
        if batch.key == "k1":
            return Answer(status=429, body=b"{}", retry_after_s=3600)
        folder.request_cancel(waits)
        return await answers(batch, line, body)

    await run(folder, sends)

    assert ended(folder, goes).status is Status.COMPLETED
    assert ended(folder, waits).status is Status.CANCELLED


async def test_a_key_whose_lines_wait_delays_no_other_key(folder: Folder) -> None:
    waits, goes = add_batch(folder, text(entry("a")), key="k1"), add_batch(folder, text(entry("b")), key="k2")

    async def sends(batch: Batch, line: Line, body: bytes) -> Answer:
        if batch.key == "k1" and ended(folder, goes).status.is_open:
            return Answer(status=429, body=b"{}")
        return await answers(batch, line, body)

    await run(folder, sends)

    assert {ended(folder, b).status for b in (waits, goes)} == {Status.COMPLETED}


async def test_a_full_disk_loses_no_result(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "FULL_S", 0.1)  # shortens a pause, and changes no decision
    batch = add_batch(folder, text(entry("a"), entry("b")))
    long = Answer(status=200, body=json.dumps({"answer": "x" * 5000}).encode())
    sent = 0

    with contextlib.ExitStack() as limit:

        async def fills(batch: Batch, line: Line, body: bytes) -> Answer:
            nonlocal sent
            sent += 1
            if sent == 1:
                limit.enter_context(file_size_limit(2000))
            else:
                limit.close()
            return long

        await run(folder, fills)

    assert sorted(ids(folder.content("k1", batch.output_file))) == ["a", "b"]
    assert sent == 3
