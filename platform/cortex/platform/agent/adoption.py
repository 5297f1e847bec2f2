"""Adoption: an agent takes over the workers that an earlier one left running.

It adopts only a worker whose process is the one in the state file: the same process of the same boot.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from cortex.functions.lifecycle import State
from cortex.platform.process import process_id
from cortex.platform.scheduling.events import Adopted, CoolRequest, Event
from cortex.platform.scheduling.saved_state import SavedWorker
from cortex.platform.workers.supervisor import Examined, Supervisor

log = structlog.get_logger()


async def adopt(workers: Sequence[SavedWorker], supervisor: Supervisor, tell: Callable[[Event], None]) -> None:
    """Take over live workers: watched as if started here, and ready if they served and still answer.

    Routers cannot use a worker that refuses this host's keys, but earlier requests may still run on it: it is drained.
    """
    alive = {w.instance.id for w in workers if w.instance.process and process_id.is_alive(w.instance.process)}
    up = (State.READY, State.DRAINING)
    serving = [w.instance for w in workers if w.instance.id in alive and w.instance.state in up]
    answers = await asyncio.gather(*(supervisor.examine(i) for i in serving))
    examined = dict(zip((i.id for i in serving), answers, strict=True))
    healthy = {i for i, answer in examined.items() if answer is not Examined.OTHER_MODEL}
    for worker in workers:
        is_alive, is_healthy = worker.instance.id in alive, worker.instance.id in healthy
        if is_alive:
            supervisor.adopt(worker)
        tell(Adopted(worker, is_alive, is_healthy))
    for function in sorted({i.function for i in serving if examined[i.id] is Examined.REFUSES_KEY}):
        log.warning("worker_refuses_key", function=function)
        tell(CoolRequest(function))
