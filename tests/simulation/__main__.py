"""`just simulate`: run seeds, print what happened, and show how a seed fails."""

import argparse
import contextlib
import json
import os
import sys

from msgspec import to_builtins

from cortex.functions.spec import Function
from tests.simulation.batch import Job, first_failure, run_all
from tests.simulation.run import Result, simulate
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.shrink import shrink
from tests.simulation.variants import VARIANTS, broken

SEEDS = 10_000
ACTIVE_S = 12.0
WITHIN = 500
"""Each broken variant must be found within this number of seeds."""
MOST = 1e6
"""The largest `--active-s` and `--rate`."""
FUNCTIONS, RATE = 10_000, 500.0
"""Without `--functions` and `--rate`."""
FAILURES_SHOWN = 5
TRACE_LINES = 40


def main(argv: list[str] | None = None) -> int:
    """Run the command. Return its exit status: 0 all seeds passed, 1 a seed failed, 130 interrupted."""
    options = _options(argv)
    if options.hosts:
        return _scale(options)
    if options.seed is not None:
        return _one(options)
    if options.variants:
        return _variants(options)
    table, interrupted = run_all(_jobs(options, options.seeds), options.jobs)
    if options.json:
        print(json.dumps(table.as_json(), indent=2))
    else:
        print(table.text())
        for seed, violation in sorted(table.failures)[:FAILURES_SHOWN]:
            print(f"\nseed {seed} failed: {violation}\n  just simulate --seed {seed}{_as_given(options)}")
    if interrupted:
        return 130
    return 1 if table.failures else 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just simulate", description=__doc__)
    parser.add_argument("--seed", type=_whole, help="run one seed, show its trace, and shrink it if it fails")
    parser.add_argument("--seeds", type=_count, default=SEEDS, help=f"how many seeds to run (default {SEEDS})")
    parser.add_argument("--first", type=_whole, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--active-s", type=_positive, default=ACTIVE_S, help="virtual seconds of load and faults per seed"
    )
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="", help="run a deliberately broken variant")
    parser.add_argument("--variants", action="store_true", help=f"show that each variant is found in {WITHIN} seeds")
    scale = parser.add_argument_group("cost of a large record", "a real router's parts against a real Redis, no seeds")
    scale.add_argument("--hosts", type=_count, help="how many hosts the record has")
    scale.add_argument("--functions", type=_count, help=f"how many functions (default {FUNCTIONS})")
    scale.add_argument("--rate", type=_positive, help=f"cold functions requested a second (default {RATE:g})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(argv)
    if not options.hosts and (options.functions or options.rate):
        parser.error("--functions and --rate measure a large record: add --hosts N")
    return options


def _whole(text: str) -> int:
    number = int(text) if text.removeprefix("-").isdecimal() else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


def _count(text: str) -> int:
    number = _whole(text) if text.isdecimal() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 < number <= MOST:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {MOST:g}")


def _as_given(options: argparse.Namespace) -> str:
    more = f" --active-s {options.active_s:g}" if options.active_s != ACTIVE_S else ""
    return more + (f" --variant '{options.variant}'" if options.variant else "")


def _one(options: argparse.Namespace) -> int:
    whole = scenario(options.seed, active_s=options.active_s)

    def fails(smaller: Scenario) -> Result | None:
        with broken(options.variant):
            result = simulate(smaller)
        return result if result.invariant == first.invariant else None

    with broken(options.variant):
        first = simulate(whole)
    smallest, runs = (whole, 0) if not first.violation else shrink(whole, fails)
    last = (fails(smallest) if first.violation else first) or first
    if options.json:
        plan = [str(f) for f in smallest.faults]
        print(
            json.dumps(
                {**to_builtins(last), "shrunk_faults": plan, "shrunk_requests": len(smallest.requests)}, indent=2
            )
        )
        return 1 if first.violation else 0
    shown = last.trace if not first.violation else last.trace[-TRACE_LINES:]
    if len(shown) < len(last.trace):
        print(f"          … {len(last.trace) - len(shown)} lines before")
    print("\n".join(shown))
    if not first.violation:
        print(f"\nseed {options.seed} holds every invariant; {dict(last.outcomes)}; digest {last.digest}")
        return 0
    print(f"\nseed {options.seed} failed: {first.violation}")
    print(f"\nshrunk in {runs} runs to {len(smallest.faults)} faults and {len(smallest.requests)} requests:")
    for name, devices in smallest.machines.items():
        print(f"  {name}: {devices}")
    for function in smallest.functions.values():
        print(f"  {_declared(function)}")
    for line in sorted([f"{f}" for f in smallest.faults] + [f"{r.at:8.3f} s {r}" for r in smallest.requests]):
        print(f"  {line}")
    return 1


def _declared(function: Function) -> str:
    """Return a function with what differs from the defaults."""
    plain = Function(id=function.id, engine=function.engine)
    fields = {name: getattr(function, name) for name in function.__struct_fields__}
    return f"{function.id}: " + ", ".join(f"{n}={v}" for n, v in fields.items() if v != getattr(plain, n))


def _scale(options: argparse.Namespace) -> int:
    from tests.simulation.scale import measure

    figures = measure(options.hosts, options.functions or FUNCTIONS, options.rate or RATE)
    print(json.dumps(to_builtins(figures), indent=2) if options.json else figures.text())
    return 0


def _jobs(options: argparse.Namespace, number: int) -> list[Job]:
    return [(seed, options.active_s, options.variant) for seed in range(options.first, options.first + number)]


def _variants(options: argparse.Namespace) -> int:
    missed = 0
    for variant in [options.variant] if options.variant else VARIANTS:
        options.variant = variant
        result = first_failure(_jobs(options, WITHIN), options.jobs)
        print(f"{variant:<32} " + (f"found by seed {result.seed}: {result.violation}" if result else "NOT FOUND"))
        missed += result is None
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
