"""The entries of `/v1/models`: a held one is the one that would be encoded now."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.functions.capabilities import ModelProfile
from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function
from cortex.platform.fleet import Fleet
from cortex.platform.record import Failure, HostRecord
from cortex.platform.scheduling.placement import misfit, need
from cortex.router.model_listing import MOST_HOSTS, ModelListing
from tests.support.factories import a_device, a_function, a_host, an_instance

FUNCTIONS = [a_function("f", vram_mb=2000), a_function("g", vram_mb=9000), a_function("h", pinned_on=("b",))]
NAMED = [*((f.id, f) for f in FUNCTIONS), ("alias", FUNCTIONS[0])]
FAILURE = Failure(function="g", revision="r", instance="x", reason="exit", at=1.0, retry_at=50.0)

hosts = st.builds(
    lambda name, states, memory_mb, models, failures: replace(
        a_host(
            *(an_instance(f"{name}{n}", function=f, state=s) for n, (f, s) in enumerate(states)),
            devices=(a_device(total_mb=memory_mb),),
            models={"f": ModelProfile(context=4096)} if models else {},
            failures=(FAILURE,) if failures else (),
        ),
        name=name,
    ),
    st.sampled_from(("a", "b")),
    st.lists(st.tuples(st.sampled_from(("f", "g")), st.sampled_from((State.READY, State.STARTING))), max_size=2),
    st.sampled_from((4000, 16_000)),
    st.booleans(),
    st.booleans(),
)
fleets = st.builds(
    lambda several, at: Fleet(hosts={h.name: h for h in several}, at=at),
    st.lists(hosts, max_size=2),
    st.sampled_from((10.0, 90.0)),
)


def listed(listing: ModelListing, fleet: Fleet) -> dict[str, dict[str, Any]]:
    entries = [msgspec.json.decode(b"".join(pieces)) for pieces in listing.every(NAMED, fleet)]
    return {entry["id"]: entry for entry in entries}


@given(st.lists(fleets, max_size=6))
def test_a_held_entry_is_the_one_that_would_be_encoded_now(several: list[Fleet]) -> None:
    listing = ModelListing(7)

    for fleet in several:
        entries = list(listing.every(NAMED, fleet))

        assert entries == list(ModelListing(7).every(NAMED, fleet))
        profile = next((h.models["f"] for _, h in sorted(fleet.hosts.items()) if h.models), None)
        assert listing.one("alias", FUNCTIONS[0], fleet, profile) == b"".join(entries[-1])


def test_the_next_list_shows_a_state_an_end_of_a_failure_and_a_new_host() -> None:
    listing, host = ModelListing(7), a_host(an_instance("i", function="f", state=State.STARTING), failures=(FAILURE,))
    ready = replace(host, instances=(an_instance("i", function="f"),))
    large = replace(a_host(devices=(a_device(total_mb=16_000),)), name="large")

    before = listed(listing, Fleet(hosts={host.name: host}, at=10.0))
    after = listed(listing, Fleet(hosts={host.name: ready, "large": large}, at=90.0))

    assert [(e["f"]["state"], e["alias"]["loaded"], e["g"]["state"]) for e in (before, after)] == [
        ("starting", False, "failing"),
        ("ready", True, "cold"),
    ]
    assert [e["f"]["feasible_on"] for e in (before, after)] == [[host.name], [host.name, "large"]]


empty_hosts = st.builds(
    lambda name, memory_mb, several, labels, engines, servers: replace(
        a_host(
            devices=tuple(a_device(f"gpu-{n}", memory_mb) for n in range(several)),
            labels=labels,
            engines={str(engine): "1" for engine in engines},
            servers=servers,
        ),
        name=name,
    ),
    st.sampled_from(("a", "b", "c", "d")),
    st.sampled_from((4000, 16_000)),
    st.integers(1, 2),
    st.sampled_from(((), ("fast",))),
    st.sampled_from(((Engine.FAKE,), (Engine.LLAMACPP,), tuple(Engine))),
    st.sampled_from(((), ("llama-server",))),
)
needs = st.builds(
    lambda engine, vram_mb, devices, least, labels, pins: a_function(
        "f",
        engine=engine,
        server="llama-server" if engine is Engine.LLAMACPP else "",
        vram_mb=vram_mb,
        min_devices=devices,
        min_device_vram_mb=least,
        labels=labels,
        pinned_on=pins,
    ),
    st.sampled_from((Engine.FAKE, Engine.LLAMACPP)),
    st.sampled_from((3000, 5000)),
    st.integers(1, 2),
    st.sampled_from((0, 10_000)),
    st.sampled_from(((), ("fast",))),
    st.sampled_from(((), ("b",), ("absent",))),
)


@given(st.lists(empty_hosts, max_size=4), needs)
def test_feasible_on_has_exactly_the_hosts_that_fit(several: list[HostRecord], function: Function) -> None:
    named = {h.name: h for h in several}

    (pieces,) = ModelListing(7).every([("f", function)], Fleet(hosts=named))

    fitting = [name for name in sorted(named) if misfit(need(function, None), named[name]) is None]
    assert msgspec.json.decode(b"".join(pieces))["feasible_on"] == fitting


def test_feasible_on_is_bounded() -> None:
    many = {f"h{n:03}": replace(a_host(), name=f"h{n:03}") for n in range(MOST_HOSTS + 5)}
    function: Function = a_function("f")

    (pieces,) = ModelListing(7).every([("f", function)], Fleet(hosts=many))

    assert msgspec.json.decode(b"".join(pieces))["feasible_on"] == sorted(many)[:MOST_HOSTS]
