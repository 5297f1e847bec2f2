"""Slow, retryable work of a host: an RQ queue `<prefix>-<host>` and its worker, `cortex jobs`.

Only weights are fetched here. A job never starts an engine: RQ kills its job's whole process group. Its rules:

- One job per source: whoever else wants it joins. The agent is the queue's only writer.
- What may pass (the hub is away, a connection breaks) is tried again in the job, waiting longer each time, as long
  as it gets on; RQ's own retries with a pause would need a scheduler process, which outlives a killed worker.
- A worker takes the host's lock. So whoever has it knows that jobs "started" by another are nobody's any more, and
  takes them up at once: after `kill -9` a download goes on where it was.
- A stopping worker ends its job instead of waiting for it: the next one goes on with it.
- Tokens are never in a job: the worker knows them by its own settings, and errors say what `hub.py` let them say.
- A job is JSON and `fetch`, whatever Redis says: RQ's own are pickled and name any function, and so whoever writes to
  Redis would run programs on every host.

RQ talks to Redis synchronously, so the agent calls in from threads.
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
from cortex.platform.keys import FleetToken
from cortex.platform.parent_death import die_with_parent
from cortex.platform.record_keys import RecordKeys
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import systemd
from cortex.platform.settings import Settings
from cortex.platform.weights import hub
from cortex.platform.weights import store as weights
from cortex.platform.weights.hub import Hub, HubUnavailable, WeightsUnavailable

log = structlog.get_logger()

TRIES = 8
"""How often in a row a fetch may come to nothing before it has failed; two minutes, with the pauses."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
TOLD_EVERY_S = 0.5
RESTARTS = 100
"""How often a job may be taken up after its worker died."""
LOCK_S = 5.0
KEPT_S = 3600
FAILED_KEPT_S = 24 * 3600
ALIVE = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED)
WORKER_TTL_S = 30
"""A job worker shows itself every 15 s: RQ does so 15 s before its time is up."""
MOST_PAUSE_S = 2.0
"""How long it pauses at the most before it looks again for a Redis that is away."""
_TAME = re.compile(r"[A-Za-z0-9_.@-]{1,300}")


class JobFailed(Exception):
    """A job did not do its work; the text says why."""


class JobLost(Exception):
    """The record knows nothing of the job any more: it came back empty, or somebody threw the job away."""


# What the job worker knows of its host, handed to its jobs through the fork: RQ calls them by name.
_host: ContextVar[Settings] = ContextVar("host")


def job_id(queue: str, source: Demo | Repo) -> str:
    """Return the id of the job that fetches a source by a host's queue."""
    name = source.key if isinstance(source, Repo) else f"demo-{source.name}"
    return f"{queue}-{name}".replace(":", "_")


def pause_s(tries: int) -> float:
    """Return how long to wait after so many tries in a row came to nothing."""
    return float(min(FIRST_PAUSE_S * 2.0 ** max(0, tries - 1), LONGEST_PAUSE_S))


# The job, in the job worker's own child process.


def fetch(source: str) -> None:
    """Fetch weights, and try again while that may help."""
    die_with_parent()
    told = _Told()
    try:
        settings = _host.get()
        wanted: Demo | Repo = msgspec.json.decode(source, type=Demo | Repo)
        cache = Path(settings.agent.cache_dir)
        token = hub.token(settings.hub.token_file) if isinstance(wanted, Repo) else ""
        way = Hub(weights.hub_cache(cache), endpoint=settings.hub.endpoint, token=token)
        _persist(wanted, cache, way, told, settings.hub.keep_free_mb)
    except WeightsUnavailable as error:
        told.give_up(str(error))
        raise JobFailed(str(error)) from None
    except Exception as error:  # a bug, or a library's: its text may hold what is nobody's business
        told.give_up(type(error).__name__)
        raise JobFailed(f"{type(error).__name__}: {hub.clean(str(error))}") from None


def _persist(wanted: Demo | Repo, cache: Path, way: Hub, told: "_Told", keep_free_mb: int) -> None:
    tries = 0
    while True:
        before = told.most
        try:
            weights.fetch(wanted, cache, way, told.stage, keep_free_mb=keep_free_mb)
            return
        except HubUnavailable as error:
            tries = 1 if told.most > before else tries + 1
            if tries >= TRIES:
                raise
            pause = max(pause_s(tries), min(error.retry_after_s, 10 * LONGEST_PAUSE_S))
            log.warning("fetch_waits", source=str(wanted), why=str(error), pause_s=pause)
            told.wait(str(error), pause)
            time.sleep(pause)
            told.again()


