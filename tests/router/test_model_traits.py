"""What a function can take: who is believed, and what that does to a request."""

import json
from typing import Any

import msgspec
import openai
import pytest

from cortex.functions.capabilities import Cost, ModelProfile, Sampling, Template
from cortex.functions.spec import Engine, Function
from cortex.platform.fleet import Fleet
from cortex.platform.record import Instance
from cortex.router.dialects.chat.request import read as read_chat
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits
from cortex.router.model_description import card
from cortex.router.model_listing import ModelListing
from cortex.router.model_traits import TraitsCache, known_models
from tests.router.dialects.request_builders import (
    assistant,
    body_of,
    image,
    messages_request,
    result,
    tool,
    use,
    user,
)
from tests.support.factories import a_function, a_host, an_instance

KNOWN = ModelProfile(
    template=Template(inline_system=True, developer_role=False, tools=True, reasoning_field="reasoning_content"),
    vision=False,
    reasoning=True,
    context=40960,
    effort={"low": "low", "max": "high"},
)


def translated(function: Function, known: ModelProfile | None = None, *ready: Instance) -> Traits:
    return TraitsCache().of(function, "messages", known, ready)


def passed_on(function: Function, known: ModelProfile | None = None) -> Traits:
    return TraitsCache().of(function, "chat", known, ())


def test_nothing_is_sent_in_translation_that_is_not_known_to_work() -> None:
    results = translated(a_function())

    assert not (results.inline_system or results.developer_role or results.vision)


def test_clients_of_the_workers_own_dialect_are_believed_until_something_is_known() -> None:
    results = passed_on(a_function())

    assert results.inline_system
    assert results.developer_role
    assert results.vision


def test_what_the_weights_say_is_believed_in_every_dialect() -> None:
    for results in (translated(a_function(), KNOWN), passed_on(a_function(), KNOWN)):
        assert results.inline_system
        assert not results.developer_role
        assert not results.vision
        assert results.effort["max"] == "high"


def test_a_running_worker_is_believed_before_its_weights() -> None:
    results = translated(a_function(), KNOWN, an_instance(context=2048, vision=True), an_instance("two", context=4096))

    assert results.vision
    assert results.context_window == 2048


def test_the_operator_has_the_last_word() -> None:
    function = a_function(
        vision=True,
        template=Template(inline_system=False, thinking_switch="", reasoning_field="reasoning"),
        effort={"max": "max"},
        context=1000,
        max_output_tokens=50,
        sampling=Sampling(temperature=0.1),
        on_long_prompt="clamp",
    )

    results = translated(function, KNOWN, an_instance(vision=False))

    assert results.vision
    assert not results.inline_system
    assert results.thinking_switch is None
    assert results.reasoning_field == "reasoning"
    assert results.effort["max"] == "max"
    assert results.context_window == 1000
    assert results.output_tokens(100) == 50
    assert results.sampling == Sampling(temperature=0.1)
    assert results.on_long_prompt == "clamp"


@pytest.mark.parametrize(
    ("engine", "known", "field"),
    [
        (Engine.LLAMACPP, None, "reasoning_content"),
        (Engine.VLLM, None, "reasoning"),
        (Engine.VLLM, KNOWN, "reasoning"),
        (Engine.LLAMACPP, ModelProfile(template=Template(reasoning_field="none")), None),
    ],
)
def test_thoughts_go_back_under_the_engines_name_where_the_template_wants_them(
    engine: Engine, known: ModelProfile | None, field: str | None
) -> None:
    assert translated(a_function(engine=engine), known).reasoning_field == field


def test_a_bare_server_is_asked_for_less() -> None:
    bare = translated(a_function(engine=Engine.LLAMACPP, server="llama_cpp.server"))
    own = translated(a_function(engine=Engine.LLAMACPP))

    assert not (bare.prefill or bare.json_schema)
    assert own.prefill
    assert own.json_schema
    assert (bare.named_tool_choice, own.named_tool_choice) == (True, False)


def test_traits_are_worked_out_once_and_anew_when_something_changes() -> None:
    abilities, function, ready = TraitsCache(), a_function(), (an_instance(context=10),)

    first = abilities.of(function, "messages", KNOWN, ready)

    assert abilities.of(function, "messages", KNOWN, ready) is first
    assert abilities.of(function, "chat", KNOWN, ready) is not first
    assert abilities.of(a_function(), "messages", KNOWN, ready) is not first
    assert abilities.of(function, "messages", KNOWN, [an_instance(context=20)]).context_window == 20


def test_case_01_the_template_that_was_tried_decides_where_a_system_message_stands() -> None:
    texts = [user("one"), {"role": "system", "content": "mind"}, assistant("two"), user("three")]
    unknown, usage = translated(a_function()), translated(a_function(), KNOWN)

    roles = [[m["role"] for m in body_of(messages_request(t, messages=texts))["messages"]] for t in (unknown, usage)]

    assert roles == [["user", "assistant", "user"], ["user", "system", "assistant", "user"]]


def test_case_10_vision_in_the_catalogue_lets_images_through() -> None:
    texts = [user("go"), assistant(use("t1")), user(result("t1", [image()]))]

    blind = json.dumps(body_of(messages_request(translated(a_function(), KNOWN), messages=texts, tools=[tool()])))
    seeing = json.dumps(body_of(messages_request(translated(a_function(vision=True)), messages=texts, tools=[tool()])))

    assert "image omitted" in blind
    assert "image_url" in seeing


