"""A soak test: random requests and faults on three hosts with pretended GPUs leave nothing behind.

What must hold all the time is looked for all the time, in the record (`Watch`) and in every answer (`Clients`);
what may be broken for a while must be whole again once the faults are healed. A broken answer counts as right
only where a fault explains it (`Harm`). Choices are repeatable (`CORTEX_SOAK_SEED`), their timing is not.
`just soak` runs it for longer.
"""

import itertools
import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from cortex.functions.lifecycle import LIVE, State
from tests.support.catalogues import fake
from tests.support.fleet import TOKEN, Fleet
from tests.support.soak.clients import CLIENTS, LONGEST_ANSWER_S, SECRET, Clients
from tests.support.soak.faults import Faults
from tests.support.soak.functions import FUNCTIONS, MODELS, SIZES_MB, agents
from tests.support.soak.harm import Harm, Wrong
from tests.support.soak.watch import Record, Watch
from tests.support.stack import eventually, own_redis

pytestmark = pytest.mark.long

SOAK_S = float(os.environ.get("CORTEX_SOAK_S", "12"))
SEED = int(os.environ.get("CORTEX_SOAK_SEED", "20"))
CONVERGED_S = 120.0


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with own_redis(tmp_path) as url:
        yield url


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path, redis_url, MODELS, agents(), workers=2) as running:
        yield running


def rows(fleet: Fleet) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = fleet.http.get("/admin/functions").json()["functions"]
    return answer


def unsettled(fleet: Fleet, record: Record) -> list[str]:
    """What has not come to rest yet."""
    reading = record.read()
    if reading is None:
        return ["the record is away"]
    hosts, routers = reading
    matches = [f"{len(hosts)} hosts, {len(routers)} routers"] if (len(hosts), len(routers)) != (3, 2) else []
    matches += [f"{record.claims()} claims"] if record.claims() else []
    for row in rows(fleet):
        matches += [f"{row['id']} {k} {row[k]}" for k in ("in_flight", "waiting") if row[k]]
        matches += [f"{row['id']} {i['id']} is {i['state']}" for i in row["instances"] if i["state"] != State.READY]
    return matches


def left_over(fleet: Fleet) -> list[str]:
    """What is left although everything is cold. Cools again what came back or was busy."""
    matches = [f"process {p.pid}" for p in fleet.workers()]
    for row in rows(fleet):
        matches += [f"{row['id']} {i['id']} is {i['state']}" for i in row["instances"]]
        if any(i["state"] in LIVE for i in row["instances"]):
            fleet.http.post(f"/admin/functions/{row['id']}/cool")
    for name in SIZES_MB:
        children = psutil.Process(fleet.processes[name].pid).children()
        matches += [f"zombie of {name}" for c in children if c.status() == psutil.STATUS_ZOMBIE]
    return matches


def serves_again(fleet: Fleet, function: str) -> str:
    """Have a function serve one last request, whatever happened to it before, and let it go."""

    def answers() -> bool:
        fleet.http.post(f"/admin/functions/{function}/warm")
        answer = fleet.chat(function)
        content = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else ""
        return content.split(" ")[0] == function

    eventually(answers, within_s=CONVERGED_S, what=f"{function} to serve again")
    fleet.http.post(f"/admin/functions/{function}/cool")
    return function


