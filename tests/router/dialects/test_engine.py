"""Engines' own routes: names, fields, answers and states."""

import json
from typing import Any

import pytest

from cortex.functions.passing import Entrance, Family, passing
from cortex.router.dialects import engine
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Dialect, Fault, Kind
from cortex.router.dialects.core.traits import Traits

SECRET = "the harbour of another key"


def read(path: str, family: Family, **fields: Any) -> engine.EngineRequest:
    def traits(kind: Dialect) -> Traits:
        entrance: Entrance = "chat" if kind in ("chat", "apply_template") else kind  # type: ignore[assignment]
        return Traits(passing=passing(family, entrance), max_output_tokens=64)

    return engine.read(engine.ROUTES[path], json.dumps({"model": "m", **fields}).encode(), traits)


def sent(path: str, family: Family, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(read(path, family, **fields).body("worker")))
    return body


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/upstream/tiny/tokenize", ("tiny", "/tokenize")),
        ("/upstream/Qwen/Qwen3-8B/apply-template", ("Qwen/Qwen3-8B", "/apply-template")),
        ("/upstream/a/v1/score", ("a", "/v1/score")),
        ("/upstream/a/slots", ("a", "/slots")),
        ("/upstream/../../etc/props", ("../../etc", "/props")),  # a name, which no catalogue has
        ("/upstream/tokenize", None),
        ("/upstream//tokenize", None),
        ("/upstream/a/metrics", None),
        ("/upstream/a/slots/0", None),
        ("/upstream/a/tokenize/x", None),
        ("/tokenize", None),
    ],
)
def test_a_path_below_upstream_is_a_name_and_one_of_the_paths(path: str, expected: tuple[str, str] | None) -> None:
    assert engine.below(path) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [(b"model=a%2Fb", "a/b"), (b"x=1&model=m", "m"), (b"", ""), (b"model", ""), (b"&".join([b"a=1"] * 99), "")],
)
def test_a_query_may_name_the_model(query: bytes, expected: str) -> None:
    assert engine.model_in(query) == expected


def test_a_name_in_the_path_or_the_query_precedes_that_of_the_body() -> None:
    assert engine.with_name(b'{"model":"a","content":"x"}', "") == ("a", b'{"model":"a","content":"x"}')
    assert engine.with_name(b'{"model":"a","content":"x"}', "b") == ("b", b'{"model":"b","content":"x"}')
    assert engine.with_name(b"{}", "b") == ("b", b'{"model":"b"}')


@pytest.mark.parametrize("body", [b"{}", b'{"model":""}', b'{"model":null}'])
def test_a_request_without_a_name_says_where_it_may_be(body: bytes) -> None:
    with pytest.raises(BadRequest, match=r"model: .*\?model=NAME.*/upstream/NAME"):
        engine.with_name(body, "")


@pytest.mark.parametrize(
    ("path", "family", "fields"),
    [
        ("/tokenize", "llama", {"content": "a b", "add_special": True, "with_pieces": True}),
        ("/tokenize", "llama", {"content": [1, "a"]}),
        ("/tokenize", "vllm", {"prompt": "a b", "return_token_strs": True}),
        ("/tokenize", "vllm", {"messages": [{"role": "user", "content": "a"}]}),
        ("/detokenize", "llama", {"tokens": [1, 2]}),
        ("/apply-template", "llama", {"messages": [{"role": "user", "content": "a"}]}),
        ("/infill", "llama", {"input_prefix": "a", "input_suffix": "b", "prompt": "c"}),
        ("/v1/score", "vllm", {"text_1": "a", "text_2": ["b", "c"]}),
        ("/score", "vllm", {"queries": ["a"], "documents": ["b"]}),
        ("/v1/pooling", "vllm", {"input": ["a", "b"]}),
    ],
)
def test_the_fields_of_a_route_pass(path: str, family: Family, fields: dict[str, Any]) -> None:
    expected = {"n_predict": 64} if path == "/infill" else {}

    assert sent(path, family, **fields) == {"model": "worker", **fields, **expected}


def test_fields_that_are_not_listed_are_dropped_by_name() -> None:
    request = read("/tokenize", "llama", content="a", id_slot=3, lora=[])

    assert json.loads(bytes(request.body("worker"))) == {"model": "worker", "content": "a"}
    assert request.dropped == ("id_slot",) or set(request.dropped) == {"id_slot", "lora"}


