"""The running fake: it loads, is ready, changes its script and dies. It knows nothing of HTTP.

Every wait in it ends early when the script changes and is measured anew, so a test can hold an answer with
`tps: 0.001` and let it go with `tps: 0`, without a single sleep.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cortex.platform.fake_engine import replay
from cortex.platform.fake_engine.ledger import Ledger
from cortex.platform.fake_engine.script import BadScript, Script, changed
from cortex.platform.fake_engine.step import Step

LOG_LINE = "INFO [fake_engine] " + "." * 108 + "\n"
MB = 1 << 20
HALF_WAY = 0.5
CATCH_UP_S = 0.05  # how much of a late pace is made up for


class FakeEngine:
    """One worker's state. Whoever awaits `load()` owns its task."""

    def __init__(self, *, model: str, script: Script, left_behind: dict[str, int], memory_file: Path | None) -> None:
        self.model = model
        self.ledger = Ledger()
        self.progress = 0.0
        self.ready = False
        self.left_behind = left_behind
        self._at_start = script
        self._memory_file = memory_file
        self._leaked: list[bytes] = []
        self._change = asyncio.Event()
        self._play(script, _lines(script.script))

    @property
    def leaked_mb(self) -> int:
        """Host memory lost so far."""
        return sum(map(len, self._leaked)) // MB

    async def load(self) -> None:
        """Take `load_s` to become ready, saying so on the way, or crash, or never get there."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while (progress := loaded(self.script, clock() - began)) < 1:
            if progress != self.progress and not self.script.silent_load:
                log(f"Loading weights: {progress:.0%}")
            self.progress = progress
            hangs = self.script.hang == "loading" and progress == HALF_WAY
            await self.script_changes(within_s=None if hangs else log_interval_s(self.script.load_s))
        if self.script.fill_log_mb:
            fill_log(self.script.fill_log_mb)
        if self.script.crash_on_load is not None:
            self.crash(self.script.crash_on_load)
        self.progress = 1.0
        self.ready = True
        if not self.script.silent_load:
            log("Application startup complete.")

    def change(self, changes: Mapping[str, object]) -> None:
        """Lay `changes` over the script, for what runs now and what comes; nothing changes if they are bad."""
        script = changed(self.script, changes)
        self._play(script, self._lines if script.script == self.script.script else _lines(script.script))
        self.ledger.mark()
        if "fill_log_mb" in changes or "fill-log-mb" in changes:
            fill_log(script.fill_log_mb)

    def start_over(self, changes: Mapping[str, object]) -> None:
        """Lay `changes` over the script of the start, and count from zero."""
        script = changed(self._at_start, changes)
        self._play(script, _lines(script.script))
        self.ledger.clear()

    def next_line(self) -> replay.Line | None:
        """The next captured stream to replay, if it replays."""
        return next(self._lines) if self._lines else None

    def leak(self) -> None:
        """Lose some host memory: written to, or the system would not count it."""
        if self.script.leak_mb_per_request:
            self._leaked.append(b"\1" * (self.script.leak_mb_per_request * MB))

    async def script_changes(self, *, within_s: float | None = None) -> None:
        """Wait for the script to change, at most so long."""
        change = self._change
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await change.wait()

    def crash(self, code: int) -> None:
        """Die here and now, without clean-up, as a crash does."""
        log(self.script.crash_message)
        os._exit(code)

    def leave(self) -> None:
        """Give the claimed memory back."""
        if self._memory_file:
            self._memory_file.unlink(missing_ok=True)

    def _play(self, script: Script, lines: Iterator[replay.Line] | None) -> None:
        self.script = script
        self._lines = lines
        self._claim_memory()
        self._change.set()
        self._change = asyncio.Event()

    def _claim_memory(self) -> None:
        if self._memory_file is None:
            return
        fresh = self._memory_file.with_name(f"{self._memory_file.name}.{os.getpid()}")
        fresh.write_text(f"{self.script.memory_mb}\n")
        fresh.replace(self._memory_file)  # so that no reader finds it empty


class Pace:
    """Keeps one answer to the script's clock."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._clock = asyncio.get_running_loop().time
        self._due = self._clock()

    async def wait(self, pause: Callable[[Script], float]) -> None:
        """Wait as long as the script, whichever is in force by then, says."""
        while (left := self._due + pause(self._engine.script) - self._clock()) > 0:
            await self._engine.script_changes(within_s=left)
        self._due = max(self._due + pause(self._engine.script), self._clock() - CATCH_UP_S)
        await asyncio.sleep(0)  # answers given at once still take turns


def loaded(script: Script, elapsed_s: float) -> float:
    """How much is loaded by now, from 0 to 1."""
    share = min(1.0, elapsed_s / script.load_s) if script.load_s else 1.0
    return min(share, HALF_WAY) if script.hang == "loading" else share


def log_interval_s(load_s: float) -> float:
    """Ten lines a load, but never silent for more than five seconds: that is what agents take for a hang."""
    return max(0.02, min(load_s / 10, 5.0))


def step_pause_s(step: Step, script: Script) -> float:
    """How long to wait before a step."""
    return step.delay_s + (step.tokens / script.tps if script.tps else 0.0)


def log(line: str) -> None:
    """A line for the agent that reads our log, if it still does. Never a prompt, never an answer."""
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def fill_log(megabytes: int) -> None:
    """Write a lot of log; blocks for good when nobody reads it, which is the point."""
    lines = LOG_LINE * (MB // len(LOG_LINE))
    with suppress(BrokenPipeError):
        for _ in range(megabytes):
            sys.stderr.write(lines)
        sys.stderr.flush()


def _lines(path: str | None) -> Iterator[replay.Line] | None:
    if path is None:
        return None
    try:
        return itertools.cycle(replay.parse(Path(path).read_text()))
    except OSError as error:
        raise BadScript(f"script: {path}: {error.strerror}") from None
