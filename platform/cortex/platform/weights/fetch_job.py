"""The job that fetches weights, in a child process of the job worker.

- It retries transient errors (hub or connection down) with growing pauses while it makes progress. RQ's delayed retries
  would need a scheduler process, which outlives a killed worker.
- It holds no tokens: it reads them from its worker's settings, and `hub.py` removes them from errors.
- It is always JSON and `fetch`, whatever Redis holds: RQ's own jobs are pickled and name any function, which would let
  a Redis client run programs on every host.
"""

import contextlib
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import redis
import structlog
from rq import get_current_job
from rq.job import Job
from rq.serializers import JSONSerializer

from cortex.functions.sources import Demo, Repo
from cortex.platform.process.parent_death import die_with_parent
from cortex.platform.settings import Settings
from cortex.platform.weights import hub
from cortex.platform.weights import store as weights
from cortex.platform.weights.hub import Hub, HubUnavailable, WeightsUnavailable
from cortex.platform.weights.neighbours import NeighbourClient

log = structlog.get_logger()

TRIES = 8
"""Consecutive attempts without progress before a fetch fails; about two minutes, with the pauses."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
REPORT_EVERY_S = 0.5

host: ContextVar[Settings] = ContextVar("host")
"""The host's settings, which jobs inherit through the fork: RQ calls a job by its name."""


class JobFailed(Exception):
    """A job failed; the text says why."""


def fetch(source: str) -> None:
    """Fetch weights, retrying transient errors. Raises JobFailed."""
    die_with_parent()
    progress = _JobProgress()
    try:
        settings = host.get()
        wanted_source: Demo | Repo = msgspec.json.decode(source, type=Demo | Repo)
        cache = Path(settings.agent.cache_dir)
        token = hub.token(settings.hub.token_file) if isinstance(wanted_source, Repo) else ""
        neighbours = NeighbourClient.of(settings)
        client = Hub(weights.hub_cache(cache), endpoint=settings.hub.endpoint, token=token, neighbours=neighbours)
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
            log.warning("fetch_retried", source=str(source), why=str(error), pause_s=pause)
            progress.wait(str(error), pause)
            time.sleep(pause)
            progress.resume()


def pause_s(tries: int) -> float:
    """Return the pause after `tries` consecutive attempts without progress."""
    return float(min(FIRST_PAUSE_S * 2.0 ** max(0, tries - 1), LONGEST_PAUSE_S))


class FetchJob(Job):
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