class _Fetch(Job):
    """A job as RQ keeps it, of which nothing is believed but its argument."""

    func = property(lambda _: fetch)
    success_callback = failure_callback = stopped_callback = property(lambda _: None)

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:
        super().__init__(id, connection, JSONSerializer)


class _Told:
    """What the job says of itself: in its RQ record, now and then. A Redis that is away does not stop a download."""

    def __init__(self) -> None:
        self._job = get_current_job()
        self._at, self._since = 0.0, time.monotonic()
        self._done = self._last = 0
        self.most = 0

    def stage(self, stage: weights.Stage) -> None:
        now = time.monotonic()
        self._done = stage.done
        self.most = max(self.most, stage.done)
        if now - self._at < TOLD_EVERY_S and stage.done < stage.total:
            return
        passed = now - self._since
        rate = max(0.0, (stage.done - self._last) / passed) if passed > 0 else 0.0
        before = self._job.meta.get("rate") if self._job else None
        self._say(done=stage.done, total=stage.total, rate=0.7 * before + 0.3 * rate if before else rate)
        self._at = self._since = now
        self._last = stage.done

    def wait(self, why: str, pause: float) -> None:
        self._say(state="waiting", why=why, retry_at=time.time() + pause, rate=0.0)

    def again(self) -> None:
        self._at, self._since, self._last = 0.0, time.monotonic(), self._done
        self._say(state="fetching", why="", retry_at=0.0)

    def give_up(self, why: str) -> None:
        """Fail for good: RQ shall take up only what a dead worker left."""
        if self._job is not None:
            self._job.retries_left = 0
        self._say(why=why)

    def _say(self, **what: Any) -> None:
        if self._job is not None:
            self._job.meta.update(what)
            with contextlib.suppress(redis.RedisError, OSError):
                self._job.save_meta()  # type: ignore[no-untyped-call]


# For the agent.


class Jobs:
    """A host's queue, as its agent sees it. Every call may wait for Redis: make them from threads."""

    def __init__(self, url: str, queue: str) -> None:
        self._redis = redis_clients.client(url)
        self._queue = _queue(queue, self._redis)

    def id_of(self, source: Demo | Repo) -> str:
        """Return the id of the job that fetches a source."""
        return job_id(self._queue.name, source)

    def ask(self, source: Demo | Repo, *, kept: bool = False) -> str:
        """Have a source fetched, once however many ask. Return the job's id."""
        name = self.id_of(source)
        # A write that changes nothing: without it, a job would be read from a Redis that is no master any more.
        self._redis.hdel(Job.key_for(name), "none")
        known: Job | None = self._queue.fetch_job(name)
        if known is not None and known.get_status() in ALIVE:
            if kept and not known.meta.get("kept"):
                known.meta["kept"] = True
                known.save_meta()  # type: ignore[no-untyped-call]
            return name
        self._queue.enqueue(
            fetch,
            msgspec.json.encode(source).decode(),
            job_id=name,
            job_timeout=-1,
            result_ttl=KEPT_S,
            failure_ttl=FAILED_KEPT_S,
            retry=Retry(max=RESTARTS),
            meta={"kept": kept, "asked": time.time(), "source": str(source)},
        )
        return name

    def look(self, name: str) -> Fetching:
        """Return how a fetch stands. Raises JobLost."""
        try:
            return _fetching(_Fetch.fetch(name, connection=self._redis))
        except NoSuchJobError:
            raise JobLost(name) from None

    def all(self) -> list[Fetching]:
        """Return every fetch that the record knows: those going on, then those queued, then those that are over."""
        # In the order in which a job goes from one to the next: one that moves meanwhile is not missed.
        queued = [*self._queue.job_ids, *_between(self._queue)]
        registries = (StartedJobRegistry, FailedJobRegistry, FinishedJobRegistry)
        started, failed, finished = (r(queue=self._queue).get_job_ids(cleanup=False) for r in registries)
        names = dict.fromkeys((*started, *queued, *failed, *finished))
        jobs = _Fetch.fetch_many(list(names), connection=self._redis)
        return [_fetching(j) for j in jobs if j is not None and self._is_ours(j.id)]

    def cancel(self, name: str) -> bool:
        """Stop a fetch, or take it off the queue; what has come stays. False when there was nothing to stop."""
        if not self._is_ours(name) or not _TAME.fullmatch(name):
            return False  # another host's job, or a name that RQ refuses with an error
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
        """Return how many job workers this host has."""
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
    over = state in ("done", "failed", "stopped")
    why = meta.get("why", "")
    if state == "failed" and not why:
        why = _reason(job)
    return Fetching(
        id=job.id,
        source=str(meta.get("source", "")),
        state=state,
        done=int(meta.get("done", 0)),
        total=int(meta.get("total", 0)),
        rate=0.0 if over or state == "queued" else float(meta.get("rate", 0.0)),
        why=why if state in ("waiting", "failed") else "",
        retry_at=float(meta.get("retry_at", 0.0)),
        asked=float(meta.get("asked", 0.0)),
        kept=bool(meta.get("kept", False)),
    )


