"""Measure the router beside nginx, a bare relay and other gateways, in one run (`just bench`).

All answer from one upstream, by turns (A B A B), so that the machine's speed and load cancel out in the ratios. The
router checks a key, resolves an alias, and has metrics, log, decisions and last uses on; a record says that its worker
is ready, without an agent.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import httpx
import msgspec
import psutil
import redis

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.api_keys import ApiKey, Limits, digest
from cortex.platform.record import HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.router.live_catalogue import LiveCatalogue
from tests.bench import cold_path, contenders, cpu_share, load
from tests.bench.contenders import Contender
from tests.bench.load import Timings
from tests.bench.page import COLD_STARTS, PAGE, cpu_model, section, titles, with_section
from tests.bench.scenarios import HELD, MODEL, SCENARIOS, WAITING, Scenario
from tests.support import program
from tests.support.catalogues import aliases, fake
from tests.support.stack import eventually, own_redis

ROOT = Path(__file__).parents[2]
WARM = Function(id="bench/model", engine=Engine.FAKE)
COLD = Function(id="bench/cold", engine=Engine.FAKE)
KEYS = {
    "bench": ApiKey(digest=digest("sk-bench"), id="bench", name="bench"),
    "limited": ApiKey(digest=digest("sk-limited"), id="limited", name="limited", limits=Limits(rpm=1)),
}
PROFILE_S = 15.0
HEAD = """\
# Benchmarks

What the router costs beside nginx and a bare relay (ASGI in, aiohttp out, nothing in between). All are in front of one
upstream, by turns in one run. Read the ratios, of which each is the median of the rounds' ratios: the machine's speed
and load cancel out in them. CPU is the median of the rounds, the rest the best round's. `just bench` writes this page
(`just bench NAME --write` one section), `just bench-cold --write` its last section; `just profile SCENARIO` shows where
the time goes.

Machine: {cpus}. Software: {software}. Date: {date}.

cortex checks a key, resolves an alias, and has metrics, log lines, decisions and last uses on. CPU is that of all its
processes; with `--workers 2` they share one listener."""


class Figure(msgspec.Struct, frozen=True):
    """What one server needed for one scenario: the median CPU time of a request, and the best round's other values."""

    rounds_us: tuple[float, ...]
    """CPU time of a request, by round."""
    rps: float
    p50_ms: float
    p99_ms: float
    memory_mb: float

    @property
    def cpu_us(self) -> float:
        return median(self.rounds_us)

    def times(self, other: "Figure") -> float:
        """Return the median ratio of CPU times, round by round: each round has the machine's speed of its time."""
        return median(a / b for a, b in zip(self.rounds_us, other.rounds_us, strict=True))


