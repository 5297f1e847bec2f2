"""Slow, retryable work of a host: an RQ queue `cortex-<host>` and its worker, `cortex jobs`.

Only weights are fetched here. A job never starts an engine: RQ kills its job's whole process group. RQ talks
to Redis synchronously, so the agent calls in from threads.
"""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import redis
import structlog
from rq import Queue, Worker
from rq.job import Job, JobStatus

from cortex.platform import systemd, weights
from cortex.platform.leash import die_with_parent

log = structlog.get_logger()

JOB_TIMEOUT_S = 6 * 3600
WORKER_WAIT_S = 15.0
"""How long a queued job may wait for a job worker to show itself."""
POLL_S = 0.05
WORKER_TTL_S = 75
"""A job worker shows itself every minute: RQ does so 15 s before its time is up."""


class JobFailed(Exception):
    """A job did not do its work; the text says why."""


def queue_name(host: str) -> str:
    """Return the name of a host's queue."""
    return f"cortex-{host}"


def fetch(source: str, cache: str) -> None:
    """The job itself: fetch weights. Runs in the job worker's own child process."""
    die_with_parent()
    weights.fetch(source, Path(cache))


async def fetched(url: str, host: str, source: str, cache: str) -> None:
    """Queue the fetch of `source` on a host, once however many ask, and wait for its end. Raises JobFailed."""
    job = await asyncio.to_thread(_enqueue, url, host, source, cache)
    patience = time.monotonic() + WORKER_WAIT_S
    while True:
        status = await asyncio.to_thread(job.get_status)
        if status is JobStatus.FINISHED:
            return
        if status in (JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED, None):
            raise JobFailed(await asyncio.to_thread(_reason, job))
        if status is not JobStatus.QUEUED:
            patience = time.monotonic() + WORKER_WAIT_S
        elif time.monotonic() > patience and not await asyncio.to_thread(_workers, url, host):
            raise JobFailed(f"no job worker runs for host '{host}': start `cortex jobs` there")
        await asyncio.sleep(POLL_S)


def _enqueue(url: str, host: str, source: str, cache: str) -> Job:
    connection = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
    queue = Queue(queue_name(host), connection=connection)
    name = hashlib.sha256(f"{host} {source}".encode()).hexdigest()[:24]
    job_id = f"cortex-{name}"
    known: Job | None = queue.fetch_job(job_id)
    if known is not None and known.get_status() in (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED):
        return known
    return queue.enqueue(
        fetch, source, cache, job_id=job_id, job_timeout=JOB_TIMEOUT_S, result_ttl=3600, failure_ttl=86400
    )


def _reason(job: Job) -> str:
    result = job.latest_result()
    trace = (result.exc_string or "") if result else ""
    return trace.strip().splitlines()[-1] if trace.strip() else "the job was stopped"


def _workers(url: str, host: str) -> int:
    connection = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
    return int(Worker.count(connection=connection, queue=Queue(queue_name(host), connection=connection)))


class _Worker(Worker):
    """RQ's worker; every sign of life to Redis is one to the service manager too."""

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        if not self._is_horse:  # the child that does a job: it does not speak for the service
            systemd.notify("WATCHDOG=1")
        super().heartbeat(*args, **kwargs)

    def request_stop(self, *args: Any) -> None:
        systemd.notify("STOPPING=1")
        super().request_stop(*args)  # type: ignore[no-untyped-call]


def work(url: str, host: str) -> None:
    """Run the host's job worker until TERM or Ctrl-C; a job that runs then is finished first."""
    connection = redis.Redis.from_url(url)
    worker = _Worker([Queue(queue_name(host), connection=connection)], connection=connection, worker_ttl=WORKER_TTL_S)
    log.info("jobs_started", host=host)
    systemd.notify("READY=1")
    worker.work(logging_level="WARNING")
