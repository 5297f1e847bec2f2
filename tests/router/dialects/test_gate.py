"""The gate before the workers, at every entrance: what passes, what is dropped and named, what is refused."""

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.passing import Entrance, Family, passing
from cortex.router.dialects import embeddings, gate, native, rerank
from cortex.router.dialects.chat import request as chat
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import ParsedRequest
from cortex.router.dialects.messages import request as messages
from cortex.router.dialects.native import NativeDialect
from cortex.router.dialects.responses import request as responses
from tests.functions.test_passing import DANGEROUS
from tests.router.dialects.request_builders import (
    PNG,
    Json,
    body_of,
    chat_request,
    messages_request,
    refusal_of,
    responses_request,
)

DATA = f"data:image/png;base64,{PNG}"
A = "http://192.0.2.1/inside"


def able(family: Family = "openai", entrance: Entrance = "chat", *allow: str, **more: Any) -> Traits:
    return Traits(passing=passing(family, entrance, allow), vision=True, **more)


def shown(*parts: Json, role: str = "user") -> list[Json]:
    return [{"role": role, "content": list(parts)}]


def completion(traits: Traits, **fields: Any) -> chat.ChatRequest:
    return chat.read_completion(json.dumps({"model": "m", "prompt": "hi"} | fields).encode(), traits)


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("name", sorted(DANGEROUS))
def test_a_field_that_is_not_on_the_list_never_reaches_a_worker(family: Family, name: str) -> None:
    for ask, entrance in ((chat_request, "chat"), (completion, "completions")):
        try:
            parsed = ask(able(family, entrance), **{name: "x"})  # type: ignore[arg-type]
        except BadRequest as error:
            assert error.fault().param == name
            continue

        assert name not in body_of(parsed)
        assert name in parsed.dropped


def test_a_field_that_changes_the_answer_is_refused_unless_it_is_empty() -> None:
    assert refusal_of(chat_request, traits=able(), grammar='root ::= "a"').param == "grammar"
    assert "grammar" not in body_of(chat_request(able(), grammar=""))


def test_a_field_that_an_operator_allows_passes() -> None:
    traits = able("llama", "chat", "grammar", "id_slot")

    actual = body_of(chat_request(traits, grammar='root ::= "a"', id_slot=1))

    assert (actual["grammar"], actual["id_slot"]) == ('root ::= "a"', 1)


def test_template_arguments_pass_by_name_with_scalar_values() -> None:
    arguments = {"enable_thinking": False, "chat_template": "{{ x }}", "tokenize": False, "thinking": {"a": 1}, "b": 1}

    parsed = chat_request(able("vllm"), chat_template_kwargs=arguments)

    assert body_of(parsed)["chat_template_kwargs"] == {"enable_thinking": False}
    assert set(parsed.dropped) == {f"chat_template_kwargs.{n}" for n in ("chat_template", "tokenize", "thinking", "b")}


def test_template_arguments_pass_whole_if_an_operator_allows_them() -> None:
    parsed = chat_request(able("vllm", "chat", "chat_template_kwargs"), chat_template_kwargs={"style": {"a": 1}})

    assert body_of(parsed)["chat_template_kwargs"] == {"style": {"a": 1}}


def test_fields_of_a_message_that_do_not_pass_are_dropped_and_the_rest_stays() -> None:
    history = {"role": "user", "content": "hi", "name": "ann", "image_url": A, "cache_control": {"type": "ephemeral"}}

    parsed = chat_request(able(), messages=[history])

    assert body_of(parsed)["messages"] == [{"role": "user", "content": "hi", "name": "ann"}]
    assert set(parsed.dropped) == {"messages.cache_control", "messages.image_url"}


def test_fields_of_a_part_that_do_not_pass_are_dropped() -> None:
    part = {"type": "text", "text": "hi", "image_url": {"url": A}, "cache_control": {"type": "ephemeral"}}

    parsed = chat_request(able(), messages=shown(part))

    assert body_of(parsed)["messages"] == shown({"type": "text", "text": "hi"})
    assert set(parsed.dropped) == {"messages.content.cache_control", "messages.content.image_url"}


ADDRESSED: list[Json] = [
    {"type": "image_url", "image_url": {"url": A}},
    {"type": "image_url", "image_url": A},
    {"type": "image_url", "image_url": {"url": "file:///inside"}},
    {"type": "image_url", "image_url": {"url": " data:image/png;base64,aaaa"}},
    {"type": "input_image", "image_url": A},
    {"type": "video_url", "video_url": {"url": A}},
    {"type": "video_url", "video_url": {"url": "file:///inside"}},
    {"type": "audio_url", "audio_url": {"url": A}},
    {"type": "input_audio", "input_audio": {"data": A, "format": "wav"}},
    {"type": "image_embeds", "image_embeds": "aaaa"},
    {"type": "file", "file": {"file_id": "f"}},
    {"image_url": {"url": A}},
]


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("part", ADDRESSED, ids=lambda part: str(part)[:40])
def test_a_part_with_an_address_or_of_another_type_is_refused_by_its_path(family: Family, part: Json) -> None:
    fault = refusal_of(chat_request, traits=able(family), messages=shown(part))

    assert str(fault.param).startswith("messages[0].content[0]")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
        {"type": "input_image", "image_url": DATA},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,aaaa"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,aaaa"}},
        {"type": "input_audio", "input_audio": {"data": "aaaa", "format": "wav"}},
    ],
)
def test_media_that_are_data_pass_to_a_server_that_takes_them(part: Json) -> None:
    assert body_of(chat_request(able("vllm"), messages=shown(part)))["messages"] == shown(part)