class Bench:
    """The servers of one run, and the record that makes the router's worker ready."""

    def __init__(self, folder: Path, redis_url: str, argv: Sequence[str]) -> None:
        self.folder, self._argv = folder, argv
        self._record = redis.Redis.from_url(redis_url)
        self._cpus = _cpus()
        self.worker = 0
        (folder / "models.toml").write_text(fake(WARM.id) + fake(COLD.id, queue=2000) + aliases({MODEL: WARM.id}))
        self._digest = LiveCatalogue(folder / "models.toml").digest
        (folder / "fleet.token").write_text("x" * 43)
        self._env = {
            "CORTEX_REDIS_URL": redis_url,
            "CORTEX_MODELS_CONFIG": str(folder / "models.toml"),
            "CORTEX_TOKEN_FILE": str(folder / "fleet.token"),
            "CORTEX_GATEWAY__MAX_CONNECTIONS": "20000",
            "CORTEX_GATEWAY__MAX_CONNECTIONS_PER_PEER": "20000",
        }
        asyncio.run(self._write_keys(redis_url))
        if self._cpus:
            os.sched_setaffinity(0, self._cpus[0])

    async def _write_keys(self, redis_url: str) -> None:
        registry = Registry(redis_url)
        await registry.api_keys.put(*KEYS.values())
        await registry.close()

    @contextlib.contextmanager
    def servers(self, workers: Sequence[int], peers: Sequence[str]) -> Iterator[list[Contender]]:
        """Run the upstream and the contenders until the end of the context."""
        cpus = self._cpus[2] if self._cpus else ()
        with contextlib.ExitStack() as stack:
            self.worker = stack.enter_context(contenders.worker(self.folder, self._cpus[1] if self._cpus else ()))
            self.say()
            matches = [stack.enter_context(contenders.relay(self.folder, self.worker, cpus))]
            if shutil.which("nginx"):
                matches.append(stack.enter_context(contenders.nginx(self.folder, self.worker, cpus)))
            routers = (contenders.cortex(self.folder, self._env, number, cpus, self._argv) for number in workers)
            matches += map(stack.enter_context, routers)
            for peer in peers:
                name, _, url = peer.partition("=")
                if url:
                    matches.append(Contender(name, url.rstrip("/"), translates=True))
                elif name == "litellm":
                    matches.append(stack.enter_context(contenders.litellm(self.folder, self.worker, cpus)))
                else:
                    raise SystemExit(f"unknown peer {peer!r}: use litellm, or NAME=URL")
            for one in matches:
                within_s = 300 if one.name == "litellm" else 60
                eventually(lambda one=one: _answers(one), within_s=within_s, what=f"{one.name} to answer")  # type: ignore[misc]
            yield matches

    def say(self, cold: State = State.STARTING) -> None:
        """Write the record of a host for a minute: one worker is ready, and another is in a given state."""
        now = time.time()
        url = f"http://127.0.0.1:{self.worker}"
        instances = tuple(
            Instance(
                id=function.id.rpartition("/")[2], function=function.id, revision=revision(function), state=state,
                since=now, created=now, ready=now, url=url,
            )
            for function, state in ((WARM, State.READY), (COLD, cold))
        )  # fmt: skip
        host = HostRecord(
            name="bench", address="http://127.0.0.1:9", at=now, engines={"fake": "1"}, instances=instances,
            catalogue=self._digest,  # else routers would try to send theirs to an agent
        )  # fmt: skip
        self._record.set("cortex:host:bench", msgspec.json.encode(host), ex=60)
        self._record.publish("cortex:changed", "host:bench")

    def waiting(self) -> int:
        """Return how many requests wait for the cold function, by the routers' reports."""
        total = 0
        for name in self._record.scan_iter("cortex:router:*"):
            report = msgspec.json.decode(self._record.get(name) or b"{}")
            total += report.get("waiting", {}).get(COLD.id, 0)
        return total


