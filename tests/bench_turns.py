"""What turns do for functions that share memory: waits, answers and starts, with and without (`just bench-turns`).

Each scenario keeps some functions busy with streamed requests while one client of a function that needs the same
memory sends one request after another. Without turns (`turn_wait_s = 0`) that client waits until the others stop.
`python -m tests.bench_turns [--seconds S] [SCENARIO ...]`.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from msgspec import Struct

from cortex.platform.weights.demo_model import write_bigram
from tests.support import program
from tests.support.catalogues import entry
from tests.support.fleet import Fleet
from tests.support.stack import own_redis

TEXT = "one two three four five six seven eight nine ten"
GPU = {"name": "24 GB", "vram_mb": 24_576}
RAM = {"name": "declared memory", "vram_mb": 24_576, "kind": "cpu"}
ONE, BOTH = {"vram_mb": 20_000}, {"vram_mb": 40_000, "min_devices": 2}
FAKE = {"engine": "fake", "args": ["--tps", "20", "--tokens", "40"]}
LLAMA = {"engine": "llamacpp", "context": 2048}


class Scenario(Struct, frozen=True):
    """Functions with their keys and numbers of clients, on hosts with devices."""

    title: str
    functions: dict[str, tuple[dict[str, Any], int]]
    hosts: dict[str, Sequence[dict[str, Any]]]


SCENARIOS = {
    "two": Scenario("two functions, memory for one", {"f1": (FAKE | ONE, 4), "f2": (FAKE | ONE, 1)}, {"a": [GPU]}),
    "three": Scenario(
        "three functions, memory for one",
        {"f1": (FAKE | ONE, 4), "f2": (FAKE | ONE, 1), "f3": (FAKE | ONE, 1)},
        {"a": [GPU]},
    ),
    "devices": Scenario(
        "two of one device, one of two devices",
        {"f1": (FAKE | ONE, 4), "f3": (FAKE | ONE, 4), "f2": (FAKE | BOTH, 1)},
        {"a": [GPU, GPU]},
    ),
    "hosts": Scenario(
        "three functions, two hosts of one device",
        {"f1": (FAKE | ONE, 4), "f3": (FAKE | ONE, 4), "f2": (FAKE | ONE, 1)},
        {"a": [GPU], "b": [GPU]},
    ),
    "llamacpp": Scenario(
        "two functions of real llama.cpp, memory for one",
        {"f1": (LLAMA | ONE, 2), "f2": (LLAMA | ONE, 1)},
        {"a": [RAM]},
    ),
}


class Client(threading.Thread):
    """Sends one streamed request after another until it is stopped."""

    def __init__(self, fleet: Fleet, model: str) -> None:
        super().__init__(daemon=True)
        self._fleet, self._over = fleet, threading.Event()
        self.model, self.waits, self.failures = model, list[float](), 0

    def run(self) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        while not self._over.is_set():
            began = time.monotonic()
            try:
                with self._fleet.http.stream("POST", "/v1/chat/completions", json=body, timeout=300) as answer:
                    events = (line for line in answer.iter_lines() if line.startswith("data:"))
                    next(events, "")
                    self.waits.append(time.monotonic() - began)
                    rest = list(events)
                    self.failures += not (answer.is_success and rest and rest[-1].endswith("[DONE]"))
            except httpx.TransportError:  # also when the run is ended
                self.failures += 1
                return

    def stop(self) -> None:
        self._over.set()


def main() -> None:
    """Run the scenarios and print a line for each function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the busy functions are busy")
    options = parser.parse_args()
    for name in options.scenario or SCENARIOS:
        print(SCENARIOS[name].title, flush=True)
        for wait_s in (0, 20):
            _run(SCENARIOS[name], wait_s, options.seconds)


def _run(scenario: Scenario, wait_s: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="cortex-turns-") as text, own_redis(Path(text)) as url:
        keys = {"turn_wait_s": wait_s, "turn_min_s": 5, "idle_after_s": 600, "start_timeout_s": 280}
        files = _weights(Path(text), scenario)
        catalogue = "".join(entry(n, **keys | own | files.get(n, {})) for n, (own, _) in scenario.functions.items())
        hosts = {name: {"CORTEX_AGENT__DEVICES": json.dumps(devices)} for name, devices in scenario.hosts.items()}
        with Fleet(Path(text), url, catalogue, hosts) as fleet:
            clients = [Client(fleet, name) for name, (_, count) in scenario.functions.items() for _ in range(count)]
            busy = [c for c in clients if c.model != "f2"]
            for client in busy:
                client.start()
                time.sleep(0.1)
            time.sleep(5)
            late = [c for c in clients if c.model == "f2"]
            for client in late:
                client.start()
            time.sleep(seconds)
            for client in clients:
                client.stop()
            for client in clients:
                client.join(320)
            print(f"  turn_wait_s = {wait_s}: {fleet.spawned()} starts in {seconds:.0f} s")
            for name in scenario.functions:
                waits = [w for c in clients if c.model == name for w in c.waits]
                failures = sum(c.failures for c in clients if c.model == name)
                print(
                    f"    {name}: {len(waits) / seconds:5.2f} answers/s, first byte {median(waits):6.2f} s (median) "
                    f"{max(waits):6.2f} s (longest), {failures} failed",
                    flush=True,
                )


def _weights(folder: Path, scenario: Scenario) -> dict[str, dict[str, str]]:
    """Write a small model for each function of llama.cpp; return the key that names it."""
    names = [name for name, (keys, _) in scenario.functions.items() if keys["engine"] == "llamacpp"]
    for name in names:
        write_bigram(folder / f"{name}.gguf", TEXT, name=name)
    return {name: {"source": str(folder / f"{name}.gguf")} for name in names}


if __name__ == "__main__":
    sys.exit(program.run(main))
