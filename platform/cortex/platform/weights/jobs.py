"""Slow, retryable work of a host: an RQ queue `<prefix>-<host>` and its worker, `cortex jobs`.

Jobs only fetch weights. A job never starts an engine, because RQ kills the job's process group. The rules:

- One job per source, shared by all its users. The agent is the queue's only writer.
- The job itself retries transient errors (hub or connection down) with growing pauses while it makes progress; RQ's
  delayed retries would need a scheduler process, which outlives a killed worker.
- The worker holds the host's lock, so jobs "started" by an earlier worker are orphans. It requeues them at once:
  after `kill -9` a download resumes.
- A stopping worker ends its job instead of waiting for it; the next worker resumes it.
- Jobs hold no tokens: the worker reads them from its own settings, and `hub.py` removes them from errors.
- A job is always JSON and `fetch`, whatever Redis holds: RQ's own jobs are pickled and name any function, which
  would let a Redis client run programs on every host.

RQ talks to Redis synchronously, so the agent calls this module from threads.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import redis
import structlog
from rq import Queue, Retry, Worker, get_current_job, worker_registration
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from cortex.functions.sources import Demo, Repo
from cortex.platform import redis_clients
from cortex.platform.agent_messages import Fetching
from cortex.platform.keys import HostToken
from cortex.platform.process.parent_death import die_with_parent
from cortex.platform.record_keys import RecordKeys
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import systemd
from cortex.platform.settings import Settings
from cortex.platform.weights import hub
from cortex.platform.weights import store as weights
from cortex.platform.weights.hub import Hub, HubUnavailable, WeightsUnavailable

log = structlog.get_logger()

TRIES = 8
"""Consecutive attempts without progress before a fetch fails; about two minutes, with the pauses."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REPORT_EVERY_S = 0.5
RESTARTS = 100
"""How often a job is requeued after its worker died."""
LOCK_S = 5.0
RESULT_TTL_S = 3600
FAILED_TTL_S = 24 * 3600
ALIVE = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED)
WORKER_TTL_S = 30
"""A job worker sends a heartbeat every 15 s: RQ does so 15 s before the TTL ends."""
RECONNECT_PAUSE_S = 2.0
"""Longest pause before the worker reconnects to Redis."""
_JOB_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,300}")


class JobFailed(Exception):
    """A job failed; the text says why."""


class JobLost(Exception):
    """The job is no longer in Redis: Redis came back empty, or the job was deleted."""


# The host's settings, inherited by jobs through the fork: RQ calls jobs by name.
_host: ContextVar[Settings] = ContextVar("host")


def job_id(queue: str, source: Demo | Repo) -> str:
    """Return the id of the job that fetches a source by a host's queue."""
    name = source.key if isinstance(source, Repo) else f"demo-{source.name}"
    return f"{queue}-{name}".replace(":", "_")


def pause_s(tries: int) -> float:
    """Return the pause after `tries` consecutive attempts without progress."""
    return float(min(FIRST_PAUSE_S * 2.0 ** max(0, tries - 1), LONGEST_PAUSE_S))


# The job, in a child process of the job worker.


def fetch(source: str) -> None:
    """Fetch weights, retrying transient errors. Raises JobFailed."""
    die_with_parent()
    progress = _JobProgress()
    try:
        settings = _host.get()
        wanted_source: Demo | Repo = msgspec.json.decode(source, type=Demo | Repo)
        cache = Path(settings.agent.cache_dir)
        token = hub.token(settings.hub.token_file) if isinstance(wanted_source, Repo) else ""
        client = Hub(weights.hub_cache(cache), endpoint=settings.hub.endpoint, token=token)
        _persist(wanted_source, cache, client, progress, settings.hub.keep_free_mb)
    except WeightsUnavailable as error:
        progress.give_up(str(error))
        raise JobFailed(str(error)) from None
    except Exception as error:  # unexpected: its text may hold secrets
        progress.give_up(type(error).__name__)
        raise JobFailed(f"{type(error).__name__}: {hub.clean(str(error))}") from None