def at_last_nothing(look: Callable[[], list[str]]) -> None:
    """Wait until there is nothing to be seen."""
    deadline = time.monotonic() + CONVERGED_S
    while view := look():
        assert time.monotonic() < deadline, f"seed {SEED}: still there after {CONVERGED_S} s: {view}"
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.timeout(SOAK_S + 4 * CONVERGED_S)
def test_after_random_requests_and_faults_the_fleet_is_consistent(fleet: Fleet, tell: Callable[[str], None]) -> None:
    harm, wrong = Harm(), Wrong()
    record = Record(fleet.redis_url)
    clients, watch = Clients(fleet.url, SEED, harm, wrong), Watch(record, harm, wrong)
    faults = Faults(fleet, record, harm, random.Random(f"{SEED} faults"))
    enough, over = threading.Event(), threading.Event()
    asking = [threading.Thread(target=clients.run, args=(n, enough), daemon=True) for n in range(CLIENTS)]
    watching = threading.Thread(target=watch.run, args=(over,), daemon=True)
    clock = [time.monotonic()]

    for thread in (*asking, watching):
        thread.start()
    faults.run(SOAK_S)
    enough.set()
    faults.heal()
    clock.append(time.monotonic())
    for thread in asking:
        thread.join(LONGEST_ANSWER_S)
    at_last_nothing(lambda: unsettled(fleet, record))
    clock.append(time.monotonic())
    at_last_nothing(lambda: left_over(fleet))
    clock.append(time.monotonic())
    with ThreadPoolExecutor(3) as last:
        served = list(last.map(lambda f: serves_again(fleet, f), FUNCTIONS))
    at_last_nothing(lambda: left_over(fleet))
    clock.append(time.monotonic())
    over.set()
    watching.join(10)

    logs = {name: fleet.log(name) for name in (*SIZES_MB, "router")}
    events = Counter(re.findall(r'"event": "(\w+)"', "".join(logs.values())))
    took = ", ".join(f"{b - a:.1f} s" for a, b in itertools.pairwise(clock))
    figures = [
        f"seed {SEED}: driven, at rest, cold, served again after {took}",
        f"{sum(clients.outcomes.values())} requests, the slowest took {clients.slowest_s:.1f} s",
        *(", ".join(f"{what} {n}" for what, n in sorted(c.items())) for c in (clients.outcomes, faults.done, events)),
        f"the record was read {watch.samples} times; the fullest device was {watch.fullest:.0%} full",
    ]
    tell("\n  ".join(figures))
    assert wrong.faults == [], f"seed {SEED}:\n" + "\n".join(wrong.faults)
    assert not any(thread.is_alive() for thread in asking)
    assert served == list(FUNCTIONS)
    assert clients.outcomes["200 whole"] and clients.outcomes["200 stream"]
    assert [name for name, log in logs.items() if SECRET in log or TOKEN in log] == []
    assert [name for name, log in logs.items() if "Traceback" in log] == []


# What soaks have found.

FULL = {"CORTEX_AGENT__RESERVE_MB": "0", "CORTEX_AGENT__DEVICES": json.dumps([{"name": "24 GB", "vram_mb": 24576}])}


def test_functions_that_wait_for_room_do_not_evict_each_other_repeatedly(tmp_path: Path, redis_url: str) -> None:
    """Each refusal is a decision; when a decision rang the bell, each of two waiters made the other ask again."""
    waiting = [fake(f"wait/{n}", vram_mb=24000, start_timeout_s=3) for n in range(3)]
    models = "\n".join([fake("wait/busy", "--tps", "10", "--tokens", "1000", vram_mb=24000), *waiting])
    body = {"model": "wait/busy", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with Fleet(tmp_path, redis_url, models, {"full": FULL}) as full:
        with full.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            next(line for line in stream.iter_lines() if line.startswith("data: "))
            with ThreadPoolExecutor(3) as clients:
                answers = list(clients.map(lambda n: full.chat(f"wait/{n}").status_code, range(3)))
        refused = full.log("full").count('"event": "refused"')

    assert answers == [503] * 3
    assert refused < 150  # it was more than 300; a waiter asks twice, the second time for a turn


def test_a_restarted_agent_does_not_wait_for_a_hung_worker(tmp_path: Path, redis_url: str) -> None:
    """It asked one after another, for 22 s each, and its host was gone from the record meanwhile."""
    models = "\n".join(fake(f"hang/{n}") for n in range(3))
    with Fleet(tmp_path, redis_url, models, {"host": {}}) as small:
        for n in range(3):
            assert small.chat(f"hang/{n}").status_code == 200
        hung = {i.function: psutil.Process(i.pid) for i in small.records()["host"].instances}
        hung.pop("hang/2")
        for worker in hung.values():
            worker.suspend()
        small.kill("host")
        small.start_agent("host")
        eventually(lambda: small.log("host").count('"event": "adopted"') == 3, within_s=15, what="all to be adopted")

        assert small.chat("hang/2").status_code == 200
        assert small.spawned() == 3
