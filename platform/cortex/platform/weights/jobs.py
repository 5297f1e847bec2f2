"""Slow, retryable work of a host, as jobs of an RQ queue `<prefix>-<host>`: the agent's client of it.

Jobs only fetch weights (`fetch_job.py`), and `job_worker.py` runs them. A job never starts an engine, because RQ kills
the job's process group. There is one job per source, shared by all its users. The agent is the queue's only writer.

RQ talks to Redis synchronously, so the agent calls this module from threads.
"""

import re
import time
from typing import Any

import msgspec
from rq import Queue, Retry, Worker
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from cortex.functions.sources import Demo, Repo
from cortex.platform import redis_clients
from cortex.platform.agent_messages import Fetching
from cortex.platform.weights.fetch_job import FetchJob, fetch

RESTARTS = 100
"""How often a job is requeued after its worker died."""
RESULT_TTL_S = 3600
FAILED_TTL_S = 24 * 3600
ALIVE = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED)
_JOB_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,300}")


class JobLost(Exception):
    """The job is no longer in Redis: Redis came back empty, or the job was deleted."""


def job_id(queue: str, source: Demo | Repo) -> str:
    """Return the id of the job that fetches a source by a host's queue."""
    name = source.key if isinstance(source, Repo) else f"demo-{source.name}"
    return f"{queue}-{name}".replace(":", "_")


class Jobs:
    """The agent's client of the host's queue. Every call may block on Redis: call from threads."""

    def __init__(self, url: str, queue: str) -> None:
        self._redis = redis_clients.client(url)
        self._queue = queue_of(queue, self._redis)

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
            return _fetching(FetchJob.fetch(name, connection=self._redis))
        except NoSuchJobError:
            raise JobLost(name) from None

    def all(self) -> list[Fetching]:
        """Return all fetches in Redis: running, then queued, then finished."""
        # Read in the order in which jobs move, so none is missed.
        queued = [*self._queue.job_ids, *dequeued(self._queue)]
        registries = (StartedJobRegistry, FailedJobRegistry, FinishedJobRegistry)
        started, failed, finished = (r(queue=self._queue).get_job_ids(cleanup=False) for r in registries)
        names = dict.fromkeys((*started, *queued, *failed, *finished))
        jobs = FetchJob.fetch_many(list(names), connection=self._redis)
        return [_fetching(j) for j in jobs if j is not None and self._is_ours(j.id)]

    def cancel(self, name: str) -> bool:
        """Stop or dequeue a fetch, keeping the partial files. False when it is not running or queued."""
        if not self._is_ours(name) or not _JOB_NAME.fullmatch(name):
            return False  # another host's job, or a name that RQ rejects
        try:
            job = FetchJob.fetch(name, connection=self._redis)
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


def queue_of(name: str, connection: Any) -> Queue:
    """Return a host's queue."""
    return Queue(name, connection=connection, job_class=FetchJob, serializer=JSONSerializer)


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


def dequeued(queue: Queue) -> list[str]:
    """Return the jobs that a worker dequeued and did not start."""
    return queue.intermediate_queue.get_job_ids()
