"""Fixtures: a shared process of the fake engine, and processes for one test."""

from collections.abc import Iterator

import pytest

from tests.platform.fake_engine.workers import KEY, Start, Worker, until


@pytest.fixture(scope="package")
def pycache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shared bytecode cache, so that aiohttp is compiled once."""
    return {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pycache"))}


@pytest.fixture(scope="package")
def shared_process(pycache: dict[str, str]) -> Iterator[Worker]:
    worker = Worker(env=pycache)
    yield worker
    worker.destroy()
    assert not [line for line in worker.log if "Traceback" in line or "Error" in line]


@pytest.fixture
def worker(shared_process: Worker) -> Worker:
    """A process that most tests share, with its initial script and counters at zero."""
    shared_process.ready().http.put("/fake", json={}).raise_for_status()
    until(lambda: shared_process.report()["in_flight"] == 0)
    shared_process.http.put("/fake", json={}).raise_for_status()
    return shared_process


@pytest.fixture
def start(pycache: dict[str, str]) -> Iterator[Start]:
    """Starts processes for one test."""
    workers: list[Worker] = []

    def start(*options: str, env: dict[str, str] | None = None, key: str = KEY) -> Worker:
        workers.append(Worker(*options, env={**pycache, **(env or {})}, key=key))
        return workers[-1]

    yield start
    for worker in workers:
        worker.destroy()
