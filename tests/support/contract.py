"""Recorded messages of routers and agents of each release.

`uv run python -m tests.support.contract` records this release's into `tests/contract/<version>.json`: later releases
have to go on reading it, so that routers and agents may be one release apart. What was recorded is never changed; a
kind that is new is added.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from cortex.functions.catalogue import Catalogue
from cortex.functions.launch import StartMode
from cortex.functions.lifecycle import State
from cortex.functions.spec import Adapter
from cortex.platform.agent_messages import (
    Accepted,
    AdapterState,
    CatalogueUpdate,
    ContextAnswer,
    ContextFailure,
    Cool,
    Ensure,
    EnsureAdapter,
    Fetching,
    KernelOffer,
    KernelRequest,
    LeaveSeat,
    Neighbour,
    Neighbours,
    Offers,
    PlacementPlan,
    PlanRequest,
    Prefetch,
    Rejected,
    Remove,
    RemoveContexts,
    Removed,
    RestoreContext,
    Seat,
    Stored,
    TakeSeat,
    Victim,
)
from cortex.platform.api_keys import ApiKey, Limits, Scope
from cortex.platform.meter import Count, HistogramSeries, Snapshot
from cortex.platform.record import (
    Cause,
    Device,
    DeviceUse,
    Failure,
    FailureKind,
    Held,
    HostRecord,
    InLine,
    KeepAlive,
    Namesake,
    Override,
    RouterReport,
    ShareUse,
    Silence,
)
from cortex.platform.scheduling.ledger import Entry, StartTimes
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.saved_state import AgentState, LocalWeights, SavedWorker
from tests.support.factories import a_device, a_function, a_host, a_saved_context, an_instance

FOLDER = Path(__file__).parent.parent / "contract"
KINDS: dict[str, Any] = {
    "ensure": Ensure,
    "ensure adapter": EnsureAdapter,
    "answer to ensure adapter": AdapterState,
    "plan": PlanRequest,
    "cool": Cool,
    "heed": CatalogueUpdate,
    "neighbours": Neighbours,
    "offers": Offers,
    "kernels": KernelRequest,
    "answer to kernels": KernelOffer,
    "answer to ensure: going": Accepted | Rejected,
    "answer to ensure: refused": Accepted | Rejected,
    "answer to plan": PlacementPlan | Rejected,
    "take seat": TakeSeat,
    "answer to take seat": Seat,
    "leave seat": LeaveSeat,
    "restore context": RestoreContext,
    "answer to restore context": ContextAnswer,
    "context failed": ContextFailure,
    "remove contexts": RemoveContexts,
    "host": HostRecord,
    "router": RouterReport,
    "namesake": Namesake,
    "prefetch": Prefetch,
    "remove": Remove,
    "answer to remove": Removed,
    "fetch": Fetching,
    "override": Override,
    "key": ApiKey,
    "ledger": Entry,
    "counts": Snapshot,
    "agent's state": AgentState,
}


def spoken() -> dict[str, Any]:
    """Return one of everything, with something in every field that may be empty."""
    function = a_function("org/model", args=("--fast",), env={"A": "b"}, labels=("fast",), min=1, max=2,
                          adapters=(Adapter("org/v", "org/adapter"),))  # fmt: skip
    failure = Failure(
        function="org/model", revision="r1", instance="i1", reason="exited", at=1.5, kind=FailureKind.CRASH,
        count=3, retry_at=9.5, cause=Cause.BAD_WEIGHTS, lines=2,
    )  # fmt: skip
    device: Device = a_device("GPU-1", 24_576, reserve_mb=512, energy_mj=5)
    instance = an_instance("i1", state=State.DRAINING, ready=2.5, url="http://host-a:20000", pid=7, why="evict",
                           yields_to="org/other", waits_for=("i2",), progress=0.5, used_mb=900, epoch=4,
                           adapters={"org/v": 0}, adapter_problems={"org/w": "missing"},
                           adapter_steps={"org/x": "loading"},
                           start_mode=StartMode.FAST, tricks=("eager",), replaces="i0")  # fmt: skip
    in_line = InLine(function="org/other", since=1.5, priority=1, turn_at=9.5, closes=("i1",), devices=("GPU-1",),
                     start_s=2.5)  # fmt: skip
    stored = Stored(name="org/model@main", kind="hub", size=10, path="/w", commit="c", at=1.5, functions=("org/model",),
                    origins={"": 4, "host-b": 6})  # fmt: skip
    weights = LocalWeights("/w", 10, adapters={"org/v": "/a"})
    neighbour = Neighbour(host="host-b", address="http://10.0.0.3:13131", token="t", seal="s")
    saved = a_saved_context(prefill_s=2.5, digest="d")
    held = Held(device="GPU-1", pid=9, command="python", memory_mb=100)
    return {
        "ensure": Ensure(function, force=True, waited_s=2.5, turn=True),
        "ensure adapter": EnsureAdapter(function, "i1", "org/v"),
        "answer to ensure adapter": AdapterState(loaded=True, problem="missing"),
        "plan": PlanRequest(function),
        "cool": Cool("org/model", at_once=True),
        "heed": CatalogueUpdate(Catalogue(functions={"org/model": function}, aliases={"small": "org/model"}), "digest"),
        "neighbours": Neighbours(hosts=(neighbour,)),
        "offers": Offers(weights={"5f" * 32: 10}),
        "kernels": KernelRequest(host="host-a", build="vllm-0-26", device="h200", revision="r1", settings="full",
                                 place="p"),
        "answer to kernels": KernelOffer(digest="5f" * 32, size=10, proofs=("p",)),
        "answer to ensure: going": Accepted("i1", State.STARTING),
        "answer to ensure: refused": Rejected("full", When.LATER, retry_at=9.5, short_by_mb=10, failure=failure,
                                             turn_in_s=4.5),
        "answer to plan": PlacementPlan(host="host-a", devices=("GPU-1",), memory_mb=1000, memory_from="declared",
                                  evict=(Victim("i2", "org/other", 3.5),)),
        "take seat": TakeSeat(id="s1", router="r1", instance="i1", owner="o1", marks=("m2", "m3"), first=2, slots=4),
        "answer to take seat": Seat(slot=1, may_reuse=True, continues=2),
        "leave seat": LeaveSeat(id="s1", instance="i1", mark="m3", tokens=2000),
        "restore context": RestoreContext(instance="i1", slot=1, context=saved, host="host-b",
                                          address="http://host-b:13131", key="k"),
        "answer to restore context": ContextAnswer(tokens=2000, why="it is too old"),
        "context failed": ContextFailure(context=saved, why="nothing was cached"),
        "remove contexts": RemoveContexts(ids=("0000000000000000",), all=True),
        "host": a_host(instance, devices=(device,), version="0", at=3.5, labels=("fast",), foreign=(held,),
                       failures=(failure,), line=(in_line,), epoch=4, catalogue="digest",
                       tricks_off={"r1": {"eager": "exited"}},
                       contexts=(saved,), contexts_off={"org/other": "nothing was cached"},
                       device_use={"r": {"i1": DeviceUse(1500, 9000)}}),
        "router": RouterReport(id="r", at=3.5, in_flight={"i1": 2}, waiting={"org/model": 1}, seen={"host-a": 4},
                              silent={"i1": Silence(for_s=1.5, usual_s=0.5)}, keep={"i1": KeepAlive(300.0, 2.5)},
                              shares={"org/variant": ShareUse(1, 1)}, tokens={"i1": 40},
                              unseated={"i1": 2}),
        "namesake": Namesake(name="host-a", address="http://10.0.0.2:13131", version="0", home="h2"),
        "prefetch": Prefetch(function),
        "remove": Remove(("org/model@main",), unused=True, dry_run=True),
        "answer to remove": Removed(removed=(stored,), refusals={"demo": "in use"}),
        "fetch": Fetching(id="f", source="org/model", state="waiting", done=5, total=10, rate=1.5, why="away"),
        "override": Override(pinned=True, min=1, max=2),
        "key": ApiKey(digest="d", id="k", name="ann", scope=Scope.ADMIN, functions=("org/*",), limits=Limits(rpm=5),
                      group="search"),
        "ledger": Entry(memory_mb=900, start_s=9.5, starts=2, phases={"starting": 9.5}, started_at=1.5, at=2.5,
                        modes={StartMode.FAST: StartTimes(version="0.26", seconds=(9.5,))}),
        "counts": Snapshot(counts=(Count("c", ("a",), 2.0),), spreads=(HistogramSeries("s", (), (1, 2), 2.5),)),
        "agent's state": AgentState((SavedWorker(instance, function, weights),), (failure,)),
    }  # fmt: skip


def main() -> None:
    """Record what this release says and no record of it has yet."""
    path = FOLDER / f"{version('cortex').partition('+')[0]}.json"
    FOLDER.mkdir(exist_ok=True)
    output = spoken() | (msgspec.json.decode(path.read_bytes()) if path.exists() else {})
    path.write_bytes(msgspec.json.format(msgspec.json.encode(output, order="deterministic"), indent=1) + b"\n")


if __name__ == "__main__":
    main()
