"""The log of a scheduler's events: bounded, without secrets, and replayed to the same decisions."""

import types
import typing
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cortex.functions.spec import Function, revision
from cortex.platform.agent_messages import Accepted, Ensure
from cortex.platform.scheduling import event_log, worker_events
from cortex.platform.scheduling.effects import CancelFetch, Effect, Fetch, LoadAdapter, Park, Prove, Spawn, Wake
from cortex.platform.scheduling.event_log import Checkpoint, Entry, EventLog, read
from cortex.platform.scheduling.events import (
    AdapterRequest,
    Adopted,
    CatalogueChanged,
    EnsureRequest,
    Event,
    FetchFailed,
    Reported,
    SignOfLife,
)
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.scheduling.scheduler import Scheduler
from cortex.platform.scheduling.state import HostState, Rules
from tests.support.factories import HOST, a_fleet, a_function, a_host, a_process, a_report, an_instance
from tests.support.replay import differences
from tests.support.scheduling import SchedulerDriver

HERE = LocalWeights("/cache/weights", 1)
SECRET = "hf_a-secret"
F = a_function(
    "f", env={"HF_TOKEN": SECRET, "AGAIN": SECRET, "OTHER": "other"},
    args=("--api-key", SECRET, f"--token={SECRET}", "-np", "4", f"-p{SECRET}"),
    command=("serve", SECRET),
)  # fmt: skip


def exported(log: EventLog) -> list[bytes]:
    return b"".join(log.export()).splitlines()


def entries(log: EventLog) -> list[Entry]:
    return [line for line in read(exported(log)) if isinstance(line, Entry)]


def brought_up() -> SchedulerDriver:
    """A scheduler with an instance of `F` that is ready."""
    driver = SchedulerDriver(a_host(), Rules(), segment_events=20)
    driver.reported(a_fleet(a_report()), 1.0)
    driver.apply_catalogue({"f": F}, "digest", 1.0)
    assert driver.ensure(F, HERE, "one", 2.0) == Accepted("one", driver.record().instances[0].state)
    driver.spawned("one", a_process(), "http://127.0.0.1:20000", 3.0)
    driver.answered("one", 4.0)
    return driver


def test_an_export_begins_with_a_checkpoint_and_replays_to_the_same_effects() -> None:
    log = brought_up().log

    assert isinstance(next(read(exported(log))), Checkpoint)
    assert differences(exported(log)) == []


def test_a_replay_that_decides_otherwise_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    log = brought_up().log
    monkeypatch.setattr(worker_events, "decide", lambda *_: None)

    assert [d.partition(":")[0] for d in differences(exported(log))] == [f"line {len(exported(log))}"]


def test_the_log_has_the_last_events_and_drops_older_ones() -> None:
    driver = SchedulerDriver(a_host(), Rules(), segment_events=20)

    for n in range(1000):
        driver.handle(SignOfLife("none", f"event {n}"), float(n))

    times = [e.now for e in entries(driver.log)]
    assert times == [float(n) for n in range(1000 - len(times), 1000)]
    assert 40 <= len(times) <= 60  # a driver's segments have 20 events, of which the last may be incomplete
    assert differences(exported(driver.log)) == []


def test_the_log_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MOST_BYTES", 30_000)
    state = HostState.of(a_host(), Rules())
    log = EventLog(state, 0.0, b"key")

    for n in range(2000):
        log.add(FetchFailed("none", f"{n:x}" * 500), [], float(n))

    assert sum(s.size for s in log._segments) < 60_000
    assert entries(log)[-1].now == 1999.0


def test_secrets_are_replaced_by_digests_and_options_stay() -> None:
    log = brought_up().log

    specs = [e.event.functions["f"] for e in entries(log) if isinstance(e.event, CatalogueChanged)]
    assert SECRET.encode() not in b"".join(log.export())
    assert specs[0].env["HF_TOKEN"] == specs[0].env["AGAIN"] != specs[0].env["OTHER"]
    assert [word.partition("<")[0] for word in specs[0].args] == ["--api-key", "", "--token=", "-np", "", ""]


