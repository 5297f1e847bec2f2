"""Adoption: an agent takes over the workers that an earlier one left running.

Only a worker that is proved to be the one the state file means: the same process of the same boot.
"""

import asyncio
from collections.abc import Callable, Sequence

from cortex.functions.lifecycle import State
from cortex.platform import process_id
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.workers.supervisor import Supervisor


async def adopt(
    kept: Sequence[SavedWorker], supervisor: Supervisor, tell: Callable[[Callable[[Scheduler, float], object]], None]
) -> None:
    """Take over those that live: watched as if started here, and ready if they served and still answer."""
    alive = {w.instance.id for w in kept if w.instance.process and process_id.is_alive(w.instance.process)}
    up = (State.READY, State.DRAINING)
    serving = [w.instance for w in kept if w.instance.id in alive and w.instance.state in up]
    answers = await asyncio.gather(*(supervisor.healthy(i) for i in serving))
    healthy = {i.id for i, well in zip(serving, answers, strict=True) if well}
    for worker in kept:
        there, well = worker.instance.id in alive, worker.instance.id in healthy
        if there:
            supervisor.adopt(worker)
        tell(lambda s, now, w=worker, a=there, h=well: s.adopt(w, now, alive=a, healthy=h))  # type: ignore[misc]
