"""500 functions on 50 hosts: the page is fast, small on the wire, and searchable."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.record import Device, HostRecord, Instance
from tests.browser.conftest import Open
from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually, own_redis

HOSTS, FUNCTIONS, DEVICES = 50, 500, 8
STATES = (State.READY, State.READY, State.READY, State.STARTING, State.DRAINING)


def a_record(nth: int, now: float) -> HostRecord:
    """A host with eight devices and sixteen instances."""
    instances = []
    for place in range(2 * DEVICES):
        number = (nth * 16 + place) % FUNCTIONS
        function = Function(id=f"org/model-{number:03}", engine=Engine.FAKE, vram_mb=20_000)
        state = STATES[(nth + place) % len(STATES)]
        up = now - 600 - place if state is State.READY else 0.0
        instances.append(
            Instance(
                id=f"i{nth:02}{place:02}",
                function=function.id,
                revision=revision(function),
                state=state,
                since=now - 30,
                created=now - 700,
                started=now - 20,
                ready=up,
                devices=(f"gpu-{place // 2}",),
                memory_mb=20_000 + 1000 * (place % 5),
                memory_from="measured" if place % 3 else "declared",
                used_mb=18_000,
                last_sign=now,
            )
        )
    devices = tuple(
        Device(id=f"gpu-{d}", name="NVIDIA H100 80GB", kind="gpu", total_mb=81_920, reserve_mb=1024, index=d)
        for d in range(DEVICES)
    )
    return HostRecord(
        name=f"node-{nth:02}", address=f"http://127.0.0.1:1/{nth}", at=now, engines={"fake": "1"}, devices=devices,
        instances=tuple(instances), version="0.1.0",
    )  # fmt: skip


class Crowd:
    """Writes fifty hosts' records over and over, as their agents would."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        born = time.time()
        while not self._over.wait(1.0):
            with self._redis.pipeline(transaction=False) as pipe:
                for nth in range(HOSTS):
                    record = msgspec.structs.replace(a_record(nth, born), at=time.time())
                    pipe.set(f"cortex:host:{record.name}", msgspec.json.encode(record), px=6000)
                    pipe.publish("cortex:changed", f"host:{record.name}")
                pipe.execute()

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)
        self._redis.close()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("crowd")
    catalogue = "\n".join(fake(f"org/model-{n:03}", vram_mb=20_000, idle_after_s=9000) for n in range(FUNCTIONS))
    with own_redis(folder) as url:
        running = Stack(folder, catalogue, env={"CORTEX_REDIS_URL": url}, more=("--devices", "1x24GB"))
        try:
            with Crowd(url):
                yield running
        finally:
            running.end()


def test_five_hundred_functions_on_fifty_hosts_are_shown_and_found(
    crowd: Stack, open_page: Open, shot: Callable[..., None], tell: Callable[[str], None]
) -> None:
    page = open_page(crowd, "wall", "dark")
    page.wait_for_selector('#link[data-state="live"]')
    eventually(lambda: page.locator("#hosts > li").count() > HOSTS, what="every host to be shown")
    page.wait_for_timeout(1500)

    assert page.locator("#functions > tr").count() == FUNCTIONS
    shot(page, "crowd-wall-dark")
    page.get_by_label("Find a host").fill("node-07")
    assert page.locator("#hosts > li:visible").count() == 1
    page.get_by_label("Find", exact=True).fill("model-499")
    assert page.locator("#functions > tr:visible").count() == 1
    took = page.evaluate(
        """() => { const box = document.querySelector('#find'); const began = performance.now();
        for (const text of ['', 'model-1', 'node-3', '']) { box.value = text; box.dispatchEvent(new Event('input')); }
        return (performance.now() - began) / 4; }"""
    )
    tell(f"finding among {FUNCTIONS} functions: {took:.1f} ms")
    assert took < 100


def test_a_large_fleet_is_usable_on_a_phone(crowd: Stack, open_page: Open, shot: Callable[..., None]) -> None:
    page = open_page(crowd, "phone", "light")
    page.wait_for_selector('#link[data-state="live"]')
    eventually(lambda: page.locator("#hosts > li").count() > HOSTS, what="every host to be shown")

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot(page, "crowd-phone-light")


def test_an_idle_large_fleet_has_a_small_stream(crowd: Stack, tell: Callable[[str], None]) -> None:
    eventually(lambda: len(crowd.http.get("/admin/hosts").json()["hosts"]) > HOSTS, within_s=30, what="every host")
    sizes: list[int] = []
    events: list[dict[str, Any]] = []
    with crowd.http.stream("GET", "/status/live") as answer:
        began = time.monotonic()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                sizes.append(len(line))
            if time.monotonic() - began > 12:
                break
    first = next(n for n, e in enumerate(events) if e.get("whole")) + 1
    rest = sum(sizes[first:]) / 10
    tell(f"first look: {sum(sizes[:first]) // 1024} KiB in {first} events; then {rest / 1024:.1f} KiB a second")

    assert max(sizes) < 400_000
    assert rest < 60_000


def test_an_open_page_costs_the_router_little_cpu(crowd: Stack, tell: Callable[[str], None]) -> None:
    """Inference has the same loop: what a look takes, a request may have to wait."""
    router = crowd.child("router")
    with crowd.http.stream("GET", "/status/live") as answer:
        lines = answer.iter_lines()
        began = time.monotonic()
        while time.monotonic() - began < 3:
            next(lines)
        worst, before, since = 0.0, sum(router.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - since < 8:
            start = time.monotonic()
            assert crowd.http.get("/health").is_success
            worst = max(worst, time.monotonic() - start)
            time.sleep(0.02)
        share = (sum(router.cpu_times()[:2]) - before) / (time.monotonic() - since)
    tell(f"one watcher of a large fleet: {share:.0%} of a core, slowest answer meanwhile {worst * 1000:.0f} ms")

    assert worst < 1.0