def _reason(job: Job) -> str:
    result = job.latest_result()
    trace = (result.exc_string or "") if result else ""
    return trace.strip().splitlines()[-1] if trace.strip() else "the job was stopped"


# The job worker.


class AnotherWorker(Exception):
    """This host has a job worker already."""


class _Worker(Worker):
    """RQ's worker, with ways of its own. Every sign of life to Redis is one to the service manager too, and registers
    the worker again, because a Redis may have been emptied. A Redis that is away ends no download. And the worker ends
    at once when it is told to: what its job fetched stays, and the next worker goes on."""

    max_connection_wait_time = MOST_PAUSE_S

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        if not self._is_horse:  # the child that does a job: it does not speak for the service
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
        with contextlib.suppress(redis.RedisError, OSError):  # it must not take the place of the order to stop
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
    """Run the host's job worker until TERM or Ctrl-C, whatever becomes of Redis. Raises AnotherWorker."""
    _host.set(settings)
    name = RecordKeys(settings.redis.prefix).queue(settings.host_name)
    with _sole(Path(settings.agent.cache_dir) / f"{name.replace('/', '_')}.lock"):
        token = FleetToken(Path(settings.token_file).expanduser())
        connection = redis_clients.client(settings.redis_url, None)
        log.info("jobs_started", host=settings.host_name)
        systemd.notify("READY=1")
        before = ""
        while True:
            why = _work_once(settings, token, _queue(name, connection))
            if why != before:
                log.warning("jobs_interrupted", host=settings.host_name, why=why)
            before = why
            time.sleep(MOST_PAUSE_S)


def _work_once(settings: Settings, token: FleetToken, queue: Queue) -> str:
    """Work until that is over, and return why."""
    worker: _Worker | None = None
    try:
        asyncio.run(_see_whose_record(settings, token))
        _take_up(queue)
        name = f"{queue.name}-{secrets.token_hex(8)}"  # its keys and its channel are its host's by their names
        worker = _Worker([queue], name, connection=queue.connection, job_class=_Fetch, worker_ttl=WORKER_TTL_S)
        worker.work(logging_level="WARNING")
    except (RecordUnavailable, redis.RedisError, OSError) as error:
        return str(error)
    finally:
        if worker is not None and worker.horse_pid:  # its job is taken up by the next one
            worker.kill_horse()
            worker.wait_for_horse()
    return "RQ's worker ended; its log says why"


async def _see_whose_record(settings: Settings, token: FleetToken) -> None:
    """Raise ForeignFleet when the record is another fleet's, RecordUnavailable when it is away."""
    registry = Registry.of(settings, token, keeps_indexes=False)
    try:
        await registry.ping()
    finally:
        await registry.close()


def _take_up(queue: Queue) -> None:
    """Queue again what a worker that is no more has begun: there is no other worker, we have the lock."""
    for name in _between(queue):
        queue.connection.lmove(queue.intermediate_queue_key, queue.key, "RIGHT", "LEFT")
        log.info("job_taken_up", job=name)
    StartedJobRegistry(queue=queue, job_class=_Fetch).cleanup(timestamp=2**53)


def _between(queue: Queue) -> list[str]:
    """Return the jobs that a worker has taken off the queue and not begun."""
    return queue.intermediate_queue.get_job_ids()


@contextlib.contextmanager
def _sole(path: Path) -> Iterator[None]:
    """Hold the host's lock. A killed worker's job holds it a moment longer than the worker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    patience = time.monotonic() + LOCK_S
    try:
        while not _locked(descriptor):
            if time.monotonic() > patience:
                raise AnotherWorker(f"this host has a job worker already (it holds {path})")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
