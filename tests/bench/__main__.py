"""Measure the router's CPU time per request, plain and streamed, against a bare proxy in the same run.

The machine's speed and load cancel out in the ratio; the router is given a ready worker by a record that says so,
without an agent. `python -m tests.bench [--requests N] [--router "argv of another router"]`.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import msgspec
import psutil
import redis

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.record import HostRecord, Instance
from tests.support.catalogues import fake
from tests.support.stack import eventually, free_port, own_redis

AT_ONCE = 16
ROUNDS = 3
FUNCTION = Function(id="bench/model", engine=Engine.FAKE)
BODIES = {
    "plain": b'{"model":"bench/model","messages":[{"role":"user","content":"Hello!"}]}',
    "stream of 100": b'{"model":"bench/model","stream":true,"messages":[{"role":"user","content":"Hello!"}]}',
}


def main() -> None:
    """Run it and print a table."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--requests", type=int, default=600, help="per round, kind and proxy")
    asked.add_argument("--router", default=f"{sys.executable} -m cortex.cli", help="the `cortex` to measure")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder, own_redis(Path(folder)) as redis_url:
        for kind, line in measured(Path(folder), redis_url, options.router.split(), options.requests).items():
            print(f"{kind:14} {line}")


def measured(folder: Path, redis_url: str, router: list[str], requests: int) -> dict[str, str]:
    """Return a line per kind of request: microseconds of CPU of the bare proxy and of the router, and their ratio."""
    worker_port, proxy_port, router_port = free_port(), free_port(), free_port()
    worker = f"http://127.0.0.1:{worker_port}"
    (folder / "models.toml").write_text(fake("bench/model"))
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")},
        "XDG_STATE_HOME": str(folder / "state"),
        "CORTEX_REDIS_URL": redis_url,
        "CORTEX_MODELS_CONFIG": str(folder / "models.toml"),
        "CORTEX_GATEWAY__LISTEN": f"127.0.0.1:{router_port}",
        "CORTEX_GATEWAY__METRICS_LISTEN": f"127.0.0.1:{free_port()}",
    }
    server = [sys.executable, "-m", "tests.bench.servers"]
    lines = {}
    with (
        _running([*server, "worker", str(worker_port)], env, folder),
        _running([*server, "proxy", str(proxy_port), worker], env, folder) as bare,
        _running([*router, "router"], env, folder) as ours,
        redis.Redis.from_url(redis_url) as record,
    ):
        urls = {bare: f"http://127.0.0.1:{proxy_port}", ours: f"http://127.0.0.1:{router_port}"}
        _say_ready(record, worker)
        for url in urls.values():
            eventually(lambda url=url: _answers(url), within_s=30, what=f"{url} to answer")  # type: ignore[misc]
        for kind, body in BODIES.items():
            number = requests if kind == "plain" else requests // 4
            best = dict.fromkeys(urls, float("inf"))
            for _ in range(ROUNDS):
                for process, url in urls.items():
                    _say_ready(record, worker)
                    began = _cpu_s(process)
                    asyncio.run(_load(url, body, number))
                    best[process] = min(best[process], (_cpu_s(process) - began) / number)
            ratio = best[ours] / best[bare]
            lines[kind] = f"bare {best[bare] * 1e6:7.0f} µs   cortex {best[ours] * 1e6:7.0f} µs   ratio {ratio:.2f}"
    return lines


def _say_ready(record: "redis.Redis", url: str) -> None:
    """Write the record of a host whose worker is ready, for a minute."""
    now = time.time()
    instance = Instance(
        id="bench", function=FUNCTION.id, revision=revision(FUNCTION), state=State.READY, since=now, created=now,
        ready=now, url=url,
    )  # fmt: skip
    host = HostRecord(name="bench", address="http://127.0.0.1:9", at=now, engines={"fake": "1"}, instances=(instance,))
    record.set("cortex:host:bench", msgspec.json.encode(host), ex=60)
    record.publish("cortex:changed", "host:bench")


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.post(f"{url}/v1/chat/completions", content=BODIES["plain"], trust_env=False).status_code == 200
    return False


def _cpu_s(process: psutil.Process) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in (process, *process.children(recursive=True)))


async def _load(url: str, body: bytes, number: int) -> None:
    """Send so many requests, so many at once, reading every answer to its end."""
    left = iter(range(number))
    headers = {"Content-Type": "application/json"}

    async def one(http: aiohttp.ClientSession) -> None:
        for _ in left:
            async with http.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
                await answer.read()
                assert answer.status == 200, answer.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as http:
        await asyncio.gather(*(one(http) for _ in range(AT_ONCE)))


@contextlib.contextmanager
def _running(argv: list[str], env: dict[str, str], folder: Path) -> Iterator[psutil.Process]:
    with (folder / f"{len(list(folder.iterdir()))}.log").open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


if __name__ == "__main__":
    main()
