"""Runs many seeds over all cores, and adds up what happened."""

import contextlib
import gc
import multiprocessing
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from tests.simulation.run import Result, simulate
from tests.simulation.scenario import scenario
from tests.simulation.variants import broken

PROGRESS_S = 5.0
COLLECTS_EVERY = 8
"""After how many runs garbage is collected."""
Job = tuple[int, float, str]
"""A seed, its virtual seconds of load and faults, and the variant; "" for the product as it is."""


class Table:
    """What many runs came to together."""

    def __init__(self) -> None:
        self.seeds = 0
        self.virtual_s = 0.0
        self.failures: list[tuple[int, str]] = []
        self.faults: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.longest_wait = (0.0, 0)
        self.converged: list[float] = []

    def add(self, result: Result) -> None:
        """Add one run."""
        self.seeds += 1
        self.virtual_s += result.virtual_s
        self.faults.update(result.faults)
        self.outcomes.update(result.outcomes)
        self.starts.update(result.starts)
        self.longest_wait = max(self.longest_wait, (result.longest_wait_s, result.seed))
        if result.violation:
            self.failures.append((result.seed, result.violation))
        else:
            self.converged.append(result.converged_s)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "seeds": self.seeds,
            "virtual_s": round(self.virtual_s),
            "failures": [{"seed": s, "violation": v} for s, v in sorted(self.failures)],
            "faults": dict(sorted(self.faults.items())),
            "requests": dict(sorted(self.outcomes.items())),
            "starts": dict(sorted(self.starts.items())),
            "longest_wait_s": self.longest_wait[0],
            "longest_wait_seed": self.longest_wait[1],
            "convergence_s": self._convergence(),
        }

    def _convergence(self) -> dict[str, float]:
        times = sorted(self.converged)
        if not times:
            return {}
        return {
            "median": statistics.median(times),
            "p95": times[int(len(times) * 0.95)],
            "longest": times[-1],
        }

    def text(self) -> str:
        """Return it for people."""
        lines = [f"{self.seeds} seeds, {self.virtual_s / 3600:.1f} hours of virtual time, {len(self.failures)} failed"]
        for title, counts in (
            ("faults injected", self.faults),
            ("requests by outcome", self.outcomes),
            ("starts by function", self.starts),
        ):
            lines.append(f"\n{title} ({sum(counts.values())})")
            lines += [f"  {name:<24} {number:>9}" for name, number in sorted(counts.items())]
        wait, seed = self.longest_wait
        lines.append(f"\nlongest wait for an instance: {wait:.1f} s (seed {seed})")
        if times := self._convergence():
            parts = ", ".join(f"{name} {value:.1f} s" for name, value in times.items())
            lines.append(f"from the end of faults and load to rest: {parts}")
        return "\n".join(lines)


def run_all(jobs: list[Job], processes: int) -> tuple[Table, bool]:
    """Run jobs; report progress on standard error. Return the table, and whether Ctrl-C ended it early."""
    table, began, reported = Table(), time.monotonic(), time.monotonic()
    with _pool(processes) as pool:
        try:
            for result in pool.imap_unordered(run_one, jobs, chunksize=4):
                table.add(result)
                if result.violation:
                    _report(f"seed {result.seed} failed: {result.violation}")
                if time.monotonic() - reported > PROGRESS_S:
                    reported = time.monotonic()
                    left_s = (reported - began) / table.seeds * (len(jobs) - table.seeds)
                    _report(f"{table.seeds} of {len(jobs)} seeds, {len(table.failures)} failed, {left_s:.0f} s left")
        except KeyboardInterrupt:
            pool.terminate()
            _report(f"interrupted after {table.seeds} seeds")
            return table, True
    return table, False


def first_failure(jobs: list[Job], processes: int) -> Result | None:
    """Return the first job's result that fails; None when all pass."""
    with _pool(processes) as pool:
        results: Iterator[Result] = pool.imap(run_one, jobs, chunksize=4)
        return next((r for r in results if r.violation), None)


def run_one(job: Job) -> Result:
    """Run one job; the result has no trace."""
    seed, active_s, variant = job
    with broken(variant):
        result = simulate(scenario(seed, active_s=active_s))
    if not gc.isenabled() and seed % COLLECTS_EVERY == 0:
        gc.collect()
    return replace(result, trace=(), requests=())


def _pool(processes: int) -> Any:
    return multiprocessing.get_context("spawn").Pool(max(1, processes), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    gc.freeze()  # what is imported stays
    gc.disable()


@contextlib.contextmanager
def collecting_between_runs() -> Iterator[None]:
    """Collect garbage between runs only, where it costs least."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
