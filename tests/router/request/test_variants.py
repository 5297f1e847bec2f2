"""Variants in the router: the request that the worker gets, the queue of each, and what agents are told."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.catalogue import read
from cortex.functions.spec import Engine, Function
from cortex.functions.variants import adapter_name, adapter_number, fold
from cortex.platform.api_keys import Principal, Priority
from cortex.platform.fleet import Fleet
from cortex.platform.in_flight import InFlight
from cortex.platform.record import Override, ShareUse, used_function
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.dialect import read_request
from cortex.router.errors import FunctionNotFound, QueueFull
from cortex.router.live_catalogue import LiveCatalogue, Target
from cortex.router.model_listing import ModelListing
from cortex.router.model_traits import TraitsCache
from cortex.router.overview.functions import function_views
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.request.adapters import with_adapter
from cortex.router.request.admission import Admission
from tests.router.dialects.examples import examples
from tests.router.request.test_admission import Request, an_admission
from tests.support.catalogues import entry, fake
from tests.support.factories import a_host, an_instance

BASE_ID = "org/base"
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "sampling": st.dictionaries(
        st.sampled_from(["temperature", "top_p", "min_p"]), st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=3
    ),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["enable_thinking", "date_string"]), st.sampled_from([True, False, "today"]), max_size=2
    ),
    "template": st.sampled_from([{}, {"developer_role": False}, {"thinking_switch": ""}]),
    "effort": st.sampled_from([{}, {"high": "max"}]),
    "max_output_tokens": st.sampled_from([0, 16, 4096]),
    "default_output_tokens": st.sampled_from([0, 8, 100]),
    "on_long_prompt": st.sampled_from(["auto", "clamp"]),
    "vision": st.sampled_from([True, False]),
    "allow": st.sampled_from([[], ["grammar"], ["chat_template_kwargs.style"]]),
}
ENTRIES = st.fixed_dictionaries({}, optional=SETTINGS)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.2, 0.9]),
        "top_p": st.just(0.7),
        "max_tokens": st.sampled_from([1, 64, 9999]),
        "stream": st.booleans(),
        "chat_template_kwargs": st.sampled_from([{"enable_thinking": True}, {"style": "brief"}, {}]),
        "reasoning_effort": st.sampled_from(["low", "high"]),
    },
)
DIALECTS: tuple[Dialect, ...] = ("chat", "completions", "messages", "responses", "ollama_chat", "ollama_generate")


def body_of(kind: Dialect, name: str, fields: dict[str, Any]) -> bytes:
    turns = [{"role": "developer" if kind == "chat" else "user", "content": "Hi"}, {"role": "user", "content": "Hello"}]
    content: dict[str, Any] = {"messages": turns}
    if kind in ("completions", "ollama_generate"):
        content = {"prompt": "Hello"}
    if kind == "responses":
        content = {"input": turns}
    needs = {"max_tokens": 100} if kind == "messages" else {}
    return json.dumps({"model": name, **content, **needs, **fields}).encode()


def functions_of(*entries: str) -> dict[str, Function]:
    return read("".join(entries), file="models.toml", folder="/").functions


@examples(60)
@given(of_base=ENTRIES, of_variant=ENTRIES, fields=FIELDS, kind=st.sampled_from(DIALECTS))
def test_a_request_reaches_a_shared_worker_as_it_would_reach_one_of_its_own(
    of_base: dict[str, Any], of_variant: dict[str, Any], fields: dict[str, Any], kind: Dialect
) -> None:
    shared = functions_of(fake(BASE_ID, **of_base), entry("org/v", variant_of=BASE_ID, **of_variant))["org/v"]
    alone = functions_of(fake("org/v", **{**of_base, **of_variant}))["org/v"]

    bodies = [
        read_request(kind, body_of(kind, "org/v", fields), TraitsCache().of(f, kind, None, ())).body(BASE_ID)
        for f in (shared, alone)
    ]

    assert bodies[0] == bodies[1]
    assert json.loads(bytes(bodies[0]))["model"] == BASE_ID


@examples(50)
@given(
    engine=st.sampled_from([Engine.VLLM, Engine.LLAMACPP]),
    of_base=ENTRIES,
    of_variant=ENTRIES,
    fields=FIELDS,
    kind=st.sampled_from(DIALECTS),
)
def test_a_request_for_an_adapter_differs_from_one_of_a_worker_of_its_own_in_the_adapter_alone(
    engine: Engine, of_base: dict[str, Any], of_variant: dict[str, Any], fields: dict[str, Any], kind: Dialect
) -> None:
    base = entry(BASE_ID, engine=engine, source=BASE_ID, **of_base)
    functions = fold(functions_of(base, entry("org/v", base=BASE_ID, adapter="org/a", **of_variant)))
    alone = functions_of(entry("org/v", engine=engine, source=BASE_ID, **{**of_base, **of_variant}))["org/v"]
    target = Target(functions["org/v"], "r", functions[BASE_ID], True)
    number = adapter_number("org/a") if engine is Engine.VLLM else 1
    server = "vllm" if engine is Engine.VLLM else "xllamacpp"
    instance = an_instance("i", function=BASE_ID, server=server, adapters={"org/w": 0, "org/v": number})

    shared, own = (
        json.loads(
            bytes(read_request(kind, body_of(kind, "org/v", fields), TraitsCache().of(f, kind, None, ())).body(name))
        )
        for f, name in ((target.function, target.worker_model), (alone, "org/v"))
    )
    sent = json.loads(bytes(with_adapter(json.dumps(shared).encode(), target, instance)))

    assert {k: v for k, v in sent.items() if k not in ("model", "lora")} == {
        k: v for k, v in own.items() if k != "model"
    }
    if engine is Engine.VLLM:
        assert sent["model"] == adapter_name("org/v", number)
        assert "lora" not in sent
    else:
        assert (sent["model"], sent["lora"]) == (BASE_ID, [{"id": 1, "scale": 1.0}])


TEXT = fake("base", vram_mb=100, queue=4) + entry("a", variant_of="base", queue=1) + entry("b", variant_of="base")


def live(folder: Path, text: str = TEXT) -> LiveCatalogue:
    (folder / "models.toml").write_text(text)
    return LiveCatalogue(folder / "models.toml")


def test_agents_get_no_variants_and_no_news_of_their_settings(tmp_path: Path) -> None:
    before = live(tmp_path)
    changed = live(tmp_path, TEXT + entry("c", variant_of="base", sampling={"temperature": 0.1}))
    wished = live(tmp_path, TEXT + entry("c", variant_of="base", min=1))

    assert list(before.hosted.functions) == ["base"]
    assert (changed.digest, changed.resolve("c").revision) == (before.digest, before.resolve("base").revision)
    assert wished.hosted.functions["base"].min == 1
    assert wished.digest != before.digest


def test_a_name_of_a_variant_leads_to_it_and_to_its_base(tmp_path: Path) -> None:
    catalogue = live(tmp_path, TEXT + '[aliases]\nx = "a"\n')
    target = catalogue.resolve("x")

    assert (target.function.id, target.base.id, target.worker_model, target.share) == ("a", "base", "base", "a")
    assert catalogue.resolve("base").share == "base"
    assert Target(target.base, "r").share == ""


def test_a_key_may_use_a_variant_and_not_its_base(tmp_path: Path) -> None:
    catalogue, who = live(tmp_path), Principal(id="k", name="k", scope="", rights=frozenset(), functions=("a",))

    assert catalogue.resolve_for("a", who).function.id == "a"
    with pytest.raises(FunctionNotFound):
        catalogue.resolve_for("base", who)


def test_an_override_of_a_variant_is_a_wish_for_the_shared_instances(tmp_path: Path) -> None:
    catalogue = live(tmp_path)

    catalogue.override({"a": Override(pinned=True, min=1)})

    functions = catalogue.hosted.functions
    assert (functions["base"].pinned, functions["base"].min) == (True, 1)
    assert catalogue.resolve("b").function.pinned


def fills(admission: Admission, target: Target) -> int:
    """Return how many requests may wait for a function until one is refused."""
    with admission.within_limit(target, Priority.NORMAL):
        try:
            return 1 + fills(admission, target)
        except QueueFull:
            return 1


def test_requests_that_wait_for_one_variant_take_no_place_from_another(tmp_path: Path) -> None:
    catalogue, admission = live(tmp_path), an_admission()
    a, b, base = map(catalogue.resolve, ("a", "b", "base"))

    with admission.within_limit(a, Priority.NORMAL):
        with pytest.raises(QueueFull), admission.within_limit(a, Priority.NORMAL):
            pass
        assert (fills(admission, b), fills(admission, base)) == (4, 4)
        waiting = admission.in_flight.counts()[1]
        report = admission.in_flight.report({}, 0.0)

    assert (waiting, report.shares) == ({"base": 1}, {"a": ShareUse(0, 1)})
    assert admission.in_flight.report({}, 0.0).shares == {}


def test_a_slot_queue_is_full_for_one_of_the_functions_that_share_it() -> None:
    async def queue() -> list[bool]:
        admission, refused = an_admission(), []
        admission.join_queue("i", 1, Priority.NORMAL, limit=1, function="running")
        for function in ("a", "a", "b"):
            try:
                admission.join_queue("i", 1, Priority.NORMAL, limit=1, function=function)
                refused.append(False)
            except QueueFull:
                refused.append(True)
        return refused

    assert asyncio.run(queue()) == [False, True, False]


def test_a_request_of_a_variant_is_a_use_of_both() -> None:
    in_flight = InFlight("r")

    with in_flight.track("base", "i", "a"):
        report = in_flight.report({}, 0.0)

    assert (report.in_flight, report.shares) == ({"i": 1}, {"a": ShareUse(1, 0)})
    assert {used_function("base"), used_function("a")} <= in_flight.take_used().keys()


def test_a_variant_is_shown_with_the_instances_of_its_base_and_its_own_requests(tmp_path: Path) -> None:
    catalogue, host = live(tmp_path), a_host(an_instance("i", function="base"))
    in_flight = InFlight("r")
    with in_flight.track("base", "i", "a"), in_flight.waiting("base", "b"):
        fleet = Fleet(hosts={host.name: host}, routers={"r": in_flight.report({}, 0.0)})
    snapshot = FleetSnapshot(catalogue=catalogue.catalogue, revisions={}, fleet=fleet)

    base, a, b = function_views(snapshot, Index(snapshot))

    assert [i.id for v in (base, a, b) for i in v.instances] == ["i", "i", "i"]
    assert [(v.in_flight, v.waiting) for v in (base, a, b)] == [(0, 0), (1, 0), (0, 1)]
    assert (a.variant_of, a.state, base.variants) == ("base", "ready", ("a", "b"))


def test_models_lists_a_variant_with_its_own_limits_and_the_places_of_its_base(tmp_path: Path) -> None:
    text = fake("base", context=1000) + entry("a", variant_of="base", max_output_tokens=10, cost={"input": 1.0})
    host = a_host(an_instance("i", function="base"))
    functions = live(tmp_path, text).catalogue.functions.items()

    listed = ModelListing(0).every(functions, Fleet(hosts={host.name: host}))

    base, a = (msgspec.json.decode(b"".join(pieces)) for pieces in listed)

    assert (a["locations"], a["loaded"], a["alias_of"]) == (base["locations"], True, None)
    assert (a["limit"]["output"], a["cost"]) == (10, {"input": 1.0})


@pytest.mark.parametrize("order", [("i", "j"), ("j", "i")])
def test_a_request_boards_the_instance_that_has_its_adapter(order: tuple[str, str]) -> None:
    base = Function(id="base", engine=Engine.LLAMACPP)
    legal = Function(id="legal", engine=Engine.LLAMACPP, variant_of="base", adapter="org/a")
    adapters = {"i": {"legal": 0}, "j": dict[str, int]()}
    admission = an_admission(*(an_instance(id, function="base", adapters=adapters[id]) for id in order))
    request = Request()
    request.target = Target(legal, "r", base, True)

    with admission.ticket(request) as ticket:
        instance = ticket.board()

    assert instance is not None
    assert instance.id == "i"