def test_addresses_are_refused_in_fields_that_an_operator_allows() -> None:
    allowed = able("vllm", "chat", "content.image_embeds", "documents")

    assert refusal_of(chat_request, traits=allowed, messages=shown({"type": "image_embeds", "url": A})).param
    assert (
        refusal_of(chat_request, traits=allowed, documents=[{"image_url": {"url": A}}]).param
        == "documents[0].image_url.url"
    )


@pytest.mark.parametrize(
    ("name", "most"), [("repeat_last_n", 65_536), ("n_probs", 100), ("min_keep", 1024), ("top_logprobs", 100)]
)
def test_numbers_that_determine_a_workers_memory_are_bounded(name: str, most: int) -> None:
    assert body_of(chat_request(able("llama"), **{name: most}))[name] == most
    for value in (most + 1, 2**31 - 1, 1e30, "5"):
        assert refusal_of(chat_request, traits=able("llama"), **{name: value}).param == name


def test_lists_that_a_worker_scans_for_every_token_are_bounded() -> None:
    assert refusal_of(chat_request, traits=able(), stop=["x"] * 129).param == "stop"
    assert refusal_of(chat_request, traits=able(), logit_bias={str(n): 1 for n in range(1025)}).param == "logit_bias"
    assert refusal_of(messages_request, stop_sequences=["x"] * 129).param == "stop_sequences"


# How much may be written.

LIMITED: Json = {"max_output_tokens": 16}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 500},
        {"max_completion_tokens": 500},
        {"max_tokens": 500, "max_completion_tokens": 400},
        {"n_predict": 300},
        {"max_new_tokens": 300, "max_output_tokens": 300},
        {"min_tokens": 300},
        {"max_tokens": None},
    ],
)
@pytest.mark.parametrize("family", get_args(Family))
def test_the_functions_limit_replaces_every_other_spelling(family: Family, fields: Json) -> None:
    actual = body_of(chat_request(able(family, **LIMITED), **fields))

    assert actual["max_tokens"] == 16
    assert not actual.keys() & {"max_completion_tokens", "n_predict", "max_new_tokens", "max_output_tokens"}
    assert actual.get("min_tokens", 0) <= 16


@pytest.mark.parametrize("fields", [{"n": 4}, {"best_of": 4}, {"prompt": ["a", "b"], "n": 2}])
def test_several_answers_share_the_functions_limit(fields: Json) -> None:
    traits = able("vllm", "completions", **LIMITED)

    assert body_of(completion(traits, max_tokens=100, **fields))["max_tokens"] == 4


def test_more_answers_than_tokens_are_refused() -> None:
    assert refusal_of(chat_request, traits=able(**LIMITED), n=17).param == "n"


def test_the_number_of_answers_is_bounded() -> None:
    assert refusal_of(chat_request, n=129).param == "n"
    assert refusal_of(completion, traits=able(), prompt=["a"] * 100, n=2).param == "prompt"
    assert completion(able("openai", "completions"), prompt=["a"] * 64, n=2).choices == 128


def test_a_completion_without_a_limit_is_as_short_as_its_server_makes_it() -> None:
    traits = able("vllm", "completions", max_output_tokens=4096, completion_tokens=16)

    assert body_of(completion(traits))["max_tokens"] == 16


def test_a_long_prompt_is_not_refused_for_cortexs_own_limit() -> None:
    assert chat_request(able(**LIMITED)).limit_is_ours
    assert responses_request(able(**LIMITED)).limit_is_ours
    assert not chat_request(able(**LIMITED), max_tokens=5).limit_is_ours


# The other entrances.


def test_messages_beside_an_input_do_not_reach_an_embeddings_worker() -> None:
    body = json.dumps({"model": "m", "input": "x", "messages": shown(ADDRESSED[0])}).encode()

    parsed = embeddings.read(body, passing("vllm", "embeddings"))

    assert json.loads(bytes(parsed.body("w"))) == {"model": "w", "input": "x"}
    assert parsed.dropped == ("messages",)


def test_messages_that_an_operator_allows_for_embeddings_hold_no_address() -> None:
    body = json.dumps({"model": "m", "input": "x", "messages": shown(ADDRESSED[0])}).encode()

    with pytest.raises(BadRequest, match="addresses"):
        embeddings.read(body, passing("vllm", "embeddings", ("messages",)))


