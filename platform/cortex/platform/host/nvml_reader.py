"""The agent's end of the NVML child: asks, waits, kills.

A child that does not answer in time is killed, and another one started later, with growing pauses; never two at
once, for one that hangs in the driver may not end even then.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence

import msgspec

from cortex.platform.host.nvml import MIB, Answer
from cortex.platform.workers.process import describe_exit

# -P: a folder that the agent happens to be started in must not supply modules.
READER = (sys.executable, "-P", "-m", "cortex.platform.host.nvml")
READ_S = 5.0
FIRST_READ_S = 60.0
"""The first answer may take longer: without the persistence daemon, NVML wakes one GPU after the other."""
RETRY_S, RETRY_MOST_S = 1.0, 60.0
KILLED_WITHIN_S = 0.5
MOST_ANSWER_BYTES = 4 * MIB


class NvmlReader:
    """The child that asks NVML: one question at a time, one child at a time."""

    def __init__(
        self,
        command: Sequence[str],
        timeout_s: float,
        first_s: float,
        retry_s: float,
        clock: Callable[[], float],
        kill: Callable[[int, signal.Signals], None],
    ) -> None:
        self._command, self._timeout_s, self._first_s, self._retry_s = command, timeout_s, first_s, retry_s
        self._clock, self._kill = clock, kill
        self._child: asyncio.subprocess.Process | None = None
        self._killed: asyncio.subprocess.Process | None = None
        self._line: asyncio.Task[bytes] | None = None
        self._patience_s = first_s
        self._failures = 0
        self._retry_at = 0.0
        self._failure = Answer()

    async def ask(self) -> Answer:
        """Return an answer, or one that says why there is none:

        (1) a killed child has not ended, so there cannot be another;
        (2) it is too early to try again;
        (3) no child can be started;
        (4) the child has not answered, and still may or has taken too long;
        (5) it has ended, talks nonsense, or says itself that it cannot.
        """
        if self._killed is not None and self._killed.returncode is None:  # (1)
            return Answer(error=f"the NVML reader (pid {self._killed.pid}) was killed and does not end")
        self._killed = None
        if self._child is None:
            if self._clock() < self._retry_at:  # (2)
                return self._failure
            try:
                self._child = await self._start()
            except OSError as error:  # (3)
                return self._fail(f"the NVML reader could not be started: {error}")
        if self._line is None:
            self._line = asyncio.create_task(_question(self._child))
        done, _ = await asyncio.wait({self._line}, timeout=self._timeout_s)
        if not done:  # (4)
            self._patience_s -= self._timeout_s
            if self._patience_s > 0:
                return Answer(error="NVML has not answered yet")
            await self._end()
            return self._fail("NVML does not answer; its reader was killed")
        return await self._answer(self._line)  # (5)

    async def close(self) -> None:
        """Kill the child and wait a little for its end."""
        await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        self._patience_s = self._first_s
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MOST_ANSWER_BYTES,
            start_new_session=True,  # a Ctrl-C in the agent's terminal is not for it
        )

    async def _answer(self, line: asyncio.Task[bytes]) -> Answer:
        self._line = None
        if line.cancelled():
            return Answer(error="closed")
        try:
            text = line.result()
            answer = msgspec.json.decode(text, type=Answer) if text.endswith(b"\n") else None
        except (OSError, ValueError) as error:  # a pipe that broke; a line too long, or not of ours
            await self._end()
            return self._fail(f"the NVML reader talks nonsense: {error}")
        if answer is None:
            return self._fail(f"the NVML reader {describe_exit(await self._end())}")
        if answer.error:
            await self._end()
            return self._fail(answer.error, absent=answer.absent)
        self._patience_s, self._failures = self._timeout_s, 0
        return answer

    async def _end(self) -> int | None:
        """Kill the child and wait a little. Return its exit code, or None when it has not ended."""
        child, self._child = self._child, None
        line, self._line = self._line, None
        if line is not None:
            line.cancel()
        if child is None:
            return None
        self._killed = child  # before anything is awaited: whoever cancels this must not make a second child
        # Not child.kill(): that may reap the child before asyncio does, which then never learns how it ended.
        self._kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILLED_WITHIN_S):
                await child.wait()
        return child.returncode

    def _fail(self, problem: str, *, absent: bool = False) -> Answer:
        self._retry_at = self._clock() + min(self._retry_s * 2.0**self._failures, RETRY_MOST_S)
        self._failures = min(self._failures + 1, 30)
        self._failure = Answer(error=problem, absent=absent)
        return self._failure


async def _question(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"read\n")
    return await child.stdout.readline()
