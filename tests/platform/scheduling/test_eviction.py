"""Which instances may be evicted, and in which order. Pure."""

from typing import Any

import pytest

from cortex.functions.lifecycle import State
from cortex.platform.record import Instance, Use, used_instance
from cortex.platform.scheduling.eviction import (
    FIRST_SERVE_S,
    RESIDENCY_S,
    cheapest_victims,
    displaceable,
    least_valuable_first,
    protection,
)
from tests.support.factories import an_instance

NOW = 1000.0
IDLE = Use()


def used(**when: float) -> Use:
    """Reports in which these instances were last used then."""
    return Use(used={used_instance(instance): at for instance, at in when.items()})


@pytest.mark.parametrize(
    ("instance", "reports", "may"),
    [
        (an_instance(), IDLE, True),
        (an_instance(), Use(in_flight={"one": 1}), False),
        (an_instance(), Use(in_flight={"one": 0, "two": 1}), True),
        (an_instance(), Use(known=False), False),
        (an_instance(pinned=True), IDLE, False),
        (an_instance(state=State.STARTING), IDLE, False),
        (an_instance(state=State.DRAINING), IDLE, False),
        (an_instance(ready=NOW - FIRST_SERVE_S), IDLE, True),
        (an_instance(ready=NOW - FIRST_SERVE_S + 0.1), IDLE, False),
        (an_instance(), used(one=NOW - RESIDENCY_S + 0.1), False),
        (an_instance(), used(one=NOW - RESIDENCY_S), True),
        (an_instance(ready=NOW - RESIDENCY_S - 1), used(one=NOW - RESIDENCY_S - 2), False),
        (an_instance(ready=NOW - 1, for_minimum=True), IDLE, True),
        (an_instance(ready=NOW - 1, for_minimum=True), Use(waiting={"org/model": 1}), False),
        (an_instance(ready=NOW - 9, for_minimum=True), used(one=NOW - 8), False),
    ],
)
def test_only_the_idle_unpinned_and_unprotected_may_be_evicted(instance: Instance, reports: Use, may: bool) -> None:
    assert displaceable(instance, 0, reports, NOW, strategy="lru") is may


@pytest.mark.parametrize(("strategy", "may"), [("lru", True), ("priority", False)])
def test_a_higher_class_is_spared_by_the_strategy_priority_only(strategy: str, may: bool) -> None:
    assert displaceable(an_instance(priority=1), 0, IDLE, NOW, strategy=strategy) is may


def test_an_equal_class_may_be_evicted() -> None:
    assert displaceable(an_instance(priority=1), 1, IDLE, NOW, strategy="priority")


A, B, C = (an_instance(i, memory_mb=mb) for i, mb in (("a", 1000), ("b", 4000), ("c", 5000)))
OTHER = an_instance("other", memory_mb=5000, devices=("gpu-1",))
BOTH = an_instance("both", memory_mb=3000, devices=("gpu-0", "gpu-1"))
RISING = used(a=1.0, b=2.0, c=3.0, other=4.0, both=5.0)


@pytest.mark.parametrize(
    ("short", "candidates", "victims"),
    [
        ({}, [A], ()),
        ({"gpu-0": 0}, [A], ()),
        ({"gpu-0": -5}, [A], ()),
        ({"gpu-0": 1}, [], None),
        ({"gpu-0": 1001}, [A], None),
        ({"gpu-0": 1000}, [C, B, A], (A,)),
        ({"gpu-0": 1001}, [C, B, A], (B,)),
        ({"gpu-0": 4500}, [C, B, A], (A, B)),
        ({"gpu-0": 5500}, [C, B, A], (A, C)),
        ({"gpu-0": 1000}, [OTHER], None),
        ({"gpu-0": 1, "gpu-1": 1}, [A, OTHER], (A, OTHER)),
        ({"gpu-0": 1, "gpu-1": 0}, [A, OTHER], (A,)),
        ({"gpu-0": 1, "gpu-1": 1}, [A, BOTH], (BOTH,)),
        ({"gpu-0": 1, "gpu-1": 1}, [A, OTHER, BOTH], (A, OTHER)),
        ({"gpu-0": 3500, "gpu-1": 1}, [A, BOTH], (A, BOTH)),
    ],
)
def test_the_cheapest_victims(
    short: dict[str, int], candidates: list[Instance], victims: tuple[Instance, ...] | None
) -> None:
    assert cheapest_victims(short, least_valuable_first(candidates, RISING, NOW, strategy="lru")) == victims


@pytest.mark.parametrize(
    ("change", "use", "why"),
    [
        ({}, Use(), None),
        ({"state": State.STARTING}, Use(), "starting"),
        ({"pinned": True}, Use(), "pinned"),
        ({}, Use(in_flight={"one": 1}), "busy"),
        ({"ready": NOW - 5}, Use(), "just loaded"),
        ({}, Use(used={"i:one": NOW - 5}), "just used"),
        ({}, Use(known=False), "maybe in use"),
    ],
)
def test_an_instance_that_may_not_be_evicted_says_why(change: dict[str, Any], use: Use, why: str | None) -> None:
    assert protection(an_instance(**change), use, NOW) == why


def test_the_least_recently_used_goes_first_unless_priorities_decide() -> None:
    last = used(one=50.0, two=10.0)
    both = [an_instance("one", priority=0), an_instance("two", priority=5)]

    assert [i.id for i in least_valuable_first(both, last, NOW, strategy="lru")] == ["two", "one"]
    assert [i.id for i in least_valuable_first(both, last, NOW, strategy="priority")] == ["one", "two"]
