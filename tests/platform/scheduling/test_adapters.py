"""Adapters that a running instance loads: at the first request, once, and after a failure again."""

from msgspec.structs import replace

from cortex.functions.spec import Adapter, Engine, Function
from cortex.functions.variants import adapter_name, adapter_number
from cortex.platform.agent_messages import AdapterState, EnsureAdapter
from cortex.platform.record import Instance
from cortex.platform.scheduling import events
from cortex.platform.scheduling.adapters import AGAIN_S
from cortex.platform.scheduling.effects import AdapterAnswer, LoadAdapter, UnloadAdapter
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import SavedWorker
from tests.support.factories import a_process
from tests.support.scheduling import HERE, SchedulerDriver, a_scheduler, decisions, instance_of, new_effects

LEGAL, CUP = Adapter("legal", "org/legal"), Adapter("cup", "org/cup")
BASE = Function(id="base", engine=Engine.VLLM, vram_mb=100, adapters=(LEGAL, CUP))
LOADED = events.AdapterLoaded("one", "legal", adapter_number("org/legal"), "/legal")


def ready(server: str = "vllm") -> SchedulerDriver:
    """Return a scheduler with a ready instance of the base, `one`."""
    scheduler = a_scheduler()
    scheduler.apply_catalogue({"base": BASE}, "d", 0.0)
    scheduler.ensure(BASE, HERE, "one", 1.0)
    scheduler.handle(events.Spawned("one", a_process(7), "http://w", server=server), 1.0)
    scheduler.handle(events.Answered("one"), 2.0)
    scheduler.take_effects()
    return scheduler


def ensure(scheduler: SchedulerDriver, now: float, variant: str = "legal", function: Function = BASE) -> AdapterState:
    effects = scheduler.handle(events.AdapterRequest(EnsureAdapter(function, "one", variant)), now)
    return next(e.answer for e in effects if isinstance(e, AdapterAnswer))


def one(scheduler: SchedulerDriver) -> Instance:
    return instance_of(scheduler, "one")


def loads(scheduler: SchedulerDriver) -> list[LoadAdapter]:
    return [e for e in new_effects(scheduler) if isinstance(e, LoadAdapter)]


def unloads(scheduler: SchedulerDriver) -> list[str]:
    return [e.name for e in new_effects(scheduler) if isinstance(e, UnloadAdapter)]


def test_an_adapter_is_loaded_once_for_all_that_ask() -> None:
    scheduler = ready()

    first, again = ensure(scheduler, 3.0), ensure(scheduler, 3.1)
    (load,) = loads(scheduler)
    scheduler.handle(events.AdapterProgress("one", "legal", "1 MiB of 2 MiB"), 3.2)
    progress = one(scheduler).adapter_steps
    scheduler.handle(LOADED, 4.0)

    assert (first, again) == (AdapterState(), AdapterState())
    assert (load.adapter, load.weights) == (LEGAL, HERE)
    assert progress == {"legal": "1 MiB of 2 MiB"}
    assert one(scheduler).adapters == {"legal": adapter_number("org/legal")}
    assert one(scheduler).adapter_steps == {}
    assert ensure(scheduler, 5.0) == AdapterState(loaded=True)
    assert "/legal" in scheduler.scheduler.started_from()
    assert (DecisionKind.ADAPTER_LOADED, "one", "the adapter of legal") in decisions(scheduler)


def test_a_failure_is_one_of_its_variant_and_the_next_request_after_a_while_tries_again() -> None:
    scheduler = ready()
    ensure(scheduler, 3.0)
    scheduler.handle(events.AdapterFailed("one", "legal", adapter_number("org/legal"), "it does not fit"), 4.0)
    problems = dict(one(scheduler).adapter_problems)
    scheduler.take_effects()

    soon, other = ensure(scheduler, 4.0 + AGAIN_S - 1), ensure(scheduler, 5.0, "cup")
    later = ensure(scheduler, 4.0 + AGAIN_S)

    assert problems == {"legal": "it does not fit"}
    assert (soon, other, later) == (AdapterState(problem="it does not fit"), AdapterState(), AdapterState())
    assert [e.adapter for e in loads(scheduler)] == [CUP, LEGAL]
    assert one(scheduler).adapter_problems == {}


def test_an_instance_that_is_gone_or_of_another_revision_is_left_to_the_record() -> None:
    scheduler = ready()

    assert ensure(scheduler, 3.0, function=replace(BASE, context=100)) == AdapterState()
    scheduler.cool("base", 4.0)
    assert ensure(scheduler, 4.0) == AdapterState()
    assert loads(scheduler) == []


def test_a_server_that_loads_adapters_at_its_start_and_an_unknown_variant_are_problems() -> None:
    assert ensure(ready("xllamacpp"), 3.0).problem == "its instance was started without it"
    assert ensure(ready(), 3.0, "nobody").problem == "its instance was started without it"