def main() -> int:
    """Measure, print a table and write the page."""
    options = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="cortex-bench-"))
    try:
        with own_redis(folder) as redis_url:
            bench = Bench(folder, redis_url, options.router.split())
            if options.profile:
                return _profile(bench, SCENARIOS[options.profile], options.profile)
            sections = _sections(bench, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.only:
        sections[COLD_STARTS] = section(PAGE.read_text(), COLD_STARTS)
        PAGE.write_text(_page(_head(options.peers), sections))
    elif options.write:
        page = PAGE.read_text()
        earlier = {title: section(page, title) for title in titles(page)}
        written = earlier | sections
        written[COLD_STARTS] = written.pop(COLD_STARTS, "")  # at the end
        PAGE.write_text(_page(_head(options.peers), written))
    if not options.only or options.write:
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def _sections(bench: "Bench", options: argparse.Namespace) -> dict[str, str]:
    """Measure what was chosen; return the page's sections by title."""
    chosen, sections = options.only or CHOICES, dict[str, str]()
    figures: dict[str, dict[str, Figure]] = {}
    if set(chosen) - {COLD_PATH}:
        with bench.servers((1, 2), options.peers) as servers:
            for name in chosen:
                if (scenario := SCENARIOS.get(name)) is not None:
                    figures[name] = _measure(bench, servers, scenario, options)
                    relay = figures.get(scenario.baseline or name, {}).get("relay")
                    sections[name] = _show(name, _table(figures[name], relay))
                elif name != COLD_PATH:
                    title, text = MORE[name](bench, servers, options)
                    sections[title] = _show(title, text)
    if COLD_PATH in chosen:
        folder = bench.folder / "cold-path"
        folder.mkdir()
        sections[COLD_PATH] = _show(COLD_PATH, cold_path.table(folder, options.functions, options.starts))
    return sections


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just bench", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="SCENARIO", help=f"of {', '.join(CHOICES)}; without: all")
    parser.add_argument("--write", action="store_true", help="write the page's sections of these scenarios")
    parser.add_argument("--requests", type=int, default=1000, help="plain requests per round and server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--held", type=int, default=5000, help="streams that one router process holds")
    parser.add_argument("--users", type=int, default=50, help="users of the paced requests")
    parser.add_argument("--rate", type=int, default=200, help="paced requests per second")
    parser.add_argument("--many", type=int, default=100_000, help="requests over which memory is watched")
    parser.add_argument("--functions", type=int, default=1000, help="functions of the cold path's catalogue")
    parser.add_argument("--starts", type=int, default=40, help="cold starts to measure")
    parser.add_argument("--waiters", type=int, default=500, help="requests that wait for one cold function")
    parser.add_argument("--peers", action="append", default=[], metavar="litellm", help="another gateway to install")
    parser.add_argument("--peer", action="append", dest="peers", metavar="NAME=URL", help="another that runs already")
    parser.add_argument("--router", default=f"{sys.executable} -m cortex.cli", help="the `cortex` to measure")
    parser.add_argument("--profile", choices=SCENARIOS, help="only record a flame graph of the router")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in CHOICES]:
        parser.error(f"unknown scenario {unknown[0]!r}: use {', '.join(CHOICES)}")
    return options


def _measure(
    bench: Bench, servers: Sequence[Contender], scenario: Scenario, options: argparse.Namespace
) -> dict[str, Figure]:
    """Send a scenario to each server by turns; return the figures of each."""
    number = max(scenario.connections, int(options.requests * scenario.share))
    able = [s for s in servers if s.translates or not scenario.translates]
    rounds: dict[str, list[Figure]] = {server.name: [] for server in able}
    for _ in range(options.rounds):
        for server in able:
            bench.say()
            asyncio.run(load.send(server.url, scenario, f"sk-{scenario.key}", scenario.connections, checks=False))
            before = server.cpu_s()
            timings = asyncio.run(load.send(server.url, scenario, f"sk-{scenario.key}", number))
            rounds[server.name].append(_figure(server, timings, server.cpu_s() - before))
    return {
        name: Figure(
            rounds_us=tuple(f.cpu_us for f in result),
            rps=max(f.rps for f in result),
            p50_ms=min(f.p50_ms for f in result),
            p99_ms=min(f.p99_ms for f in result),
            memory_mb=max(f.memory_mb for f in result),
        )
        for name, result in rounds.items()
    }


def _figure(server: Contender, timings: Timings, cpu_s: float) -> Figure:
    number = len(timings.each)
    return Figure(
        rounds_us=(cpu_s / number * 1e6,),
        rps=number / timings.whole_s,
        p50_ms=timings.percentile_ms(0.5),
        p99_ms=timings.percentile_ms(0.99),
        memory_mb=server.memory_mb(),
    )