def _persist(source: Demo | Repo, cache: Path, client: Hub, progress: "_JobProgress", keep_free_mb: int) -> None:
    tries = 0
    while True:
        before = progress.most
        try:
            weights.fetch(source, cache, client, progress.stage, keep_free_mb=keep_free_mb)
            return
        except HubUnavailable as error:
            tries = 1 if progress.most > before else tries + 1
            if tries >= TRIES:
                raise
            pause = max(pause_s(tries), min(error.retry_after_s, 10 * LONGEST_PAUSE_S))
            log.warning("fetch_waits", source=str(source), why=str(error), pause_s=pause)
            progress.wait(str(error), pause)
            time.sleep(pause)
            progress.resume()


class _Fetch(Job):
    """An RQ job of which only the argument is trusted."""

    func = property(lambda _: fetch)
    success_callback = failure_callback = stopped_callback = property(lambda _: None)

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:
        super().__init__(id, connection, JSONSerializer)


class _JobProgress:
    """The job's progress in its RQ metadata, at most every REPORT_EVERY_S. Redis errors do not stop a download."""

    def __init__(self) -> None:
        self._job = get_current_job()
        self._at, self._since = 0.0, time.monotonic()
        self._done = self._last = 0
        self.most = 0

    def stage(self, stage: weights.Stage) -> None:
        now = time.monotonic()
        self._done = stage.done
        self.most = max(self.most, stage.done)
        if now - self._at < REPORT_EVERY_S and stage.done < stage.total:
            return
        elapsed = now - self._since
        rate = max(0.0, (stage.done - self._last) / elapsed) if elapsed > 0 else 0.0
        previous = self._job.meta.get("rate") if self._job else None
        self._save(done=stage.done, total=stage.total, rate=0.7 * previous + 0.3 * rate if previous else rate)
        self._at = self._since = now
        self._last = stage.done

    def wait(self, reason: str, pause: float) -> None:
        self._save(state="waiting", why=reason, retry_at=time.time() + pause, rate=0.0)

    def resume(self) -> None:
        self._at, self._since, self._last = 0.0, time.monotonic(), self._done
        self._save(state="fetching", why="", retry_at=0.0)

    def give_up(self, reason: str) -> None:
        """Fail without RQ retries, which are only for dead workers' jobs."""
        if self._job is not None:
            self._job.retries_left = 0
        self._save(why=reason)

    def _save(self, **fields: Any) -> None:
        if self._job is not None:
            self._job.meta.update(fields)
            with contextlib.suppress(redis.RedisError, OSError):
                self._job.save_meta()  # type: ignore[no-untyped-call]


# For the agent.


