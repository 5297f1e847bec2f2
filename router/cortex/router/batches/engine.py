"""Runs the open batches of a folder until none is left.

A line is sent to the router like any request, and its answer is appended to the results at once. If the process is
killed, the lines in flight are sent again by the next one; a line that has a result is never sent again. Only the
folder records which lines have results.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from cortex.router.batches import lines as reading
from cortex.router.batches.batch import Batch, Counts, Form, Problem, Status, lost_batch
from cortex.router.batches.fairness import MOST_IN_ALL, Candidate, Pace, Progress, next_candidate
from cortex.router.batches.folder import INPUT, Damaged, Folder, is_damage, is_full, new_id, offsets
from cortex.router.batches.lines import Again, Answer, KeyGone, Line
from cortex.router.batches.results import Results

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")

LOOK_S = 0.25
"""How often new batches and cancels are looked for."""
WRITE_S = 1.0
"""How often progress is written, and results are synced."""
FULL_S = 10.0
"""Pause after a write to a full disk."""
RUNS_OF_KEY, RUNS = 2, 16
"""Maximum numbers of batches that run at a time, since their lines are in memory; the oldest run first."""
TURN_S = 60.0
"""After this time without a result, and with no line in flight, a batch gives its place to one that waits for it."""
NO_KEY = "the API key is revoked, has expired or may not make requests"
FAULT_S = 60.0
"""Pause of one batch after an unexpected fault, of its files or of this program."""

Send = Callable[[Batch, Line, bytes], Awaitable[Answer]]
"""Sends a line's body for the key of its batch. Raises NoAnswer."""


