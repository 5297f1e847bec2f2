"""Breaks things, one after another in random order, and repairs them a little later."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from cortex.platform.keys import host_token, worker_key
from cortex.platform.process.process_id import is_alive
from cortex.platform.record import Instance
from tests.support.fleet import TOKEN, Fleet
from tests.support.soak.functions import FUNCTIONS, SIZES_MB
from tests.support.soak.harm import LINGERS_S, Harm
from tests.support.soak.watch import Record
from tests.support.stack import eventually

EVERY_S = (0.3, 0.9)
TWICE = ("worker killed", "cooled", "drained", "agent upgraded")
"""What is dealt twice."""
RECORD_AWAY_S = 3.5
UNSETTLED_S = 15.0
"""How long after an agent was away two hosts may have started the same function."""
UNWELL_S = 25.0
"""How long after a worker was silent it may still be given up: three health checks that time out."""


class Faults:
    """The faults, dealt like cards: every kind comes before any comes again."""

    def __init__(self, fleet: Fleet, record: Record, harm: Harm, rng: random.Random) -> None:
        self._fleet, self._record, self._harm, self._rng = fleet, record, harm, rng
        self._heal_at: list[tuple[float, Callable[[], None]]] = []
        self._down: set[str] = set()
        self._record_back: threading.Timer | None = None
        self._operators = ThreadPoolExecutor(4)
        self.done: Counter[str] = Counter()
        self._kinds: Mapping[str, Callable[[], bool]] = {
            "worker killed": self._kill_worker,
            "worker stopped for a while": self._stop_worker,
            "worker stopped for good": lambda: self._stop_worker(for_good=True),
            "agent killed": self._kill_agent,
            "agent upgraded": self._upgrade_agent,
            "router worker killed": self._kill_router_worker,
            "record stopped": self._stop_record,
            "script: crash after n": lambda: self._script({"crash_after": self._rng.randint(1, 3)}),
            "script: crash in a stream": lambda: self._script({"crash_mid_stream": self._rng.randint(0, 8)}),
            "script: cut streams": lambda: self._script({"cut_stream_after": self._rng.randint(0, 8)}),
            "script: errors": lambda: self._script({"fail_status": self._rng.choice([500, 503]), "fail_every": 2}),
            "script: refuse": lambda: self._script({"refuse": True}),
            "script: hang": lambda: self._script({"hang": "serving"}),
            "script: slow health": lambda: self._script({"slow_health_s": self._rng.uniform(1, 7)}, UNWELL_S),
            "script: ignore TERM": lambda: self._script({"ignore_term": True}),
            "script: leak": lambda: self._script({"leak_mb_per_request": 4}),
            "script: fill the log": lambda: self._script({"fill_log_mb": 4}),
            "script: hang while loading": lambda: self._script({"hang": "loading"}),
            "script: another model": lambda: self._script({"wrong_model": "soak/another"}),
            "cooled": self._cool,
            "cooled at once": self._cool_at_once,
            "warmed": self._warm,
            "cordoned": self._cordon,
            "drained": self._drain,
        }

    def run(self, for_s: float) -> None:
        """Break things for so long."""
        over, deck = time.monotonic() + for_s, list[str]()
        while time.monotonic() < over:
            if not deck:
                deck = [*self._kinds, *TWICE]
                self._rng.shuffle(deck)
            kind = deck.pop()
            self.done[kind if self._kinds[kind]() else "(no target)"] += 1
            time.sleep(self._rng.uniform(*EVERY_S))
            self._heal_what_is_due()

    def heal(self) -> None:
        """End all faults."""
        while self._heal_at:
            self._heal_at.pop(0)[1]()
        if self._record_back is not None:
            self._record_back.join()
        self._operators.shutdown()
        for host in SIZES_MB:
            eventually(lambda h=host: self._post(f"/admin/hosts/{h}/uncordon"), within_s=30, what="uncordon")  # type: ignore[misc]
        for instance in self._record.instances():
            self._tell(instance, "PUT", {})

    def _heal_what_is_due(self) -> None:
        now = time.monotonic()
        due = [heal for at, heal in self._heal_at if at <= now]
        self._heal_at = [(at, heal) for at, heal in self._heal_at if at > now]
        for heal in due:
            heal()

    def _later(self, least_s: float, most_s: float, heal: Callable[[], None]) -> None:
        self._heal_at.append((time.monotonic() + self._rng.uniform(least_s, most_s), heal))

    # Workers.

    def _victim(self) -> Instance | None:
        instances = sorted(self._record.instances(), key=lambda i: i.id)
        return self._rng.choice(instances) if instances else None

    def _kill_worker(self) -> bool:
        victim = self._victim()
        if victim is not None:
            self._harm.done(victim.function)
            _signal(victim, signal.SIGKILL)
        return victim is not None

    def _stop_worker(self, *, for_good: bool = False) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        healed = self._harm.begin(victim.function, UNWELL_S)
        _signal(victim, signal.SIGSTOP)

        def heal() -> None:
            _signal(victim, signal.SIGCONT)
            healed()

        if not for_good:
            self._later(1, 6, heal)
        return True

    def _script(self, changes: dict[str, Any], lingers_s: float = LINGERS_S) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        healed = self._harm.begin(victim.function, lingers_s)
        if not self._tell(victim, "POST", changes):
            healed()
            return False

        def heal() -> None:
            if self._tell(victim, "PUT", {}) or not (victim.process and is_alive(victim.process)):
                healed()

        self._later(1, 5, heal)
        return True

    def _tell(self, instance: Instance, method: str, changes: dict[str, Any]) -> bool:
        key = {"Authorization": f"Bearer {worker_key(host_token(TOKEN, instance.host), instance.id)}"}
        with contextlib.suppress(httpx.HTTPError), httpx.Client(headers=key, timeout=2, trust_env=False) as http:
            return http.request(method, f"{instance.url}/fake", json=changes).is_success
        return False

    # Agents, routers, the record.

    def _kill_agent(self) -> bool:
        return self._end_agent(signal.SIGKILL)

    def _upgrade_agent(self) -> bool:
        return self._end_agent(signal.SIGTERM)

    def _end_agent(self, number: signal.Signals) -> bool:
        up = sorted(set(SIZES_MB) - self._down)
        if not up:
            return False
        host = self._rng.choice(up)
        self._down.add(host)
        healed = [self._harm.begin(whom, UNSETTLED_S) for whom in ("agents", f"agent {host}")]
        self._fleet.kill(host, number)

        def heal() -> None:
            self._fleet.start_agent(host)
            self._down.discard(host)
            for note in healed:
                note()

        self._later(0, 2, heal)
        return True

    def _kill_router_worker(self) -> bool:
        workers = router_workers(self._fleet)
        if len(workers) < 2:  # the last one has not come back yet
            return False
        healed = self._harm.begin("router", lingers_s=1.0)
        self._rng.choice(workers).kill()
        healed()
        return True

    def _stop_record(self) -> bool:
        if self._record_back is not None and self._record_back.is_alive():
            return False
        os.kill(self._record.pid, signal.SIGSTOP)
        self._record_back = threading.Timer(RECORD_AWAY_S, os.kill, (self._record.pid, signal.SIGCONT))
        self._record_back.start()
        return True

    # Operators.

    def _cool(self) -> bool:
        fleet = self._record.read()
        flying = {i for report in fleet[1] for i in report.in_flight} if fleet else set()
        busy = sorted({i.function for h in fleet[0] for i in h.instances if i.id in flying}) if fleet else []
        self._operators.submit(self._post, f"/admin/functions/{self._rng.choice(busy or FUNCTIONS)}/cool")
        return True

    def _cool_at_once(self) -> bool:
        function = self._rng.choice(FUNCTIONS)
        self._operators.submit(self._post, f"/admin/functions/{function}/cool?now=1", function)
        return True

    def _warm(self) -> bool:
        function = self._rng.choice(FUNCTIONS)
        self._operators.submit(self._post, f"/admin/functions/{function}/warm", f"start of {function}")
        return True

    def _cordon(self) -> bool:
        host = self._rng.choice(sorted(SIZES_MB))
        self._operators.submit(self._post, f"/admin/hosts/{host}/cordon")
        self._later(2, 5, lambda: self._uncordon(host))
        return True

    def _drain(self) -> bool:
        host = self._rng.choice(sorted(SIZES_MB))
        starts = [f"start of {function}" for function in FUNCTIONS]
        self._operators.submit(self._post, f"/admin/hosts/{host}/drain", *starts)
        self._later(2, 5, lambda: self._uncordon(host))
        return True

    def _uncordon(self, host: str) -> None:
        self._operators.submit(self._post, f"/admin/hosts/{host}/uncordon")

    def _post(self, path: str, *harms: str) -> bool:
        healed = [self._harm.begin(whom) for whom in harms]
        try:
            return httpx.post(self._fleet.url + path, timeout=60, trust_env=False).is_success
        except httpx.TransportError:  # a router worker was killed
            return False
        finally:
            for note in healed:
                note()


def _signal(instance: Instance, number: signal.Signals) -> None:
    if instance.process and is_alive(instance.process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(instance.pid, number)


def router_workers(fleet: Fleet) -> list[psutil.Process]:
    """Return the processes that serve requests for the router."""
    matches = []
    for child in psutil.Process(fleet.processes["router"].pid).children():
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline()):
                matches.append(child)
    return matches
