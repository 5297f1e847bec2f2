"""The job worker of a host, `cortex jobs`: RQ's worker, through outages of Redis.

- It holds the host's lock, so jobs "started" by an earlier worker are orphans. It requeues them at once: after
  `kill -9` a download resumes.
- A worker that stops ends its job instead of waiting for it; the next worker resumes it.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
import structlog
from rq import Queue, Worker, worker_registration
from rq.job import Job
from rq.registry import StartedJobRegistry

from cortex.platform import redis_clients
from cortex.platform.keys import HostToken
from cortex.platform.record_keys import RecordKeys
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import systemd
from cortex.platform.settings import Settings
from cortex.platform.weights import fetch_job
from cortex.platform.weights.fetch_job import FetchJob
from cortex.platform.weights.jobs import dequeued, queue_of

log = structlog.get_logger()

LOCK_S = 5.0
WORKER_TTL_S = 30
"""A job worker sends a heartbeat every 15 s: RQ does so 15 s before the TTL ends."""
RECONNECT_PAUSE_S = 2.0
"""Longest pause before the worker reconnects to Redis."""


class AnotherWorker(Exception):
    """This host has a job worker already."""


class _Worker(Worker):
    """RQ's worker with three changes. Each heartbeat also goes to the service manager and registers the worker again,
    in case Redis was emptied. Redis errors do not end a download. A stop signal ends the worker and its job at once;
    the next worker resumes it."""

    max_connection_wait_time = RECONNECT_PAUSE_S

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        if not self._is_horse:  # not in the child process that runs a job
            systemd.notify("WATCHDOG=1")
        with contextlib.suppress(redis.RedisError, OSError):
            super().heartbeat(timeout, pipeline)
            worker_registration.register(self, pipeline)

    def maintain_heartbeats(self, job: Job) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            super().maintain_heartbeats(job)

    def set_current_job_working_time(self, current_job_working_time: float, pipeline: Any = None) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            super().set_current_job_working_time(current_job_working_time, pipeline)

    def register_death(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError):  # an error must not mask the stop request
            super().register_death()  # type: ignore[no-untyped-call]

    def unsubscribe(self) -> None:
        try:
            super().unsubscribe()  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError):
            listener: Any = self.pubsub_thread
            listener.stop()

    def request_stop(self, signum: Any, frame: Any) -> None:
        systemd.notify("STOPPING=1")
        if self.horse_pid:
            self.kill_horse()
            self.wait_for_horse()
        raise SystemExit(0)


def work(settings: Settings) -> None:
    """Run the host's job worker until TERM or Ctrl-C, through Redis outages. Raises AnotherWorker."""
    fetch_job.host.set(settings)
    name = RecordKeys(settings.redis.prefix).queue(settings.host_name)
    with _host_lock(Path(settings.agent.cache_dir) / f"{name.replace('/', '_')}.lock"):
        token = HostToken.of(settings)
        connection = redis_clients.client(settings.redis_url, None)
        log.info("jobs_started", host=settings.host_name)
        systemd.notify("READY=1")
        previous = ""
        while True:
            reason = _work_once(settings, token, queue_of(name, connection))
            if reason != previous:
                log.warning("jobs_interrupted", host=settings.host_name, why=reason)
            previous = reason
            time.sleep(RECONNECT_PAUSE_S)


def _work_once(settings: Settings, token: HostToken, queue: Queue) -> str:
    """Run RQ's worker until it ends; return the reason."""
    worker: _Worker | None = None
    try:
        asyncio.run(_check_record(settings, token))
        _requeue(queue)
        name = f"{queue.name}-{secrets.token_hex(8)}"  # the ACL matches keys and channel by host
        worker = _Worker([queue], name, connection=queue.connection, job_class=FetchJob, worker_ttl=WORKER_TTL_S)
        worker.work(logging_level="WARNING")
    except (RecordUnavailable, redis.RedisError, OSError) as error:
        return str(error)
    finally:
        if worker is not None and worker.horse_pid:  # the next worker requeues its job
            worker.kill_horse()
            worker.wait_for_horse()
    return "RQ's worker ended; its log says why"


async def _check_record(settings: Settings, token: HostToken) -> None:
    """Raise ForeignFleet when Redis holds another fleet's record, RecordUnavailable when it does not answer."""
    registry = Registry.of(settings, token, keeps_indexes=False)
    try:
        await registry.ping()
    finally:
        await registry.close()


def _requeue(queue: Queue) -> None:
    """Requeue the jobs of dead workers. The lock guarantees that no other worker lives."""
    for name in dequeued(queue):
        queue.connection.lmove(queue.intermediate_queue_key, queue.key, "RIGHT", "LEFT")
        log.info("job_resumed", job=name)
    StartedJobRegistry(queue=queue, job_class=FetchJob).cleanup(timestamp=2**53)


@contextlib.contextmanager
def _host_lock(path: Path) -> Iterator[None]:
    """Hold the host's lock. Waits LOCK_S, since a killed worker's job outlives the worker briefly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_S
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise AnotherWorker(f"this host has a job worker already (it holds {path})")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
