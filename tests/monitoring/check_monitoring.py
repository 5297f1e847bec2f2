"""The monitoring files, read by a real Prometheus while a small fleet has a lively minute (`just test-monitoring`).

Needs Debian's prometheus. Not part of the default run: it takes a minute and a half.
"""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.catalogues import entry, fake
from tests.support.dashboard import NEEDS_A_GPU, NEEDS_MORE, ROWS
from tests.support.stack import Stack, eventually, free_port, own_redis

FILES = Path(__file__).parent.parent.parent / "deploy" / "monitoring"
LIVELY_S = 25.0
INTERVAL = "10s"
REPLAYED = 6
"""Requests at a worker that is killed: at least three of one of the two router processes."""
MESSAGES = [{"role": "user", "content": "Hello!"}]

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus"),
    pytest.mark.timeout(300),
]

CATALOGUE = "\n".join(
    [
        fake(
            "demo/one",
            "--load-s",
            "0.5",
            "--tps",
            "50",
            "--tokens",
            "40",
            vram_mb=6000,
            cost={"input": 1.0, "output": 4.0},
        ),
        fake("demo/two", "--load-s", "0.5", "--tps", "50", "--tokens", "40", vram_mb=6000, start_timeout_s=4),
        fake("demo/slow", "--tps", "10", "--tokens", "20", vram_mb=100),
        fake("demo/dies", "--crash-on-load", "3", vram_mb=100),
        entry("cortex/harbour", engine="llamacpp", source="demo:harbour"),
    ]
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitored")
    with own_redis(folder) as url:
        env = {"CORTEX_REDIS_URL": url, "CORTEX_GATEWAY__METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
        running = Stack(folder, CATALOGUE, workers=2, env=env, more=["--devices", "1x8GB"])
        try:
            yield running
        finally:
            running.end()


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """A Prometheus with the committed files, but for its target and its haste. Returns what asks its API."""
    folder = tmp_path_factory.mktemp("prometheus")
    text = (FILES / "prometheus.yml").read_text().replace("15s", "1s")
    text = text.replace("127.0.0.1:31314", stack.env["CORTEX_GATEWAY__METRICS_LISTEN"])
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(FILES / "alerts.yml", folder)
    port = free_port()
    server = subprocess.Popen(
        [
            "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=20)

    def ask(path: str, **request: str) -> Any:
        answer = http.get(path, params=request).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def up() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = http.get("/query", params={"query": 'up{job="cortex"} == 1'})
            return answer.is_success and bool(answer.json()["data"]["result"])  # it answers before it is ready: 503
        return False

    try:
        eventually(up, within_s=30, what="Prometheus to read the router")
        yield ask
    finally:
        server.terminate()
        server.wait(20)


def lively(stack: Stack) -> None:
    """Starts, evictions that are regretted, failures, no room, replays, streams, a client that leaves."""
    until = time.monotonic() + LIVELY_S
    stack.chat("cortex/harbour", max_tokens=4)
    while time.monotonic() < until:
        for name in ("demo/one", "demo/two", "demo/dies"):
            stack.chat(name, max_tokens=5)
            stack.http.post("/v1/messages", json={"model": name, "max_tokens": 8, "stream": True, "messages": MESSAGES})
        stack.chat("who/knows")
        busy = threading.Thread(target=lambda: stack.chat("demo/two", stream=True))
        busy.start()
        stack.chat("demo/one", max_tokens=2)
        busy.join()
        with (
            contextlib.suppress(httpx.TimeoutException),
            httpx.Client(base_url=stack.url, timeout=0.3, trust_env=False) as hasty,
        ):
            hasty.post("/v1/chat/completions", json={"model": "demo/one", "messages": MESSAGES})
        stack.chat("demo/one", max_tokens=2)
        # Their worker is killed before its first byte. Each router sends again those that were not alone there.
        unlucky = [threading.Thread(target=lambda: stack.chat("demo/slow")) for _ in range(REPLAYED)]
        for request in unlucky:
            request.start()
        eventually(lambda: stack.function("demo/slow")["in_flight"] == REPLAYED, what="requests in flight")
        (instance,) = stack.function("demo/slow")["instances"]
        with contextlib.suppress(psutil.Error):
            psutil.Process(instance["pid"]).kill()
        for request in unlucky:
            request.join()
    stack.cli("fn", "cool", "demo/one")


def test_promtool_accepts_the_committed_files() -> None:
    config = subprocess.run(
        ["promtool", "check", "config", FILES / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    rules = subprocess.run(
        ["promtool", "check", "rules", FILES / "alerts.yml"], capture_output=True, text=True, check=False
    )

    assert config.returncode == 0, config.stdout + config.stderr
    assert rules.returncode == 0, rules.stdout + rules.stderr


def test_every_panel_shows_something(stack: Stack, prometheus: Callable[..., Any], tell: Callable[[str], None]) -> None:
    stack.chat("demo/one", max_tokens=2)
    lively(stack)

    def empty() -> list[str]:
        matches = []
        for panels in ROWS.values():
            for title, _, queries in panels:
                for expression, _ in queries:
                    request = expression.replace("$__rate_interval", INTERVAL)
                    if title not in (*NEEDS_A_GPU, *NEEDS_MORE) and not prometheus("/query", query=request)["result"]:
                        matches.append(f"{title}: {request}")
        return matches

    with contextlib.suppress(AssertionError):  # a rate needs two readings of what happened last
        eventually(lambda: not empty(), what="two readings of everything")
    missing = empty()
    panels = sum(len(p) for p in ROWS.values())
    tell(f"{panels} panels, {len(prometheus('/label/__name__/values'))} series names in Prometheus")
    assert not missing, "\n".join(missing)


def test_every_rule_is_evaluated_and_alerts_come_when_they_should(stack: Stack, prometheus: Callable[..., Any]) -> None:
    def states() -> dict[str, str]:
        (group,) = prometheus("/rules")["groups"]
        assert not [r["lastError"] for r in group["rules"] if r.get("lastError")]
        return {r["name"]: r["state"] for r in group["rules"]}

    def failing() -> bool:
        """What fails after it was first counted is an increase."""
        stack.http.post("/admin/functions/demo/dies/warm")
        return states()["CortexStartsFail"] == "firing"

    named = re.findall(r"alert: (\w+)", (FILES / "alerts.yml").read_text())
    assert sorted(states()) == sorted(named)
    eventually(failing, within_s=40, what="failed starts to be noticed")
    assert states()["CortexRouterDown"] == states()["CortexRedisAway"] == "inactive"

    stack.end()

    eventually(lambda: states()["CortexRouterDown"] == "pending", within_s=20, what="the router to be missed")


def test_the_committed_dashboard_asks_what_was_tried_here() -> None:
    dashboard = json.loads((FILES / "dashboard.json").read_text())

    request = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
    assert request == [expression for panels in ROWS.values() for _, _, queries in panels for expression, _ in queries]
