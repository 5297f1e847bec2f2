"""The simulation: the product holds every invariant, one seed is one run, and broken variants are found."""

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import main
from tests.simulation.batch import run_one
from tests.simulation.run import Result, simulate
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.shrink import shrink

SHORT_S = 2.0
GROUPS = 8
SEEDS = 200
CHEAP = {"lost effect": 20}
"""Variants that so many seeds find; `just simulate --variants` tries all of them."""


@pytest.mark.parametrize("group", range(GROUPS))
def test_two_hundred_short_seeds_hold_every_invariant(group: int) -> None:
    results = [run_one((seed, SHORT_S, "")) for seed in range(group, SEEDS, GROUPS)]

    assert [
        f"just simulate --seed {r.seed} --active-s {SHORT_S:g}: {r.violation}" for r in results if r.violation
    ] == []
    assert sum(r.outcomes.get("served", 0) + r.outcomes.get("served cold", 0) for r in results) > 50
    assert sum(sum(r.faults.values()) for r in results) > 20


def test_one_seed_is_one_run_whatever_the_order_of_hashes() -> None:
    code = (
        "from tests.simulation.run import simulate; from tests.simulation.scenario import scenario;"
        " print(*(simulate(scenario(s, active_s=3)).digest for s in (1, 8)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    ]

    here = [simulate(scenario(seed, active_s=3)).digest for seed in (1, 8)]

    assert runs[0] == runs[1] == " ".join(here) + "\n"


@pytest.mark.parametrize("variant", CHEAP)
def test_a_broken_variant_is_found(variant: str) -> None:
    assert any(run_one((seed, SHORT_S, variant)).violation for seed in range(CHEAP[variant]))


def test_a_failing_scenario_shrinks_to_what_it_needs() -> None:
    whole = next(s for s in map(scenario, range(50)) if len(s.faults) > 2 and len(s.requests) > 6)

    def fails(smaller: Scenario) -> Result | None:
        return Result(seed=1) if whole.faults[1] in smaller.faults and whole.requests[4] in smaller.requests else None

    smallest, runs = shrink(whole, fails)

    assert (smallest.faults, smallest.requests) == ((whole.faults[1],), (whole.requests[4],))
    assert runs < 60


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--seeds", "x"], ["--variant", "unknown"]])
def test_a_wrong_argument_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)

    assert refused.value.code == 2
    assert arguments[1] in capsys.readouterr().err
