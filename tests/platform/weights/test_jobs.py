"""Retry pauses, job ids, requeued jobs, and the status line of a running fetch."""

from pathlib import Path

import pytest
import redis
from rq import Queue

from cortex.functions.sources import Demo, Repo
from cortex.platform.agent_messages import Fetching
from cortex.platform.weights.fetch_job import LONGEST_PAUSE_S, pause_s
from cortex.platform.weights.fetches import describe
from cortex.platform.weights.job_worker import _requeue
from cortex.platform.weights.jobs import Jobs, job_id
from tests.support.stack import own_redis


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_s(n) for n in (1, 2, 3, 6, 7, 500)] == [1.0, 2.0, 4.0, 32.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"state": "queued"}, "queued on its host"),
        ({"state": "fetching"}, "asking the hub"),
        ({"state": "fetching", "done": 512, "total": 2048}, "512 B of 2.0 KiB"),
        (
            {"state": "fetching", "done": 2**30, "total": 3 * 2**30, "rate": 2.0**24},
            "1.00 GiB of 3.00 GiB, 16 MiB/s, 128 s left",
        ),
        (
            {"state": "waiting", "done": 1, "total": 2, "retry_at": 107.0, "why": "the hub is away"},
            "1 B of 2 B, trying again in 7 s: the hub is away",
        ),
    ],
)
def test_a_fetch_is_described_in_one_line(keys: dict[str, object], line: str) -> None:
    assert describe(Fetching(id="j", source="org/m", **keys), 100.0) == line  # type: ignore[arg-type]


def test_one_source_is_one_job_on_each_host() -> None:
    one, same = Repo(repo="org/m", quant="Q4_0", gguf=True), Repo(repo="org/m", quant="Q4_0", gguf=True)
    names = {job_id("c-a", one), job_id("c-a", same), job_id("c-b", one), job_id("c-a", Demo("harbour"))}

    assert len(names) == 3
    assert all(":" not in n for n in names)  # RQ splits its keys there


def test_a_dequeued_job_that_never_started_is_listed_and_requeued(tmp_path: Path) -> None:
    with own_redis(tmp_path) as url, redis.Redis.from_url(url) as connection:
        jobs, queue = Jobs(url, "cortex-a"), Queue("cortex-a", connection=connection)
        name = jobs.ask(Demo("harbour"))
        Queue.dequeue_any([queue], None, connection=connection)  # what a worker does first

        assert queue.job_ids == []
        assert [(f.id, f.state) for f in jobs.all()] == [(name, "queued")]
        _requeue(queue)

        assert queue.job_ids == [name]
        jobs.close()
