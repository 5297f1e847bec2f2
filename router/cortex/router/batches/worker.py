"""The batch worker: a process that a router starts when there is an open batch, and that exits when there is none.

It takes the folder's lock, enqueues one job in the RQ queue of its host and works on it; the job is the engine. A job
may be killed at any time and is run again, like a download. It ends with its worker, and the worker with its router.

- The lock allows one batch worker per folder, so a job that RQ lists as started is that of a dead worker: ignore it.
- A job is always `run`, whatever Redis contains, so write access to Redis does not allow running programs.
- While Redis is away no batch runs, because limits and usage could not be counted.
"""

import contextlib
import os
import sys
import time
from typing import Any

import redis
import structlog
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from cortex.platform import log as logging
from cortex.platform import redis_clients, settings_file
from cortex.platform.record_keys import RecordKeys
from cortex.router.batches import job
from cortex.router.batches.folder import Folder

log = structlog.get_logger()

WORKER_TTL_S = 30
FAILED_TTL_S = 3600


class _Worker(Worker):
    """RQ's worker, which kills its job at once at TERM; the next worker continues the batches."""

    def request_stop(self, signum: Any, frame: Any) -> None:
        if self.horse_pid:
            self.kill_horse()
            self.wait_for_horse()
        raise SystemExit(0)


def main() -> None:
    """Work until no batch is open. The exit code is 0 if none is."""
    settings, _ = settings_file.from_environment(None)
    logging.configure(settings.log)
    job.settings.set(settings)
    folder = Folder.of(settings.gateway)
    name = RecordKeys(settings.redis.prefix).batch_queue(settings.host_name)
    try:
        with folder.lock(), contextlib.closing(redis_clients.client(settings.redis_url, None)) as client:
            queue = Queue(name, connection=client, job_class=job.RunJob, serializer=JSONSerializer)
            queue.empty()  # type: ignore[no-untyped-call]  # jobs of dead workers
            id = f"batches-{os.getpid()}-{int(time.time())}"
            queue.enqueue(job.run, job_id=id, job_timeout=-1, result_ttl=0, failure_ttl=FAILED_TTL_S)
            worker = _Worker([queue], f"{name}:{id}", connection=client, job_class=job.RunJob, worker_ttl=WORKER_TTL_S)
            worker.work(burst=True, logging_level="WARNING")
    except BlockingIOError:
        log.info("batches_run_elsewhere", folder=str(folder.path))
    except (redis.RedisError, OSError) as error:
        log.warning("batches_interrupted", why=str(error))
    sys.exit(1 if folder.open_batches() else 0)