def test_documents_of_a_rerank_are_texts() -> None:
    def read(document: Any, *allow: str) -> rerank.RerankRequest:
        body = json.dumps({"model": "m", "query": "q", "documents": [document]}).encode()
        return rerank.read(body, passing("vllm", "rerank", allow))

    assert json.loads(bytes(read({"text": "a"}).body("w")))["documents"] == [{"text": "a"}]
    with pytest.raises(BadRequest, match=r"documents\[0\].content"):
        read({"content": [ADDRESSED[0]]})
    with pytest.raises(BadRequest, match="addresses"):
        read({"content": [ADDRESSED[0]]}, "documents.content")


def test_batches_of_texts_have_a_bound() -> None:
    with pytest.raises(BadRequest, match="2048"):
        embeddings.read(json.dumps({"model": "m", "input": ["x"] * 2049}).encode())
    with pytest.raises(BadRequest, match="2048"):
        rerank.read(json.dumps({"model": "m", "query": "q", "documents": ["x"] * 2049}).encode())


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("messages", {"messages": shown({"type": "image", "source": {"type": "url", "url": A}})}),
        ("messages", {"messages": shown({"type": "document", "source": {"type": "file", "file_id": "f"}})}),
        (
            "messages",
            {"messages": shown({"type": "tool_result", "content": [{"type": "image_url", "image_url": A}]})},
        ),
        ("responses", {"input": shown({"type": "input_image", "image_url": A})}),
        ("responses", {"input": shown({"type": "input_file", "file_url": A})}),
        ("responses", {"input": "hi", "previous_response_id": "resp_of_another_key"}),
        ("responses", {"input": "hi", "text": {"format": {"schema": {"pattern": "(((a*)*)*)*"}}}}),
    ],
)
def test_native_requests_are_filtered_like_others(dialect: NativeDialect, fields: Json) -> None:
    with pytest.raises(BadRequest):
        native.read(dialect, json.dumps({"model": "m", "max_tokens": 5} | fields).encode())


def test_addresses_of_cited_sources_pass() -> None:
    history: list[Json] = [
        {"type": "tool_use", "id": "t", "name": "fetch", "input": {"url": A}},
        {"type": "text", "text": A, "citations": [{"url": A}]},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    ]
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": shown(*history)}).encode()

    assert json.loads(bytes(native.read("messages", body).body("w")))["messages"] == shown(*history)


@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_the_functions_limit_is_in_the_body_of_a_native_dialect(dialect: NativeDialect) -> None:
    traits = able("vllm", dialect, max_output_tokens=16)
    name = "max_tokens" if dialect == "messages" else "max_output_tokens"

    for fields in ({}, {name: 500}):
        parsed = native.read(dialect, json.dumps({"model": "m", "messages": []} | fields).encode(), traits)

        assert json.loads(bytes(parsed.body("w")))[name] == 16


def test_unused_fields_of_a_translated_request_are_reported() -> None:
    assert messages_request(mcp_servers=[], cache_salt="x", metadata={}).dropped == ("cache_salt", "mcp_servers")
    assert responses_request(priority=1, store=False).dropped == ("priority",)


def test_a_dropped_block_is_reported_by_its_path() -> None:
    block = {"type": "new_kind"}

    assert messages_request(messages=shown(block, {"type": "text", "text": "x"})).dropped == ("messages[0].content[0]",)
    assert responses_request(input=[{"type": "new_kind"}, {"role": "user", "content": "x"}]).dropped == ("input[0]",)


# The header.


@given(st.lists(st.text(max_size=200), max_size=40))
def test_the_header_is_short_ascii_for_any_names(names: list[str]) -> None:
    actual = gate.header(tuple(names))

    assert actual.isascii()
    assert actual.isprintable()
    assert len(actual) <= 17 * 66


def test_the_header_counts_the_names_that_it_omits() -> None:
    assert gate.header(tuple("abcdefghijklmnopqrst")).endswith("o, p, +4")


READERS: dict[str, Callable[[bytes], ParsedRequest]] = {
    "chat": lambda body: chat.read(body, able("vllm")),
    "completions": lambda body: chat.read_completion(body, able("vllm", "completions")),
    "messages": lambda body: messages.read(body, able("vllm")),
    "responses": lambda body: responses.read(body, able("vllm")),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted(DANGEROUS | passing("vllm", "chat").fields | passing("llama", "chat").fields))


@given(st.sampled_from(sorted(READERS)), st.dictionaries(NAMES, JSON, max_size=4))
def test_only_allowed_fields_are_forwarded(kind: str, fields: Json) -> None:
    base: Json = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
    keep = {"chat": ("messages",), "completions": ("prompt",), "messages": ("messages",), "responses": ("input",)}[kind]
    base = {name: base[name] for name in ("model", *keep)} | {"max_tokens": 4}
    try:
        parsed = READERS[kind](json.dumps(base | fields).encode())
    except BadRequest:
        return

    assert not json.loads(bytes(parsed.body("w"))).keys() & DANGEROUS
