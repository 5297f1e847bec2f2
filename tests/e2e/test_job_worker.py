"""The job worker alone: whatever becomes of its Redis, it goes on by itself."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis

from cortex.functions.sources import Demo
from cortex.platform.keys import fleet_mark
from cortex.platform.weights.jobs import Jobs
from tests.support.stack import CORTEX, eventually, own_redis

HUNG_RESOLVER = """
import socket, sys, threading
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
from cortex.cli.main import main
sys.argv = ["cortex", "jobs"]
main()
"""


@contextlib.contextmanager
def job_worker(
    folder: Path, redis_url: str, command: Sequence[str] = (*CORTEX, "jobs")
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `cortex jobs` for a host `a`."""
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
        "CORTEX_REDIS_URL": redis_url,
        "CORTEX_AGENT__NAME": "a",
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    with (folder / "jobs.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def fetch(jobs: Jobs) -> None:
    """Have weights fetched, and wait until they were."""
    name = jobs.ask(Demo("harbour"))
    eventually(lambda: jobs.look(name).state == "done", what="the fetch")


@pytest.mark.long
def test_a_job_worker_waits_for_its_redis_and_is_back_after_that_was_emptied(tmp_path: Path) -> None:
    (record := tmp_path / "record").mkdir()
    url = f"unix://{record / 'r.sock'}"
    jobs = Jobs(url, "cortex-a")
    with job_worker(tmp_path, url) as process:
        eventually(lambda: "jobs_interrupted" in (tmp_path / "jobs.log").read_text(), what="it to miss Redis")
        with own_redis(record):
            fetch(jobs)
        shutil.rmtree(record)
        record.mkdir()

        with own_redis(record):
            eventually(lambda: jobs.workers() == 1, what="the job worker to register again")
            fetch(jobs)

        assert process.poll() is None
    jobs.close()


@pytest.mark.long
def test_a_job_worker_whose_name_look_ups_hang_logs_the_name_and_ends_on_term(tmp_path: Path) -> None:
    with job_worker(tmp_path, "redis://record.test:6379", [sys.executable, "-c", HUNG_RESOLVER]) as process:
        eventually(lambda: "lookup of record.test" in (tmp_path / "jobs.log").read_text(), what="its reason")

        assert process.poll() is None


@pytest.mark.long
def test_a_job_worker_does_nothing_for_another_fleet_and_all_once_the_record_is_its_own(tmp_path: Path) -> None:
    (record := tmp_path / "record").mkdir()
    url = f"unix://{record / 'r.sock'}"
    with own_redis(record), redis.Redis.from_url(url) as client:
        client.sadd("cortex:fleet", fleet_mark("another token"))
    jobs = Jobs(url, "cortex-a")
    with job_worker(tmp_path, url) as process:
        eventually(lambda: "jobs_interrupted" in (tmp_path / "jobs.log").read_text(), what="it to miss Redis")
        with own_redis(record), redis.Redis.from_url(url) as client:
            eventually(lambda: "another token" in (tmp_path / "jobs.log").read_text(), what="the refusal")
            count = jobs.workers()
            client.delete("cortex:fleet")
            fetch(jobs)

        assert count == 0
        assert process.poll() is None
    jobs.close()
