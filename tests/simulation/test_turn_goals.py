"""Turns keep what docs/operating.md promises: how long a request waits, and how much of the time goes into answers.

No faults: what is measured is the rule, with the whole control plane around it. Clients send their next request as soon
as they have an answer, so every function is in use all the time.
"""

from collections.abc import Callable
from functools import cache
from random import Random

import pytest

from cortex.functions.spec import Engine, Function
from cortex.platform.scheduling.eviction import RESIDENCY_S
from tests.simulation.run import Result, simulate
from tests.simulation.scenario import Client, Scenario, Start
from tests.simulation.world import Outcome

DEVICE_MB = 16_000
SLACK_S = 4.0
"""Beyond the rule: a tick of the agent, a report of a router, the end of the worker, the retry of a router."""
SPREAD = 0.2
SEEDS, MORE_SEEDS = 1, 20


def a_fleet(seed: int, functions: list[Function], starts: dict[str, float], work_s: float, **rest: object) -> Scenario:
    """A scenario in which two clients of each function are busy all the time."""
    values = {"machines": {"host-a": {"GPU-a0": DEVICE_MB}}, "load_ends": 100.0, "each": 2, **rest}
    load_ends, each = float(str(values["load_ends"])), int(str(values["each"]))
    return Scenario(
        seed=seed,
        machines=values["machines"],  # type: ignore[arg-type]
        routers=("router-0", "router-1"),
        functions={f.id: f for f in functions},
        edited={f.id: f for f in functions},
        starts={f: Start(seconds=s, spread=SPREAD) for f, s in starts.items()},
        uncounted=frozenset(),
        fetches={},
        ports=dict.fromkeys(values["machines"], 4),  # type: ignore[call-overload]
        requests=(),
        faults=(),
        load_ends=load_ends,
        ends=load_ends + 80.0,
        clients=tuple(
            Client(function=f.id, router=f"router-{n % 2}", work_s=work_s, at=0.5 + 0.1 * n)
            for f in functions
            for n in range(each)
        ),
    )


def a_function(id: str, *, devices: int = 1, turn_min_s: float, turn_wait_s: float) -> Function:
    return Function(
        id=id,
        engine=Engine.FAKE,
        vram_mb=12_000 * devices,
        min_devices=devices,
        turn_min_s=turn_min_s,
        turn_wait_s=turn_wait_s,
        start_timeout_s=600.0,
    )


def crowded(random: Random) -> tuple[list[Function], dict[str, float], float, dict[str, object]]:
    """Functions of which fewer fit than there are: on one device, with one that needs two, or over two hosts."""
    where = random.choice(("one device", "two devices", "two hosts"))
    machines = {
        "one device": {"host-a": {"GPU-a0": DEVICE_MB}},
        "two devices": {"host-a": {"GPU-a0": DEVICE_MB, "GPU-a1": DEVICE_MB}},
        "two hosts": {"host-a": {"GPU-a0": DEVICE_MB}, "host-b": {"GPU-b0": DEVICE_MB}},
    }[where]
    number = {"one device": random.choice((2, 3)), "two devices": 3, "two hosts": random.choice((3, 4))}[where]
    starts = {f"f{n}": random.choice((0.5, 2.0, 4.0)) for n in range(number)}
    turn_min_s, work_s = random.choice((2.0, 4.0)), random.choice((0.3, 2.0))
    # All the others may be ahead in line, and each of them serves for `turn_min_s`.
    turn_wait_s = (number - 1) * (turn_min_s + max(starts.values()) * (1 + SPREAD) + work_s + SLACK_S)
    functions = [
        a_function(
            f, devices=2 if where == "two devices" and f == "f0" else 1, turn_min_s=turn_min_s, turn_wait_s=turn_wait_s
        )
        for f in starts
    ]
    return functions, starts, work_s, {"machines": machines}