def _table(figures: dict[str, Figure], relay: Figure | None) -> str:
    """Return a scenario's table in Markdown, beside the relay's figure."""
    lines = [
        "| server | CPU µs | × relay | requests/s | p50 ms | p99 ms | memory MiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for server, f in figures.items():
        has_process = f.memory_mb > 0
        ratio = f"{f.times(relay):.2f}" if relay and has_process else ""
        cpu, memory = (f"{f.cpu_us:.0f}", f"{f.memory_mb:.0f}") if has_process else ("", "")
        lines.append(f"| {server} | {cpu} | {ratio} | {f.rps:.0f} | {f.p50_ms:.1f} | {f.p99_ms:.1f} | {memory} |")
    return "\n".join(lines)


def _waiters(bench: Bench, servers: Sequence[Contender], options: argparse.Namespace) -> tuple[str, str]:
    router, number = next(s for s in servers if s.name == "cortex"), options.waiters
    bench.say(State.STARTING)
    before = router.cpu_s()
    timings = asyncio.run(
        load.wait_together(router.url, WAITING, "sk-bench", number, lambda: bench.say(State.READY), bench.waiting)
    )
    cpu_us, p50, p99 = (router.cpu_s() - before) / number * 1e6, *map(timings.percentile_ms, (0.5, 0.99))
    return (
        f"{number} requests that wait for one cold function",
        f"From its worker's readiness to the end of each stream of 100 chunks: p50 {p50:.0f} ms, p99 {p99:.0f} ms; "
        f"CPU {cpu_us:.0f} µs for each, the wait included.",
    )


def _held(bench: Bench, servers: Sequence[Contender], options: argparse.Namespace) -> tuple[str, str]:
    router, number = next(s for s in servers if s.name == "cortex"), options.held
    bench.say()
    before = router.memory_mb()
    during = asyncio.run(load.hold(router.url, HELD, "sk-bench", number, router.memory_mb))
    return (
        f"{number} streams held open in one process",
        f"Memory {during:.0f} MiB; {before:.0f} MiB before them "
        f"({(during - before) / number * 1024:.1f} KiB for each).",
    )


def _memory(bench: Bench, servers: Sequence[Contender], options: argparse.Namespace) -> tuple[str, str]:
    """Send many plain requests to one process, and read its memory after each tenth."""
    router, plain, tenth = next(s for s in servers if s.name == "cortex"), SCENARIOS["plain"], options.many // 10
    memory_mb = list[float]()
    for number in range(1, 11):
        bench.say()
        asyncio.run(load.send(router.url, plain, f"sk-{plain.key}", tenth))
        memory_mb.append(router.memory_mb())
        print(f"{number * tenth} requests: {memory_mb[-1]:.0f} MiB", file=sys.stderr, flush=True)
    return (
        "memory over many requests",
        f"One process, {tenth * 10} plain requests. MiB after each tenth: {', '.join(f'{m:.0f}' for m in memory_mb)}.",
    )


def _scaling(bench: Bench, servers: Sequence[Contender], options: argparse.Namespace) -> tuple[str, str]:
    """Compare one router worker with two, each limited to an equal share of a CPU."""
    plain, rps = SCENARIOS["plain, 64 connections"], dict[str, float]()
    try:
        for name in ("cortex", "cortex, 2 workers"):
            router = next(s for s in servers if s.name == name)
            assert router.process is not None
            pids = [p.pid for p in router.process.children()] or [router.process.pid]
            with cpu_share.limited(pids, SHARE):
                for _ in range(options.rounds):
                    bench.say()
                    timings = asyncio.run(load.send(router.url, plain, f"sk-{plain.key}", options.requests))
                    rps[name] = max(rps.get(name, 0.0), len(timings.each) / timings.whole_s)
    except OSError as error:
        return TWO_WORKERS, f"Not measured: a worker's CPU time cannot be limited here ({error})."
    one, two = rps.values()
    return (
        TWO_WORKERS,
        f"Each worker has {SHARE:.0%} of a CPU, so that load and upstream have the rest: {one:.0f} plain requests/s by "
        f"one, {two:.0f} by two, {two / one:.2f} × as many.",
    )


def _added(bench: Bench, servers: Sequence[Contender], options: argparse.Namespace) -> tuple[str, str]:
    """Compare the time of a request with the time without a server between, at a rate that leaves the machine idle."""
    plain, users, rate = SCENARIOS["plain"], options.users, options.rate
    direct = Contender("upstream alone", f"http://127.0.0.1:{bench.worker}")
    rounds = dict[str, list[tuple[float, ...]]]()
    for _ in range(options.rounds):
        for server in (direct, *servers):
            bench.say()
            asyncio.run(load.send_paced(server.url, plain, f"sk-{plain.key}", users, rate, users))
            before, number = server.cpu_s(), int(rate * PACED_S)
            timings = asyncio.run(load.send_paced(server.url, plain, f"sk-{plain.key}", users, rate, number))
            cpu_us = (server.cpu_s() - before) / number * 1e6
            row = (timings.percentile_ms(0.5), timings.percentile_ms(0.99), cpu_us)
            rounds.setdefault(server.name, []).append(row)
    lines = [
        f"{users} users send {rate} plain requests/s together. Medians of the rounds; CPU includes an idle server's.",
        "",
        "| server | p50 ms | p99 ms | added p50 | added p99 | CPU µs |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    least50, least99, _ = (median(values) for values in zip(*rounds[direct.name], strict=True))
    for name, rows in rounds.items():
        p50, p99, cpu_us = (median(values) for values in zip(*rows, strict=True))
        added = f"{p50 - least50:.2f} | {p99 - least99:.2f} | {cpu_us:.0f} |" if name != direct.name else "| | |"
        lines.append(f"| {name} | {p50:.2f} | {p99:.2f} | {added}")
    return "added latency", "\n".join(lines)


TWO_WORKERS = "two workers beside one"
SHARE = 0.3
PACED_S = 2.0
"""Duration of a paced round."""
MORE: dict[str, Callable[[Bench, Sequence[Contender], argparse.Namespace], tuple[str, str]]] = {
    "added latency": _added,
    "two workers": _scaling,
    "waiting": _waiters,
    "held": _held,
    "memory": _memory,
}
"""What is no table of servers: each returns a title and a text."""
COLD_PATH = "the cold path"
CHOICES = (*SCENARIOS, *MORE, COLD_PATH)


def _show(title: str, text: str) -> str:
    print(f"## {title}\n\n{text}", end="\n\n", flush=True)
    return text


def _page(head: str, sections: Mapping[str, str]) -> str:
    page = f"{head}\n"
    for title, text in sections.items():
        page = with_section(page, title, text)
    return page


def _head(peers: Sequence[str]) -> str:
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr.strip()
    software = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "httptools", "aiohttp")),
        nginx.removeprefix("nginx version: "),
        *(peers or ()),
    ]
    pins = "pinned" if _cpus() else "not pinned: too few CPUs"
    return HEAD.format(
        cpus=f"{os.cpu_count()} CPUs ({pins}), {cpu_model()}",
        software=", ".join(software),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def _profile(bench: Bench, scenario: Scenario, name: str) -> int:
    """Record a flame graph of the router under a scenario, with py-spy."""
    target = ROOT / "artifacts" / f"profile-{name.replace(' ', '-').replace(',', '')}.svg"
    target.parent.mkdir(exist_ok=True)
    with bench.servers((1,), ()) as servers:
        router = next(s for s in servers if s.name == "cortex")
        assert router.process is not None
        argv = ["uvx", "py-spy", "record", "-r", "500", "-o", str(target), "-d", "600", "-p", str(router.process.pid)]
        spy = subprocess.Popen(argv)
        deadline = time.monotonic() + PROFILE_S
        while time.monotonic() < deadline and spy.poll() is None:
            bench.say()
            asyncio.run(load.send(router.url, scenario, f"sk-{scenario.key}", scenario.connections * 10))
        spy.send_signal(signal.SIGINT)
        if spy.wait(60) != 0:
            return 1
    print(f"written: {target.relative_to(ROOT)}")
    return 0


def _answers(contender: Contender) -> bool:
    plain = SCENARIOS["plain"]
    assert not contender.has_ended, f"{contender.name} ended before it answered"
    with contextlib.suppress(httpx.HTTPError):
        sent = httpx.post(
            contender.url + plain.path,
            content=plain.body,
            headers=load.headers("sk-bench"),
            trust_env=False,
            timeout=10,
        )
        return sent.status_code == 200
    return False


def _cpus() -> tuple[list[int], list[int], list[int]] | None:
    """Return CPUs of their own for load, upstream and contenders; None where there are fewer than four."""
    cpus = sorted(os.sched_getaffinity(0)) if psutil.cpu_count() else []
    return (cpus[:1], cpus[1:2], cpus[2:]) if len(cpus) >= 4 else None


if __name__ == "__main__":
    sys.exit(program.run(main))
