"""Embeddings: every form of input, and the encoding that the client asked for, whatever the worker knows."""

import json
from typing import Any

import pytest

from cortex.router.dialects import embeddings
from cortex.router.dialects.core.errors import BadAnswer, BadRequest
from tests.router.dialects.clients import embedded

NUMBERS = [0.5, -2.0, 3.25]
PACKED = "AAAAPwAAAMAAAFBA"


def ask(value: Any = "hi", **fields: Any) -> embeddings.EmbeddingsRequest:
    return embeddings.read(json.dumps({"model": "m", "input": value} | fields).encode())


def answered(embedding: Any) -> bytes:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    data = [{"object": "embedding", "index": 0, "embedding": embedding}]
    return json.dumps({"object": "list", "data": data, "model": "worker", "usage": usage}).encode()


@pytest.mark.parametrize("value", ["hi", ["hi", "ho"], [1, 2], [[1, 2], [3]]])
def test_case_59_every_form_of_input_passes_as_it_is(value: Any) -> None:
    parsed = ask(value, dimensions=64, encoding_format="base64")

    body_of = json.loads(bytes(parsed.body("worker")))

    assert body_of == {"model": "worker", "input": value, "dimensions": 64, "encoding_format": "base64"}


@pytest.mark.parametrize("body_of", [NUMBERS, PACKED])
@pytest.mark.parametrize(("wanted", "expected"), [("base64", PACKED), ("float", NUMBERS), (None, NUMBERS)])
def test_case_59_the_answer_has_the_requested_encoding(body_of: Any, wanted: Any, expected: Any) -> None:
    plain = ask(encoding_format=wanted).plain(answered(body_of))

    actual = json.loads(plain.body)
    assert actual["data"][0]["embedding"] == expected
    assert actual["model"] == "m"
    assert plain.tokens.input == 3


def test_case_59_the_sdk_decodes_its_default_encoding() -> None:
    assert embedded(ask(encoding_format="base64").plain(answered(NUMBERS)).body) == NUMBERS


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", {}]}, "input[1]"),
        ({"input": [[1, "a"]]}, "input[0][1]"),
        ({"input": 5}, "input"),
        ({"model": ""}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        embeddings.read(json.dumps({"model": "m", "input": "hi"} | fields).encode())

    assert caught.value.fault().param == param


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"data":5}', b'{"error":{"message":"no"}}', answered([1e300]), answered("!")]
)
def test_an_invalid_answer_raises(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        ask(encoding_format="base64" if b"1e+300" in body else "float").plain(body)