@pytest.mark.parametrize(
    "seed", [*range(SEEDS), *(pytest.param(s, marks=pytest.mark.long) for s in range(SEEDS, MORE_SEEDS))]
)
def test_no_request_waits_longer_than_turn_wait_its_start_an_answer_and_the_turns_ahead_of_it(seed: int) -> None:
    functions, starts, work_s, rest = crowded(Random(seed))

    result = simulate(a_fleet(seed, functions, starts, work_s, load_ends=60.0, **rest))

    def bound_s(request: Outcome) -> float:
        """Its wait for a turn, its start, and the turns of the functions whose requests wait longer."""
        of = {f.id: starts[f.id] * (1 + SPREAD) + work_s for f in functions}
        ahead = {o.function for o in result.requests if o.began <= request.began < o.began + o.queued_s}
        turns_s = sum(turn_min_s + of[name] for name in ahead - {request.function})
        return max(turn_wait_s, RESIDENCY_S) + of[request.function] + turns_s + SLACK_S

    turn_min_s, turn_wait_s = functions[0].turn_min_s, functions[0].turn_wait_s
    late = [o for o in result.requests if o.queued_s > bound_s(o)]
    assert (result.violation, late) == ("", [])
    assert {o.function for o in result.requests if o.status == 200} == set(starts)


@pytest.mark.parametrize(
    ("start_s", "work_s", "turn_min_s", "horizon_s"),
    [
        (1.0, 1.0, 6.0, 40),
        pytest.param(1.0, 1.0, 15.0, 120, marks=pytest.mark.long),
        pytest.param(3.0, 2.0, 15.0, 120, marks=pytest.mark.long),
        pytest.param(6.0, 2.0, 15.0, 120, marks=pytest.mark.long),
    ],
)
def test_three_functions_on_memory_for_one_reach_70_percent_of_the_best_schedule(
    start_s: float, work_s: float, turn_min_s: float, horizon_s: int, tell: Callable[[str], None]
) -> None:
    names, turn_wait_s = ("f0", "f1", "f2"), 4 * turn_min_s
    functions = [a_function(f, turn_min_s=turn_min_s, turn_wait_s=turn_wait_s) for f in names]

    result = simulate(a_fleet(1, functions, dict.fromkeys(names, start_s), work_s, load_ends=float(horizon_s)))

    reached_s = served_s(result, horizon_s)
    best_s = best_schedule_s(horizon_s, start_s, wait_s=turn_wait_s + start_s + work_s)
    tell(f"start {start_s:g} s, answers {work_s:g} s: {reached_s / best_s:.0%} of the best schedule")
    assert result.violation == ""
    assert reached_s >= 0.7 * best_s


def served_s(result: Result, until_s: float) -> float:
    """Return for how many seconds some instance was answering, two clients at a time."""
    spans = sorted((o.began + o.queued_s, o.ended) for o in result.requests if o.status == 200)
    total, covered = 0.0, 0.0
    for begin, end in spans:
        begin, end = max(begin, covered), min(end, until_s)
        if end > begin:
            total, covered = total + end - begin, end
    return total


def best_schedule_s(horizon_s: int, start_s: float, wait_s: float, step_s: int = 5) -> float:
    """Return the most seconds of answers that any schedule of three functions on one device reaches, in which none
    waits longer than `wait_s`: by trying all of them, with turns in steps of `step_s`."""

    @cache
    def best(at: float, holder: int, lost: tuple[float, float, float]) -> float:
        """`holder` is ready at `at`; each other function lost the device at its time in `lost`."""
        most = float("-inf")
        for turn_s in range(step_s, horizon_s + step_s, step_s):
            ends = at + turn_s
            if ends >= horizon_s:
                in_time = all(horizon_s - lost[f] <= wait_s for f in range(3) if f != holder)
                return max(most, horizon_s - at) if in_time else most
            left = tuple(ends if f == holder else lost[f] for f in range(3))
            for following in range(3):
                ready = ends + start_s
                if following != holder and ready - lost[following] <= wait_s:
                    most = max(most, turn_s + best(ready, following, (left[0], left[1], left[2])))
        return most

    return best(start_s, 0, (0.0, 0.0, 0.0))


def test_the_search_finds_the_best_of_small_cases() -> None:
    without_bound = best_schedule_s(60, 2.0, wait_s=1000.0)
    with_bound = best_schedule_s(60, 2.0, wait_s=45.0)

    assert without_bound == 58.0  # one start, and never a switch
    assert with_bound == 54.0  # each of the others has to be served once: three starts