@pytest.mark.parametrize(
    ("path", "family", "fields", "param"),
    [
        ("/tokenize", "llama", {}, "content"),
        ("/tokenize", "vllm", {"content": "a"}, "prompt"),
        ("/tokenize", "llama", {"content": 3}, "content"),
        ("/detokenize", "llama", {"tokens": ["a"]}, "tokens[0]"),
        ("/infill", "llama", {"input_prefix": "a"}, "input_suffix"),
        ("/infill", "llama", {"input_prefix": "a", "input_suffix": "b", "grammar": "root ::= root"}, "grammar"),
        ("/score", "vllm", {"text_1": "a"}, "text_2"),
        ("/score", "vllm", {"text_1": {"content": [{"type": "image_url"}]}, "text_2": "a"}, "text_1"),
        ("/pooling", "vllm", {"input": ["a"] * 3000}, "input"),
        ("/apply-template", "llama", {"messages": []}, "messages"),
        (
            "/apply-template",
            "llama",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_an_error_names_the_field(path: str, family: Family, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(path, family, **fields)

    assert str(refused.value.param).startswith(param)


def test_an_answer_has_the_clients_name_of_the_model() -> None:
    plain = engine.Reply("mine").plain(b'{"model":"w","data":[],"usage":{"prompt_tokens":3}}')

    assert json.loads(plain.body)["model"] == "mine"
    assert plain.tokens.input == 3


def test_an_infill_has_the_tokens_of_the_worker() -> None:
    tokens = engine.Reply("m").plain(b'{"content":"x","tokens_evaluated":5,"tokens_predicted":2}').tokens

    assert (tokens.input, tokens.output) == (5, 2)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_of_an_infill_ends_with_its_last_event(size: int) -> None:
    events = [
        b'data: {"content":"a","stop":false}\n\n',
        b'data: {"content":"","stop":true,"tokens_evaluated":4,"tokens_predicted":1}\n\n',
    ]
    wire = b"".join([*events, b'data: {"content":"late"}\n\n'])
    stream = engine.Reply("m").stream()

    output = b"".join(stream.feed(wire[at : at + size]) for at in range(0, len(wire), size)) + stream.close()

    assert output == b"".join(events)
    assert (stream.over, stream.fault, stream.tokens.output) == (True, None, 1)


def test_a_truncated_infill_ends_with_an_error() -> None:
    stream = engine.Reply("m").stream()

    output = stream.feed(b'data: {"content":"a","stop":false}\n\n') + stream.close()

    assert b'"error"' in output
    assert stream.fault is not None and stream.fault.kind is Kind.WORKER_ERROR
    assert stream.fail(Fault(kind=Kind.INTERNAL, message="x")) == b""


TEXTS: dict[str, object] = {"grammar": SECRET, "json_schema": SECRET, "stop": [SECRET], "logit_bias": [[1, SECRET]]}


def test_props_have_no_path_no_prompt_and_no_unknown_field() -> None:
    worker = {
        "default_generation_settings": {"n_ctx": 512, "prompt": SECRET, "params": {"top_k": 1, **TEXTS}},
        "total_slots": 2,
        "model_path": "/home/user/m.gguf",
        "model_alias": "w",
        "chat_template": "T",
        "media_path": "/srv",
        "webui_settings": {"a": SECRET},
    }  # fmt: skip

    assert json.loads(engine.visible_part("/props", json.dumps(worker).encode(), "mine")) == {
        "default_generation_settings": {"n_ctx": 512, "params": {"top_k": 1}},
        "total_slots": 2,
        "model_path": "mine",
        "model_alias": "mine",
        "chat_template": "T",
    }


def test_slots_show_nothing_of_a_request() -> None:
    slot = {"id": 1, "n_ctx": 512, "is_processing": True, "prompt": SECRET, "params": {"seed": 1}, "id_task": 9}

    assert json.loads(engine.visible_part("/slots", json.dumps([slot]).encode(), "m")) == [
        {"id": 1, "n_ctx": 512, "is_processing": True}
    ]


@pytest.mark.parametrize(("sent_limit", "expected"), [(None, 64), (-1, 64), (8, 8), (1000, 64)])
def test_an_infill_has_the_functions_output_limit(sent_limit: int | None, expected: int) -> None:
    fields = {"input_prefix": "a", "input_suffix": "b", "n_predict": sent_limit}

    assert sent("/infill", "llama", **fields)["n_predict"] == expected


@pytest.mark.parametrize("path", engine.STATES)
def test_a_state_that_cannot_be_read_is_an_error(path: str) -> None:
    with pytest.raises(BadAnswer):
        engine.visible_part(path, b"<html>", "m")
