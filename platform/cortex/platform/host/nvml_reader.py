"""The agent's side of the NVML child: requests, timeouts, kills.

A child that does not answer in time is killed and replaced later, with growing pauses. At most one exists, because a
child that hangs in the driver may survive the kill.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence

import msgspec

from cortex.platform.host.nvml import MIB, Answer
from cortex.platform.process.termination import describe_exit

# -P: the agent's working directory must not supply modules.
READER = (sys.executable, "-P", "-m", "cortex.platform.host.nvml")
READ_S = 5.0
FIRST_READ_S = 60.0
"""The first answer may take longer: without the persistence daemon, NVML wakes one GPU after the other."""
RETRY_S, RETRY_MOST_S = 1.0, 60.0
KILLED_WITHIN_S = 0.5
MOST_ANSWER_BYTES = 4 * MIB


class NvmlReader:
    """The NVML child: one request at a time, one child at a time."""

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
        self._budget_s = first_s
        self._failures = 0
        self._retry_at = 0.0
        self._failure = Answer()

    async def read(self) -> Answer:
        """Return an answer, or one with an error when:

        (1) a killed child has not exited, so no other may start;
        (2) the retry pause has not passed;
        (3) the child cannot be started;
        (4) the child has not answered yet, or timed out;
        (5) it exited, sent an invalid answer, or reported an error.
        """
        if self._killed is not None and self._killed.returncode is None:  # (1)
            return Answer(error=f"the NVML reader (pid {self._killed.pid}) was killed and has not exited")
        self._killed = None
        if self._child is None:
            if self._clock() < self._retry_at:  # (2)
                return self._failure
            try:
                self._child = await self._start()
            except OSError as error:  # (3)
                return self._fail(f"the NVML reader could not be started: {error}")
        if self._line is None:
            self._line = asyncio.create_task(_request(self._child))
        done, _ = await asyncio.wait({self._line}, timeout=self._timeout_s)
        if not done:  # (4)
            self._budget_s -= self._timeout_s
            if self._budget_s > 0:
                return Answer(error="NVML has not answered yet")
            await self._end()
            return self._fail("NVML does not answer; its reader was killed")
        return await self._answer(self._line)  # (5)

    async def close(self) -> None:
        """Kill the child and wait a little for its end."""
        await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        self._budget_s = self._first_s
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MOST_ANSWER_BYTES,
            start_new_session=True,  # a Ctrl-C in the agent's terminal must not reach it
        )

    async def _answer(self, line: asyncio.Task[bytes]) -> Answer:
        self._line = None
        if line.cancelled():
            return Answer(error="closed")
        try:
            text = line.result()
            answer = msgspec.json.decode(text, type=Answer) if text.endswith(b"\n") else None
        except (OSError, ValueError) as error:  # a broken pipe; a line that is too long or invalid
            await self._end()
            return self._fail(f"the NVML reader sent an invalid answer: {error}")
        if answer is None:
            return self._fail(f"the NVML reader {describe_exit(await self._end())}")
        if answer.error:
            await self._end()
            return self._fail(answer.error, absent=answer.absent)
        self._budget_s, self._failures = self._timeout_s, 0
        return answer

    async def _end(self) -> int | None:
        """Kill the child and wait a little. Return its exit code, or None when it has not ended."""
        child, self._child = self._child, None
        line, self._line = self._line, None
        if line is not None:
            line.cancel()
        if child is None:
            return None
        self._killed = child  # before the first await: a cancellation must not lead to a second child
        # Not child.kill(): it may reap the child before asyncio does, which would lose the exit code.
        self._kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILLED_WITHIN_S):
                await child.wait()
        return child.returncode

    def _fail(self, problem: str, *, absent: bool = False) -> Answer:
        # A library that is not installed rarely appears, and each look for it starts a process.
        pause = RETRY_MOST_S if absent else min(self._retry_s * 2.0**self._failures, RETRY_MOST_S)
        self._retry_at = self._clock() + pause
        self._failures = min(self._failures + 1, 30)
        self._failure = Answer(error=problem, absent=absent)
        return self._failure


async def _request(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"read\n")
    return await child.stdout.readline()
