"""The running engine: loading, ready, changes of the script, death. No HTTP.

When the script changes, every wait is computed again. So a test can hold an answer with `tps: 0.001` and release it
with `tps: 0`, without sleeping.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cortex.platform.fake_engine import replay
from cortex.platform.fake_engine.ledger import Ledger
from cortex.platform.fake_engine.script import BadScript, Script, with_changes
from cortex.platform.fake_engine.step import Step

LOG_LINE = "INFO [fake_engine] " + "." * 108 + "\n"
MB = 1 << 20
HALF_WAY = 0.5
GARBLED = "0x0x0x0x"
CATCH_UP_S = 0.05  # the maximum delay that later steps make up for


class FakeEngine:
    """The state of one worker. The caller of `load()` owns its task."""

    def __init__(self, *, model: str, script: Script, orphans: dict[str, int], memory_file: Path | None) -> None:
        self.model = model
        self.ledger = Ledger()
        self.progress = 0.0
        self.ready = False
        self.asleep = False
        self._garbled = False
        self.orphans = orphans
        self._initial_script = script
        self._memory_file = memory_file
        self._leaked: list[bytes] = []
        self._change = asyncio.Event()
        self._play(script, _lines(script.script))

    @property
    def leaked_mb(self) -> int:
        """Leaked host memory."""
        return sum(map(len, self._leaked)) // MB

    @property
    def memory_mb(self) -> int:
        """Pretended device memory."""
        return self.script.asleep_mb if self.asleep else self.script.memory_mb

    @property
    def answering(self) -> Script:
        """The script for answers: after a wake-up that garbles, every answer is another than before."""
        return msgspec.structs.replace(self.script, answer=GARBLED) if self._garbled else self.script

    async def load(self) -> None:
        """Become ready after `loading_s`, logging the progress; or crash or hang, as the script requests."""
        clock = asyncio.get_running_loop().time
        start = clock()
        while (progress := load_progress(self.script, clock() - start)) < 1:
            if progress != self.progress and not self.script.silent_load:
                log(f"Loading weights: {progress:.0%}")
            self.progress = progress
            hangs = self.script.hang == "loading" and progress == HALF_WAY
            await self.script_changes(within_s=None if hangs else log_interval_s(self.script.loading_s))
        if self.script.fill_log_mb:
            fill_log(self.script.fill_log_mb)
        if (code := self.script.crashes_on_load) is not None:
            self.crash(code)
        self.progress = 1.0
        self.ready = True
        if not self.script.silent_load:
            log("Application startup complete.")

    def sleep(self) -> None:
        """Fall asleep: requests wait from now on."""
        self.asleep = True
        self._claim_memory()

    def wake(self, *, garbled: bool) -> None:
        """Wake up: requests go on."""
        self.asleep, self._garbled = False, garbled
        self._claim_memory()
        self._notify()

    async def awake(self) -> None:
        """Wait until it is awake."""
        while self.asleep:
            await self.script_changes()

    def change(self, changes: Mapping[str, object]) -> None:
        """Change the script, for running and later requests. Invalid changes raise BadScript and have no effect."""
        script = with_changes(self.script, changes)
        self._play(script, self._lines if script.script == self.script.script else _lines(script.script))
        self.ledger.mark()
        if "fill_log_mb" in changes or "fill-log-mb" in changes:
            fill_log(script.fill_log_mb)

    def start_over(self, changes: Mapping[str, object]) -> None:
        """Change the initial script, and reset the counters."""
        script = with_changes(self._initial_script, changes)
        self.asleep = self._garbled = False
        self._play(script, _lines(script.script))
        self.ledger.clear()

    def next_line(self) -> replay.Line | None:
        """Return the next captured stream; None without a replay."""
        return next(self._lines) if self._lines else None

    def leak(self) -> None:
        """Leak host memory, as the script requests. It is written to, so that the system counts it."""
        if self.script.leak_mb_per_request:
            self._leaked.append(b"\1" * (self.script.leak_mb_per_request * MB))

    async def script_changes(self, *, within_s: float | None = None) -> None:
        """Wait until the script changes or it wakes up, at most `within_s`."""
        change = self._change
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await change.wait()

    def crash(self, code: int) -> None:
        """Exit at once without clean-up, like a crash."""
        log(self.script.crash_message)
        os._exit(code)

    def release_memory(self) -> None:
        """Release the pretended memory."""
        if self._memory_file:
            self._memory_file.unlink(missing_ok=True)

    def _play(self, script: Script, lines: Iterator[replay.Line] | None) -> None:
        self.script = script
        self._lines = lines
        self._claim_memory()
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _claim_memory(self) -> None:
        if self._memory_file is None:
            return
        temporary = self._memory_file.with_name(f"{self._memory_file.name}.{os.getpid()}")
        temporary.write_text(f"{self.memory_mb}\n")
        temporary.replace(self._memory_file)  # so that no reader finds it empty


class Pace:
    """Paces one answer as the script requests."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._clock = asyncio.get_running_loop().time
        self._due = self._clock()

    async def wait(self, pause: Callable[[Script], float]) -> None:
        """Wait as long as the current script requests."""
        while (remaining_s := self._due + pause(self._engine.script) - self._clock()) > 0:
            await self._engine.script_changes(within_s=remaining_s)
        self._due = max(self._due + pause(self._engine.script), self._clock() - CATCH_UP_S)
        await asyncio.sleep(0)  # answers without pauses still alternate


def load_progress(script: Script, elapsed_s: float) -> float:
    """Return the progress of loading, from 0 to 1."""
    share = min(1.0, elapsed_s / script.loading_s) if script.loading_s else 1.0
    return min(share, HALF_WAY) if script.hang == "loading" else share


def log_interval_s(load_s: float) -> float:
    """Return the interval of log lines: ten per load, but at least one every five seconds."""
    return max(0.02, min(load_s / 10, 5.0))


def step_pause_s(step: Step, script: Script) -> float:
    """Return the pause before a step."""
    return step.delay_s + (step.tokens / script.tps if script.tps else 0.0)


def log(line: str) -> None:
    """Write a line to the log, if its reader still exists. Never a prompt or an answer."""
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def fill_log(megabytes: int) -> None:
    """Write log lines of this size. Blocks, on purpose, while they are not read."""
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