def test_a_changed_entry_unloads_its_adapter_and_keeps_the_instance() -> None:
    scheduler = ready()
    ensure(scheduler, 3.0)
    scheduler.handle(LOADED, 4.0)
    ensure(scheduler, 4.0, "cup")
    scheduler.handle(events.AdapterFailed("one", "cup", adapter_number("org/cup"), "broken"), 5.0)
    scheduler.take_effects()
    changed = replace(BASE, adapters=(Adapter("legal", "org/other"), CUP))

    scheduler.apply_catalogue({"base": changed}, "d2", 6.0)

    assert unloads(scheduler) == [adapter_name("legal", adapter_number("org/legal"))]
    assert (one(scheduler).adapters, one(scheduler).adapter_problems) == ({}, {"cup": "broken"})
    assert ensure(scheduler, 7.0, function=changed) == AdapterState()
    (load,) = loads(scheduler)
    assert load.adapter.source == "org/other"


def test_an_adapter_that_failed_is_loaded_at_once_after_a_change_of_its_entry() -> None:
    scheduler = ready()
    ensure(scheduler, 3.0, "cup")
    scheduler.handle(events.AdapterFailed("one", "cup", adapter_number("org/cup"), "broken"), 4.0)
    changed = replace(BASE, adapters=(LEGAL, Adapter("cup", "org/corrected")))
    scheduler.apply_catalogue({"base": changed}, "d2", 5.0)
    scheduler.take_effects()

    ensure(scheduler, 6.0, "cup", changed)

    assert [e.adapter.source for e in loads(scheduler)] == ["org/corrected"]


def test_the_failure_of_an_earlier_entry_is_no_problem_of_the_present_one() -> None:
    scheduler = ready()
    ensure(scheduler, 3.0, "cup")
    changed = replace(BASE, adapters=(LEGAL, Adapter("cup", "org/corrected")))
    scheduler.apply_catalogue({"base": changed}, "d2", 3.5)

    scheduler.handle(events.AdapterFailed("one", "cup", adapter_number("org/cup"), "broken"), 4.0)

    assert (one(scheduler).adapter_problems, one(scheduler).adapter_steps) == ({}, {})


def test_an_adapter_whose_entry_changed_while_it_was_loaded_is_unloaded() -> None:
    scheduler = ready()
    ensure(scheduler, 3.0)
    scheduler.apply_catalogue({"base": replace(BASE, adapters=(CUP,))}, "d2", 3.5)
    scheduler.take_effects()

    scheduler.handle(LOADED, 4.0)

    assert unloads(scheduler) == [adapter_name("legal", LOADED.number)]
    assert one(scheduler).adapters == {}


def test_a_router_with_another_catalogue_has_it_sent_again() -> None:
    scheduler = ready()

    ensure(scheduler, 3.0, "new", replace(BASE, adapters=(LEGAL, Adapter("new", "org/new"))))

    assert scheduler.record().catalogue == ""
    assert [e.adapter.id for e in loads(scheduler)] == ["new"]


def test_news_of_an_instance_that_is_gone_changes_nothing() -> None:
    scheduler = a_scheduler()

    failed = events.AdapterFailed("one", "legal", LOADED.number, "x")
    for event in (LOADED, failed, events.AdapterProgress("one", "legal", "x")):
        assert scheduler.handle(event, 1.0) == []


def test_an_adopted_worker_keeps_its_adapters_and_no_load_of_the_earlier_agent() -> None:
    scheduler = ready()
    ensure(scheduler, 3.0)
    scheduler.handle(LOADED, 4.0)
    ensure(scheduler, 4.0, "cup")
    later = a_scheduler()

    later.adopt(SavedWorker(one(scheduler), BASE, HERE), 9.0, alive=True, healthy=True)

    assert set(one(later).adapters) == {"legal"}
    assert one(later).adapter_steps == {}


def test_an_adopted_worker_unloads_what_the_earlier_agent_may_not_have_unloaded() -> None:
    scheduler = ready()
    scheduler.handle(LOADED, 3.0)
    scheduler.apply_catalogue({"base": replace(BASE, adapters=(CUP,))}, "e", 4.0)
    state = scheduler.scheduler.state
    saved = SavedWorker(one(scheduler), state.functions["one"], state.weights["one"])
    later = a_scheduler()
    later.adopt(saved, 5.0, alive=True, healthy=True)

    assert unloads(later) == [adapter_name("legal", adapter_number("org/legal"))]


def test_an_adapter_that_is_loaded_again_is_not_unloaded_after_a_restart() -> None:
    scheduler = ready()
    scheduler.handle(LOADED, 3.0)
    scheduler.apply_catalogue({"base": replace(BASE, adapters=(CUP,))}, "e", 4.0)
    scheduler.apply_catalogue({"base": BASE}, "f", 5.0)
    ensure(scheduler, 6.0)
    scheduler.handle(LOADED, 7.0)
    state = scheduler.scheduler.state
    saved = SavedWorker(one(scheduler), state.functions["one"], state.weights["one"])
    later = a_scheduler()
    later.adopt(saved, 8.0, alive=True, healthy=True)

    assert unloads(later) == []
