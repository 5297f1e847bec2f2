"""Usage through the deaths of all processes: its sums are those of the request log, and its energy is the GPU's."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cortex.router.usage import WRITE_S
from tests.platform.host.nvml_stub import built
from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.long

SOAK_S, CLIENTS = 12.0, 4
POWER_MW = 250_000
"""What the GPU's counter grows by, in millijoules a second."""
NAMES = ("tokens_in", "tokens_out", "cached")


class Counter:
    """A GPU whose energy counter grows, as the stub of NVML reads it."""

    def __init__(self, folder: Path) -> None:
        self._script, self._began = folder / "script", time.monotonic()
        self.env = {"LD_LIBRARY_PATH": str(built(folder)), "NVML_STUB": str(self._script)}
        self.grow()

    def grow(self) -> float:
        """Let the counter grow to its present value; return that, in joules."""
        mj = round((time.monotonic() - self._began) * POWER_MW)
        draft = self._script.with_suffix(".new")
        draft.write_text(f"gpus 1\nenergy {mj}\n")
        draft.replace(self._script)
        return mj / 1000


@pytest.fixture
def counter(tmp_path: Path) -> Counter:
    return Counter(tmp_path)


@pytest.fixture
def stack(tmp_path: Path, counter: Counter) -> Iterator[Stack]:
    catalogue = [
        fake("org/model", "--answer", "one two three four", "--tps", "200", vram_mb=2000),
        fake("org/slow", "--tps", "30", "--tokens", "40", vram_mb=2000),
        fake("org/fails", "--fail-status", "500", vram_mb=2000),
    ]
    running = Stack(tmp_path, "\n".join(catalogue), env={**counter.env, "CORTEX_AGENT__HEALTH_S": "0.5"})
    try:
        yield running
    finally:
        running.end()


def test_sums_are_those_of_the_request_log_and_a_kill_loses_seconds(stack: Stack, counter: Counter) -> None:
    keys = [str(stack.http.post("/admin/keys", json={"name": f"key-{n}"}).json()["key"]) for n in range(CLIENTS)]
    over = threading.Event()
    threads = [threading.Thread(target=_ask, args=(stack.url, key, n, over)) for n, key in enumerate(keys)]
    before = counter.grow()
    for thread in threads:
        thread.start()
    killed_at = _kill_each(stack, counter)
    over.set()
    for thread in threads:
        thread.join()

    def agree() -> bool:
        counter.grow()
        counted, lines = _counted(stack), _logged(stack)
        lost = [line for line in lines if killed_at - WRITE_S - 1 < _at(line) <= killed_at]
        most, least = _sums(lines), _sums([line for line in lines if line not in lost])
        return all(least[name] <= counted[name] <= most[name] for name in most) and len(lines) > 40

    eventually(agree, within_s=3 * WRITE_S, what="the sums of the log")
    counted, most = _counted(stack), _sums(_logged(stack))
    joules = counter.grow() - before
    print(f"{most} logged, {counted} counted, {joules:.0f} J of the GPU")
    assert 0 < counted["joules"] <= joules
    assert counted["joules"] == pytest.approx(counted["gpu_s"] * POWER_MW / 1000, rel=0.5)
    assert "cortex_device_energy_joules_total" in _metrics(stack)
    # The counters of the router that was killed are gone.
    energy = 'cortex_energy_joules_total{model="org/model",node="here"}'
    eventually(
        lambda: counter.grow() and _chats(stack, keys[0]) and energy in _metrics(stack),
        within_s=3 * WRITE_S,
        what="the energy of a function in the metrics",
    )


def _ask(url: str, key: str, seed: int, over: threading.Event) -> None:
    """Send requests of all kinds, whatever becomes of them."""
    choose = random.Random(seed)
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, timeout=10, trust_env=False, headers=headers) as http:
        while not over.is_set():
            model = choose.choice(["org/model", "org/model", "org/slow", "org/fails", "no/such"])
            body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
            leaves = choose.random() < 0.3
            try:
                with http.stream(
                    "POST", "/v1/chat/completions", json={**body, "stream": leaves or seed % 2 == 0}
                ) as answer:
                    for _ in answer.iter_bytes():
                        if leaves:
                            break
            except httpx.HTTPError:
                over.wait(0.05)


def _kill_each(stack: Stack, counter: Counter) -> float:
    """Kill Redis, the router and the agent while requests are served; return when the router was killed."""
    killed_at = 0.0
    kinds: tuple[Callable[[], psutil.Process], ...] = (
        lambda: next(p for p in psutil.Process(stack.process.pid).children() if "redis-server" in p.name()),
        lambda: stack.child("router"),
        lambda: stack.child("agent"),
    )
    for find in (*kinds, None):
        until = time.monotonic() + SOAK_S / 4
        eventually(lambda until=until: counter.grow() and time.monotonic() >= until, within_s=SOAK_S)  # type: ignore[misc]
        if find is not None:
            process = find()
            killed_at = time.time() if find is kinds[1] else killed_at
            process.kill()
    return killed_at


def _counted(stack: Stack) -> dict[str, Any]:
    """Return the total of all usage; zeros while the router or its record is away."""
    try:
        answer = stack.http.get("/admin/usage", headers={"authorization": f"Bearer {stack.local_key()}"})
        total: dict[str, Any] = answer.json()["total"] if answer.status_code == 200 else {}
    except httpx.HTTPError:
        total = {}
    return {name: total.get(name, 0) for name in ("requests", *NAMES, "gpu_s", "joules")}


def _chats(stack: Stack, key: str) -> bool:
    body = {"model": "org/model", "messages": [{"role": "user", "content": "Hello!"}]}
    headers = {"authorization": f"Bearer {key}"}
    return stack.http.post("/v1/chat/completions", json=body, headers=headers).is_success


def _metrics(stack: Stack) -> str:
    return httpx.get(f"http://{stack.env['CORTEX_GATEWAY__METRICS_LISTEN']}/metrics", trust_env=False).text


def _logged(stack: Stack) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in stack.log("router").splitlines() if '"event": "request"' in text]
    return [line for line in lines if line["event"] == "request"]


def _sums(lines: list[dict[str, Any]]) -> dict[str, int]:
    return {"requests": len(lines), **{name: sum(line[name] for line in lines) for name in NAMES}}


def _at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()
