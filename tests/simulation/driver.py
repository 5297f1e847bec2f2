"""The driver that freezes simulated workers: what a process of `checkpoint_driver.py` is to the agent's freezer.

An operation belongs to the machine: it goes on when the agent crashes, and while it lasts no other works on the same
worker. The freezer itself is the real one.
"""

import asyncio
from collections.abc import Sequence

from cortex.platform.record import ProcessId
from cortex.platform.workers.checkpoint import FreezeFailed, Limits
from cortex.platform.workers.checkpoint_driver import Answer, CudaState, FreezeProblem, Operation
from tests.simulation.machine import Machine, System
from tests.simulation.virtual_time import settle
from tests.simulation.worker import Worker

LIMITS = Limits(start_s=2.0, lock_s=2.0, move_s=10.0, short_s=3.0, recover_s=12.0, released_s=2.0, slack_s=1.0)
"""Like the bounds of `agent_settings`: a run lasts a minute."""
CALL_S, PAUSE_S = 0.002, 0.05
CHANGES = {
    Operation.LOCK: (CudaState.RUNNING, CudaState.LOCKED),
    Operation.CHECKPOINT: (CudaState.LOCKED, CudaState.CHECKPOINTED),
    Operation.RESTORE: (CudaState.CHECKPOINTED, CudaState.LOCKED),
    Operation.UNLOCK: (CudaState.LOCKED, CudaState.RUNNING),
}


class DriverProcess:
    """A running driver process."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._busy = machine, False

    @property
    def usable(self) -> bool:
        """Whether it waits for a request."""
        return not self._busy

    def release(self) -> None:
        """Let it end, after its current operation."""

    async def request(self, do: Operation, member: ProcessId | None = None, within_s: float | None = None) -> Answer:
        """Perform an operation. Raises FreezeFailed."""
        self._busy = True
        within_s = LIMITS.short_s if within_s is None else within_s
        answer: asyncio.Future[Answer] = self._machine.loop.create_future()
        self._machine.loop.outside(CALL_S, self._begin, do, member, self._machine.loop.time() + within_s, answer)
        try:
            async with asyncio.timeout(within_s + LIMITS.slack_s):
                result = await answer
        except TimeoutError:
            if (worker := self._worker(member)) is not None and worker.driver is self:
                worker.end_driving(CudaState.FAILED)
            raise FreezeFailed(FreezeProblem.NO_ANSWER, f"the driver did not answer '{do}'") from None
        self._busy = False
        if result.problem is not None:
            raise FreezeFailed(result.problem, result.text)
        return result

    def _worker(self, member: ProcessId | None) -> Worker | None:
        worker = self._machine.workers.get(member.pid) if member else None
        return worker if worker is not None and worker.id == member and worker.alive else None

    def _begin(self, do: Operation, member: ProcessId | None, deadline: float, to: "asyncio.Future[Answer]") -> None:
        """Begin an operation as soon as no other works on the same worker."""
        machine, problem = self._machine, None
        worker = self._worker(member)
        if do is Operation.PROBE:
            problem = None if machine.freezes else FreezeProblem.LIBRARY
            settle(to, Answer(problem=problem, text="580.1" if machine.freezes else "there is no driver"))
        elif worker is None:
            settle(to, Answer(problem=FreezeProblem.GONE, text="the process has ended"))
        elif worker.driver is not None and machine.loop.time() >= deadline:
            settle(to, Answer(problem=FreezeProblem.BUSY, text="another process still works on it"))
        elif worker.driver is not None:
            machine.loop.outside(PAUSE_S, self._begin, do, member, deadline, to)
        elif do is Operation.STATE:
            settle(to, Answer(state=worker.cuda))
        else:
            self._change(worker, do, to)

    def _change(self, worker: Worker, do: Operation, to: "asyncio.Future[Answer]") -> None:
        before, after = CHANGES[do]
        if worker.cuda is not before:
            settle(to, Answer(problem=FreezeProblem.STATE, text=f"the process is {worker.cuda}"))
            return
        if worker.manner.refuses == str(do):
            settle(to, Answer(problem=FreezeProblem.UNSUPPORTED, text="the driver cannot do it"))
            return
        worker.driver = self
        if worker.manner.hangs == str(do):
            return
        if do is Operation.RESTORE:
            worker.begin_restore()
        moves = do in (Operation.CHECKPOINT, Operation.RESTORE)
        self._machine.loop.outside(worker.manner.freeze_s if moves else CALL_S, self._end, worker, after, to)

    def _end(self, worker: Worker, after: CudaState, to: "asyncio.Future[Answer]") -> None:
        if worker.alive and worker.driver is self:
            worker.end_driving(after)
            settle(to, Answer(state=after))
        else:
            settle(to, Answer(problem=FreezeProblem.GONE, text="the process has ended"))


def on(system: System) -> type[DriverProcess]:
    """Return the driver processes of the machine of the calling agent."""

    class Here(DriverProcess):
        @classmethod
        async def start(cls, _command: Sequence[str], _limits: Limits) -> DriverProcess:
            return cls(system.here())

    return Here