class Jobs:
    """The agent's client of the host's queue. Every call may block on Redis: call from threads."""

    def __init__(self, url: str, queue: str) -> None:
        self._redis = redis_clients.client(url)
        self._queue = _queue(queue, self._redis)

    def id_of(self, source: Demo | Repo) -> str:
        """Return the id of the job that fetches a source."""
        return job_id(self._queue.name, source)

    def ask(self, source: Demo | Repo, *, explicit: bool = False) -> str:
        """Queue a fetch unless one is queued or running. Return the job's id."""
        name = self.id_of(source)
        # A no-op write, which fails on a Redis that is no longer the master.
        self._redis.hdel(Job.key_for(name), "none")
        job: Job | None = self._queue.fetch_job(name)
        if job is not None and job.get_status() in ALIVE:
            if explicit and not job.meta.get("explicit"):
                job.meta["explicit"] = True
                job.save_meta()  # type: ignore[no-untyped-call]
            return name
        self._queue.enqueue(
            fetch,
            msgspec.json.encode(source).decode(),
            job_id=name,
            job_timeout=-1,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILED_TTL_S,
            retry=Retry(max=RESTARTS),
            meta={"explicit": explicit, "requested_at": time.time(), "source": str(source)},
        )
        return name

    def look(self, name: str) -> Fetching:
        """Return the state of a fetch. Raises JobLost."""
        try:
            return _fetching(_Fetch.fetch(name, connection=self._redis))
        except NoSuchJobError:
            raise JobLost(name) from None

    def all(self) -> list[Fetching]:
        """Return all fetches in Redis: running, then queued, then finished."""
        # Read in the order in which jobs move, so none is missed.
        queued = [*self._queue.job_ids, *_intermediate(self._queue)]
        registries = (StartedJobRegistry, FailedJobRegistry, FinishedJobRegistry)
        started, failed, finished = (r(queue=self._queue).get_job_ids(cleanup=False) for r in registries)
        names = dict.fromkeys((*started, *queued, *failed, *finished))
        jobs = _Fetch.fetch_many(list(names), connection=self._redis)
        return [_fetching(j) for j in jobs if j is not None and self._is_ours(j.id)]

    def cancel(self, name: str) -> bool:
        """Stop or dequeue a fetch, keeping the partial files. False when it is not running or queued."""
        if not self._is_ours(name) or not _JOB_NAME.fullmatch(name):
            return False  # another host's job, or a name that RQ rejects
        try:
            job = _Fetch.fetch(name, connection=self._redis)
            status = job.get_status()
            if status is JobStatus.STARTED:
                send_stop_job_command(self._redis, name)
            elif status in ALIVE:
                job.cancel()
                job.delete()
            else:
                return False
        except (NoSuchJobError, InvalidJobOperation):
            return False
        return True

    def _is_ours(self, name: str) -> bool:
        return name.startswith(f"{self._queue.name}-".replace(":", "_"))

    def workers(self) -> int:
        """Return this host's number of job workers."""
        return int(Worker.count(connection=self._redis, queue=self._queue))

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


def _queue(name: str, connection: Any) -> Queue:
    return Queue(name, connection=connection, job_class=_Fetch, serializer=JSONSerializer)


def _fetching(job: Job) -> Fetching:
    status = job.get_status(refresh=False)
    meta = job.meta
    states = {
        JobStatus.FINISHED: "done",
        JobStatus.FAILED: "failed",
        JobStatus.STOPPED: "stopped",
        JobStatus.CANCELED: "stopped",
        JobStatus.STARTED: meta.get("state", "fetching"),
    }
    state = states.get(status, "queued")
    finished = state in ("done", "failed", "stopped")
    why = meta.get("why", "")
    if state == "failed" and not why:
        why = _reason(job)
    return Fetching(
        id=job.id,
        source=str(meta.get("source", "")),
        state=state,
        done=int(meta.get("done", 0)),
        total=int(meta.get("total", 0)),
        rate=0.0 if finished or state == "queued" else float(meta.get("rate", 0.0)),
        why=why if state in ("waiting", "failed") else "",
        retry_at=float(meta.get("retry_at", 0.0)),
        requested_at=float(meta.get("requested_at", 0.0)),
        explicit=bool(meta.get("explicit", False)),
    )


def _reason(job: Job) -> str:
    result = job.latest_result()
    trace = (result.exc_string or "") if result else ""
    return trace.strip().splitlines()[-1] if trace.strip() else "the job was stopped"


# The job worker.


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
    _host.set(settings)
    name = RecordKeys(settings.redis.prefix).queue(settings.host_name)
    with _host_lock(Path(settings.agent.cache_dir) / f"{name.replace('/', '_')}.lock"):
        token = HostToken.of(settings)
        connection = redis_clients.client(settings.redis_url, None)
        log.info("jobs_started", host=settings.host_name)
        systemd.notify("READY=1")
        previous = ""
        while True:
            reason = _work_once(settings, token, _queue(name, connection))
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
        worker = _Worker([queue], name, connection=queue.connection, job_class=_Fetch, worker_ttl=WORKER_TTL_S)
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
    for name in _intermediate(queue):
        queue.connection.lmove(queue.intermediate_queue_key, queue.key, "RIGHT", "LEFT")
        log.info("job_taken_up", job=name)
    StartedJobRegistry(queue=queue, job_class=_Fetch).cleanup(timestamp=2**53)


def _intermediate(queue: Queue) -> list[str]:
    """Return the jobs that a worker dequeued and did not start."""
    return queue.intermediate_queue.get_job_ids()


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