def test_sampling_of_the_catalogue_is_used_where_the_client_says_nothing() -> None:
    function = a_function(sampling=Sampling(temperature=0.2, top_k=20))

    results = body_of(messages_request(translated(function), temperature=0.9))
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    chat = json.loads(bytes(read_chat(body, passed_on(function)).body("w")))

    assert (results["temperature"], results["top_k"]) == (0.9, 20)
    assert (chat["temperature"], chat["top_k"]) == (0.2, 20)


def test_output_is_limited_by_the_catalogue_in_every_dialect() -> None:
    function = a_function(default_output_tokens=100, max_output_tokens=200)
    plain: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}

    limits = [
        json.loads(bytes(read_chat(json.dumps(plain | more).encode(), passed_on(function)).body("w")))["max_tokens"]
        for more in ({}, {"max_tokens": 50}, {"max_tokens": 5000}, {"max_completion_tokens": 5000})
    ]

    assert limits == [100, 50, 200, 200]
    assert body_of(messages_request(translated(function), max_tokens=32000))["max_tokens"] == 200


@pytest.mark.parametrize("fetches", [False, True])
def test_an_address_that_the_router_did_not_fetch_is_refused(fetches: bool) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()

    with pytest.raises(BadRequest) as refused:
        read_chat(body, passed_on(a_function(remote_images=fetches, vision=True)))

    assert refused.value.fault().param == "messages[0].content[0].image_url"


def entries(function: Function, known: ModelProfile | None, *instances: Instance) -> dict[str, Any]:
    host = a_host(*instances, models={function.id: known} if known else {})
    named = [(function.id, function), ("short", function)]
    listed = ModelListing(7).every(named, Fleet(hosts={host.name: host}))
    first, alias = (msgspec.json.decode(b"".join(pieces), type=dict[str, Any]) for pieces in listed)
    assert alias == first | {"id": "short", "alias_of": function.id}
    openai.types.Model.model_validate(first)
    return first


def test_case_60_a_cold_function_is_described_from_its_weights_and_its_catalogue_entry() -> None:
    results = entries(a_function(max_output_tokens=4096, cost=Cost(input=0.25, output=0.0)), KNOWN)

    assert results["loaded"] is False
    expected = {
        "capabilities": ["text", "tools", "reasoning"],
        "limit": {"context": 40960, "input": 40960, "output": 4096},
        "max_model_len": 40960,
        "max_input_tokens": 40960,
        "max_output_tokens": 4096,
        "tool_call": True,
        "reasoning": True,
        "cost": {"input": 0.25, "output": 0.0},
    }
    assert {name: results[name] for name in expected} == expected


@pytest.mark.parametrize(
    "function",
    [a_function(engine=Engine.VLLM, tool_parser="none"), a_function(engine=Engine.LLAMACPP, server="llama_cpp.server")],
)
def test_case_60_a_server_that_does_not_find_calls_makes_none(function: Function) -> None:
    results = entries(function, KNOWN)

    assert results["tool_call"] is False
    assert "tools" not in results["capabilities"]


@pytest.mark.parametrize(
    ("function", "dialects"),
    [
        (a_function(engine=Engine.LLAMACPP), ["chat", "completions"]),
        (a_function(engine=Engine.LLAMACPP, task="embed"), ["embeddings"]),
        (a_function(engine=Engine.VLLM), ["chat", "completions", "embeddings", "rerank"]),
        (a_function(engine=Engine.VLLM, task="rerank"), ["rerank"]),
        (a_function(engine=Engine.COMMAND, command=("serve",), dialects=("speech", "chat")), ["chat", "speech"]),
    ],
)  # fmt: skip
def test_the_dialects_of_a_function_are_those_that_its_requests_may_have(
    function: Function, dialects: list[str]
) -> None:
    assert entries(function, None)["dialects"] == dialects


def test_case_60_what_nobody_knows_is_left_out() -> None:
    results = entries(a_function(), None)

    assert results["capabilities"] == ["text"]
    assert not {"limit", "max_model_len", "max_output_tokens", "tool_call", "reasoning", "cost"} & results.keys()


def test_case_60_the_tightest_worker_limits_the_context() -> None:
    workers = an_instance(context=2048, vision=True), an_instance("b", context=4096)

    results = entries(a_function(context=8192), KNOWN, *workers)

    assert results["max_model_len"] == 2048
    assert "vision" in results["capabilities"]


def test_case_60_anthropics_shape_says_the_same() -> None:
    results = card("m", 7, a_function(vision=True, max_output_tokens=100), KNOWN, ())

    assert (results.max_input_tokens, results.max_output_tokens) == (40960, 100)
    assert results.vision
    assert results.thinking
    assert results.effort == ("low",)


def test_the_first_host_that_knows_something_is_asked() -> None:
    hosts = {"b": a_host(models={"m": KNOWN}), "a": a_host(models={"n": ModelProfile(context=1)}), "c": a_host()}

    assert known_models(hosts) == {"m": KNOWN, "n": ModelProfile(context=1)}
