"""Adoption: an agent takes over the workers that an earlier one left running.

It adopts only a worker whose process is the one in the state file: the same process of the same boot.
"""

import asyncio
from collections.abc import Callable, Sequence

from cortex.functions.lifecycle import State
from cortex.platform.process import process_id
from cortex.platform.scheduling.events import Adopted, Event
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.workers.supervisor import Supervisor


async def adopt(workers: Sequence[SavedWorker], supervisor: Supervisor, tell: Callable[[Event], None]) -> None:
    """Take over live workers: watched as if started here, and ready if they served and still answer."""
    alive = {w.instance.id for w in workers if w.instance.process and process_id.is_alive(w.instance.process)}
    up = (State.READY, State.DRAINING)
    serving = [w.instance for w in workers if w.instance.id in alive and w.instance.state in up]
    answers = await asyncio.gather(*(supervisor.healthy(i) for i in serving))
    healthy = {i.id for i, ok in zip(serving, answers, strict=True) if ok}
    for worker in workers:
        is_alive, is_healthy = worker.instance.id in alive, worker.instance.id in healthy
        if is_alive:
            supervisor.adopt(worker)
        tell(Adopted(worker, is_alive, is_healthy))