def test_revisions_are_the_true_ones_although_secrets_are_replaced() -> None:
    log = brought_up().log

    (spawn,) = [effect for e in entries(log) for effect in e.effects if isinstance(effect, Spawn)]
    assert spawn.instance.revision == revision(F) != revision(spawn.function)


def test_an_event_that_raised_raises_in_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(a_host(), Rules())
    log = EventLog(scheduler.state, 0.0, b"key")
    request = EnsureRequest(Ensure(a_function("f")), HERE, "one")
    broken: Any = lambda *_: 1 / 0  # noqa: E731
    monkeypatch.setattr("cortex.platform.scheduling.requests.reconcile", broken)
    with pytest.raises(ZeroDivisionError):
        scheduler.handle(request, 1.0)
    log.add(request, scheduler.take_effects(), 1.0, "ZeroDivisionError")

    with_bug = differences(exported(log))
    monkeypatch.undo()
    without = differences(exported(log))

    assert with_bug == []
    assert len(without) == 1


def test_an_event_that_cannot_be_encoded_begins_the_log_anew() -> None:
    scheduler = Scheduler(a_host(), Rules())
    log = EventLog(scheduler.state, 0.0, b"key")
    log.add(SignOfLife("none", "before"), [], 1.0)

    with pytest.raises(UnicodeEncodeError):
        log.add(FetchFailed("none", "\ud800"), [], 2.0)
    log.add(SignOfLife("none", "between"), [], 3.0)
    log.add(SignOfLife("none", "after"), [], 4.0)

    assert [e.now for e in entries(log)] == [4.0]
    assert differences(exported(log)) == []


def test_readings_of_the_record_are_differences_and_are_read_whole() -> None:
    state = HostState.of(a_host(), Rules())
    log = EventLog(state, 0.0, b"key", segment_events=3)
    stays = replace(a_host(an_instance("near", function="f", url="http://near:1")), name="stays")
    goes = replace(a_host(an_instance("far", function="f")), name="goes")
    report = a_report(in_flight={"far": 1})
    used = {"i:far": 5.0, "f:f": 6.0}
    both = replace(a_fleet(report, used=used, cordoned=True), hosts={"stays": stays, "goes": goes})
    one = replace(a_fleet(report, used={"i:near": 7.0}), hosts={"stays": stays})

    for n, fleet in enumerate((both, one, None, one, one)):
        log.add(Reported(fleet), [], float(n))

    fleets = [e.event.fleet for e in entries(log) if isinstance(e.event, Reported)]
    assert [f and (sorted(f.hosts), f.used, f.cordoned) for f in fleets] == [
        (["goes", "stays"], {"i:far": 5.0}, frozenset({HOST})),
        (["stays"], {"i:near": 7.0}, frozenset()),
        None,
        (["stays"], {"i:near": 7.0}, frozenset()),
        (["stays"], {"i:near": 7.0}, frozenset()),
    ]
    assert all(f.routers == both.routers for f in fleets if f)
    assert b"http://near:1" not in b"".join(log.export())
    assert sum(b'"hosts":{' in line for line in exported(log)) == 3  # the second of a segment has only what is gone


def has_a_spec(kind: Any) -> bool:
    """Whether a type is, or has anywhere in it, the spec of a function."""
    if kind is Function:
        return True
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is not None:
        return any(map(has_a_spec, typing.get_args(kind)))
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return is_struct and any(has_a_spec(f.type) for f in msgspec.structs.fields(kind))


def test_every_kind_of_event_and_effect_with_a_spec_is_known_to_the_log() -> None:
    kinds = {kind for union in (Event, Effect) for kind in typing.get_args(union) if has_a_spec(kind)}

    assert kinds == {
        EnsureRequest, AdapterRequest, CatalogueChanged, Adopted,
        Fetch, CancelFetch, Spawn, LoadAdapter, Prove, Park, Wake,
    }  # fmt: skip
    assert {f.name for f in msgspec.structs.fields(HostState) if f.name != "effects" and has_a_spec(f.type)} == {
        "functions",
        "catalogue",
        "line",
    }