class Unusable(Exception):
    """A batch cannot run, and fails: its file is invalid or damaged, or its results are."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(problems[0].message)
        self.problems = problems


class NoAnswer(Exception):
    """The router cannot be reached, or the connection broke."""


class Bounds(Struct, frozen=True, kw_only=True):
    """The limits of files, from the settings."""

    most_lines: int
    longest_line: int
    """Bytes."""
    ttl_s: float


class Run:
    """One batch that this process runs."""

    def __init__(self, batch: Batch, results: Results, lines: list[Line], input: int, counts: Counts) -> None:
        self.batch, self.results = replace(batch, counts=counts), results
        self._input = input
        self.pending: dict[str, deque[Line]] = {}
        for line in lines:
            self.pending.setdefault(line.model, deque()).append(line)
        self.tries: Counter[int] = Counter()
        self.tasks: set[asyncio.Task[None]] = set()
        self.progress = Progress()
        self.written_at = 0.0
        self.active_at = time.monotonic()
        """When it got its place, or its last result."""
        self.fault: Exception | None = None
        """An unexpected fault, after which it is set aside."""
        self.why = batch.waits_for
        self.ending = ""
        """Why the remaining lines are not sent: cancelled, expired or failed; empty while they are."""

    def body(self, line: Line) -> bytes:
        """Return the body of a line, from the file. Raises Unusable."""
        try:
            return reading.body_of(os.pread(self._input, line.size, line.at))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unusable(_damaged("input", error, line.number)) from None

    def fail(self, *problems: Problem) -> None:
        """End it as failed, with a result for each remaining line."""
        self.ending = "failed"
        self.batch = replace(self.batch, problems=problems)

    def give_back(self, line: Line) -> None:
        """Put back a line that is to be sent again."""
        self.pending.setdefault(line.model, deque()).appendleft(line)

    def take(self, model: str) -> Line:
        """Return the next line of a model."""
        queue = self.pending[model]
        line = queue.popleft()
        if not queue:
            del self.pending[model]
        return line

    def close(self) -> None:
        """Close the files."""
        self.results.close()
        os.close(self._input)


class Engine:
    """The open batches of one folder. Only one process may run it at a time."""

    def __init__(self, folder: Folder, send: Send, bounds: Bounds) -> None:
        self._folder, self._send, self._bounds = folder, send, bounds
        self._runs: dict[str, Run] = {}
        self._paces: dict[tuple[str, str], Pace] = {}
        self._last_sent: dict[str, float] = {}
        self._aside: dict[str, float] = {}
        """Batches that were set aside for others, and when they may run again, unless they are cancelled."""
        self._faulty: dict[str, float] = {}
        """Batches that were set aside after a fault, and when they may run again."""
        self._resumes_at = 0.0
        self._looked_at = 0.0

    async def run(self) -> None:
        """Run until no batch is open. Raises OSError for a folder that cannot be read."""
        try:
            while await self._look() or self._runs:
                self._dispatch()
                tasks = {t for run in self._runs.values() for t in run.tasks}
                if tasks:
                    await asyncio.wait(tasks, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(LOOK_S)
                for run in list(self._runs.values()):
                    await self._advance(run)
        finally:
            for run in list(self._runs.values()):
                await self._set_aside(run)

    async def _look(self) -> bool:
        """Start new batches; return whether any is open."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S and self._runs:
            return True
        self._looked_at = now
        names = await asyncio.to_thread(self._folder.open_batches)
        ids = {id for _, id in names}
        self._aside = {id: at for id, at in self._aside.items() if id in ids}
        self._faulty = {id: at for id, at in self._faulty.items() if id in ids and now < at}
        names.sort(key=lambda name: self._aside.get(name[1], 0.0))  # those that had no turn yet first, by age
        for key, id in names:
            if id in self._runs or id in self._faulty or now < self._resumes_at:
                continue
            if not self._folder.is_cancelled(key, id) and (
                now < self._aside.get(id, 0.0) or not await self._has_place(key)
            ):
                continue
            run = await self._contain(id, self._begin, key, id)
            if run is not None:
                self._runs[id] = run
                await self._advance(run)  # a cancelled or expired one ends before any line is sent
        return bool(names)

    async def _has_place(self, key: str) -> bool:
        """Whether one more batch of a key may run. One that makes no progress is set aside for it."""
        of_key = [run for run in self._runs.values() if run.batch.key == key]
        if len(of_key) < RUNS_OF_KEY and len(self._runs) < RUNS:
            return True
        rivals = of_key if len(of_key) >= RUNS_OF_KEY else self._runs.values()
        now = time.monotonic()
        idle = [
            run for run in rivals if run.pending and not run.tasks and not run.ending and now - run.active_at >= TURN_S
        ]
        if not idle:
            return False
        run = min(idle, key=lambda run: run.active_at)
        resumes_at = min(self._pace(run.batch.key, model).resumes_at for model in run.pending)
        pause_s = min(max(0.0, resumes_at - now), max(0.0, run.batch.expires - time.time()))
        await self._contain(run.batch.id, self._write, run)
        self._aside[run.batch.id] = now + pause_s
        await self._set_aside(run)
        return True

    async def _set_aside(self, run: Run) -> None:
        """Close a batch, which then waits for a place."""
        for task in run.tasks:
            task.cancel()
        await asyncio.gather(*run.tasks, return_exceptions=True)
        if self._runs.pop(run.batch.id, None) is not None:
            with contextlib.suppress(OSError):  # results that were not synced are checked when it is opened again
                await asyncio.to_thread(run.close)

    def _begin(self, key: str, id: str) -> Run | None:
        """Open a batch: check its lines, and skip those that have results.

        (1) it has ended, but the process was killed before its marker was removed: remove the marker;
        (2) it was finalizing: finish that;
        (3) its value or its results are damaged, or its file is damaged or invalid: it fails;
        (4) otherwise it runs.

        Raises OSError.
        """
        folder = self._folder
        try:
            batch = folder.batch(key, id)
        except Damaged:  # (3)
            log.error("batch_damaged", batch=id, key=key)
            self._fail_lost(lost_batch(id, key, *(new_id("file-", time.time()) for _ in range(2))))
            return None
        if batch is None or not batch.status.is_open:  # (1)
            folder.close(key, id)
            return None
        if batch.status is Status.FINALIZING:  # (2)
            self._close(batch, batch.outcome or Status.COMPLETED)
            return None
        try:
            return self._open(batch)  # (4)
        except Unusable as unusable:  # (3)
            self._close(replace(batch, problems=unusable.problems), Status.FAILED)
            return None

    def _open(self, batch: Batch) -> Run:
        """Open a batch's files. Raises Unusable or OSError."""
        folder, work = self._folder, self._folder.work_folder(batch)
        lines = self._lines(batch, work / INPUT)
        with contextlib.ExitStack() as opened:
            results = Results(work)
            opened.callback(results.close)
            done, counts = _done(results)
            counts = replace(counts, total=len(lines))
            left = [line for line in lines if line.custom_id not in done]
            running = replace(batch, status=Status.IN_PROGRESS, began=batch.began or time.time())
            folder.write_batch(replace(running, counts=counts))
            input = os.open(work / INPUT, os.O_RDONLY | os.O_CLOEXEC)
            opened.pop_all()
        log.info("batch_started", batch=batch.id, key=batch.key, lines=len(lines), remaining=len(left))
        return Run(running, results, left, input, counts)

    def _lines(self, batch: Batch, path: Path) -> list[Line]:
        """Return the lines of a batch. Raises Unusable or OSError."""
        most, longest = self._bounds.most_lines, self._bounds.longest_line
        try:
            lines, problems = reading.check(offsets(path, longest), batch.endpoint, most, longest)
        except OSError as error:
            if is_damage(error):
                raise Unusable(_damaged("input", error)) from None
            raise
        if problems:
            raise Unusable(*problems)
        return lines

    def _fail_lost(self, batch: Batch) -> None:
        """End a batch whose value is damaged, with the results that it has. Raises OSError."""
        counts = Counts()
        with contextlib.suppress(Unusable), contextlib.closing(Results(self._folder.work_folder(batch))) as results:
            counts = _done(results)[1]
        self._close(replace(batch, counts=replace(counts, total=counts.done)), Status.FAILED)

    def _dispatch(self) -> None:
        """Send as many lines as may be sent."""
        now = time.monotonic()
        if now < self._resumes_at:
            return
        under_way = Counter[str]()
        for run in self._runs.values():
            under_way[run.batch.key] += len(run.tasks)
        while under_way.total() < MOST_IN_ALL:
            candidate = next_candidate(
                (
                    Candidate(run.batch.key, run.batch.id, run.batch.created, model)
                    for run in self._runs.values()
                    if not run.ending
                    for model in run.pending
                    if self._pace(run.batch.key, model).may_send(now)
                ),
                under_way,
                self._last_sent,
            )
            if candidate is None:
                return
            run = self._runs[candidate.batch]
            line, pace = run.take(candidate.model), self._pace(candidate.key, candidate.model)
            under_way[candidate.key] += 1
            self._last_sent[candidate.key] = time.monotonic()
            pace.under_way += 1
            run.tasks.add(asyncio.create_task(self._serve(run, line, pace)))

    def _pace(self, key: str, model: str) -> Pace:
        return self._paces.setdefault((key, model), Pace())

    async def _serve(self, run: Run, line: Line, pace: Pace) -> None:
        """Send a line, and add its result or put it back."""
        run.tries[line.number] += 1
        again: Again | None = None
        answer: Answer | None = None
        try:
            answer = await self._send(run.batch, line, run.body(line))
            again = reading.verdict(answer, run.tries[line.number])
        except NoAnswer as error:
            again = Again(1.0, counts=False, why=str(error))
        except Unusable as unusable:
            run.fail(*unusable.problems)
            again = Again(0.0, counts=False, why="")
        except KeyGone:
            run.fail(Problem(code=reading.KEY_GONE, message=NO_KEY))
            again = Again(0.0, counts=False, why="")
        finally:
            pace.under_way -= 1
            if answer is None and again is None:  # cancelled
                run.give_back(line)
        now = time.monotonic()
        if again is None:
            assert answer is not None
            pace.succeeded(now)
            if not self._add(run, line, *reading.result(run.batch, line, answer)):
                run.give_back(line)
            return
        if not again.counts:
            run.tries[line.number] -= 1
        pace.refused(now, again.pause_s)
        run.why = again.why
        run.give_back(line)

    def _add(self, run: Run, line: Line, succeeded: bool, result: bytes, kind: str = "failed") -> bool:
        """Add a result; False: the disk is full, or failed."""
        try:
            run.results.add(result, to_errors=not succeeded and run.batch.form is Form.OPENAI)
        except OSError as error:
            if is_full(error):
                self._rest(error)
            else:
                run.fault = error
            return False
        run.active_at = time.monotonic()
        counts, name = run.batch.counts, "succeeded" if succeeded else kind
        run.batch = replace(run.batch, counts=replace(counts, **{name: getattr(counts, name) + 1}))
        run.tries.pop(line.number, None)
        if succeeded:
            run.why = ""
        return True

    async def _advance(self, run: Run) -> None:
        """End a batch that is cancelled, expired or complete; otherwise write its progress once a second."""
        now, batch = time.time(), run.batch
        for task in [t for t in run.tasks if t.done()]:
            run.tasks.discard(task)
            if not task.cancelled() and isinstance(error := task.exception(), Exception):
                run.fault = error
        if not run.ending:
            if at := self._folder.cancel_requested_at(batch):
                run.ending = "cancelled"
                run.batch = replace(batch, status=Status.CANCELLING, cancelled_at=at)
            elif now >= batch.expires:
                run.ending = "expired"
        if run.ending and run.fault is None:
            for task in run.tasks:
                task.cancel()
            await asyncio.gather(*run.tasks, return_exceptions=True)
            run.tasks.clear()
            self._end_rest(run)
        if run.fault is not None:
            log.error("batch_interrupted", batch=batch.id, why=str(run.fault), exc_info=run.fault)
            self._faulty[batch.id] = time.monotonic() + FAULT_S
            await self._set_aside(run)
        elif not run.tasks and not run.pending:
            await self._finish(run)
        elif time.monotonic() - run.written_at >= WRITE_S:
            run.written_at = time.monotonic()
            run.progress.note(now, run.batch.counts.done)
            left_s = run.progress.finish_in_s(run.batch.counts.total)
            waits_for = "" if run.tasks else run.why
            run.batch = replace(run.batch, finish_at=now + left_s if left_s else 0.0, waits_for=waits_for)
            await self._contain(batch.id, self._write, run)

    def _write(self, run: Run) -> None:
        run.results.sync()
        self._folder.write_batch(run.batch)

    def _end_rest(self, run: Run) -> None:
        """Add a result for each remaining line."""
        texts = {
            "cancelled": "the batch was cancelled before this line was sent",
            "expired": "the batch expired before this line was sent",
            "failed": run.batch.problems[0].message if run.batch.problems else "",
        }
        for model in list(run.pending):
            while model in run.pending:
                line = run.take(model)
                result = reading.ending(run.batch, line, run.ending, texts[run.ending])
                if not self._add(run, line, False, result, run.ending):
                    run.give_back(line)
                    return

    async def _finish(self, run: Run) -> None:
        outcome = {"": Status.COMPLETED}.get(run.ending) or Status(run.ending)
        if await self._contain(run.batch.id, self._end, run, outcome):
            del self._runs[run.batch.id]
            keys = {other.batch.key for other in self._runs.values()}
            self._paces = {(key, model): pace for (key, model), pace in self._paces.items() if key in keys}

    def _end(self, run: Run, outcome: Status) -> bool:
        run.results.sync()
        self._close(run.batch, outcome)
        run.close()
        return True

    def _close(self, batch: Batch, outcome: Status) -> None:
        now = time.time()
        finalizing = replace(
            batch, status=Status.FINALIZING, outcome=outcome, finalizing_at=now, finish_at=0.0, waits_for=""
        )
        self._folder.write_batch(finalizing)
        self._folder.end(replace(finalizing, status=outcome, ended=now, removed_at=now + self._bounds.ttl_s))
        log.info("batch_ended", batch=batch.id, outcome=outcome, **msgspec.to_builtins(batch.counts))

    async def _contain(self, id: str, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what `do` returns, on a thread. If the disk is full, all batches pause; any other fault of the disk
        sets one batch aside, and None is returned."""
        try:
            return await asyncio.to_thread(do, *args, **kwargs)
        except OSError as error:
            if is_full(error):
                self._rest(error)
                return None
            log.error("batch_disk_error", batch=id, why=str(error))
            self._faulty[id] = time.monotonic() + FAULT_S
            if (run := self._runs.get(id)) is not None:
                await self._set_aside(run)
            return None

    def _rest(self, error: OSError) -> None:
        """Pause, because the disk is full."""
        self._resumes_at = time.monotonic() + FULL_S
        for run in self._runs.values():
            run.why = "the disk with the files is full"
        log.error("batches_paused", why=str(error))


def _damaged(what: str, error: Exception, line: int = 0) -> Problem:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return Problem(code=f"{what}_damaged", message=f"the {what} cannot be read from the disk: {why}", line=line)


def _done(results: Results) -> tuple[set[str], Counts]:
    """Return the ids of the lines that have results, and the numbers of results by kind. Raises Unusable or OSError."""
    try:
        return _count(results)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(_damaged("results", error)) from None
    except OSError as error:
        if is_damage(error):
            raise Unusable(_damaged("results", error)) from None
        raise


def _count(results: Results) -> tuple[set[str], Counts]:
    done: set[str] = set()
    number: Counter[str] = Counter()
    kinds = {"succeeded": "succeeded", "canceled": "cancelled", "expired": "expired"}
    codes = {"batch_cancelled": "cancelled", "batch_expired": "expired"}
    for is_error, raw in results.lines():
        head = msgspec.json.decode(raw, type=reading.ResultHead)
        done.add(head.custom_id)
        if head.result:
            kind = kinds.get(head.result.get("type", ""), "failed")
        else:
            kind = codes.get((head.error or {}).get("code", ""), "failed") if is_error else "succeeded"
        number[kind] += 1
    return done, Counts(**number)
