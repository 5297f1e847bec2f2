"""Rerank: the same request under another name, with nothing but texts in it."""

import json
from typing import Any

import pytest

from cortex.router.dialects import rerank
from cortex.router.dialects.core.errors import BadAnswer, BadRequest

BODY = b'{"query":"q","documents":["a", "b"], "model":"m","top_n":1}'


def test_a_request_and_its_answer_are_renamed() -> None:
    parsed = rerank.read(BODY)

    plain = parsed.plain(b'{"model":"worker","results":[{"index":0,"relevance_score":0.5}]}')

    assert json.loads(bytes(parsed.body("m"))) == json.loads(bytes(BODY))
    assert json.loads(bytes(parsed.body("worker"))) == json.loads(bytes(BODY)) | {"model": "worker"}
    assert json.loads(plain.body)["model"] == "m"


@pytest.mark.parametrize(
    ("fields", "param"), [({"documents": []}, "documents"), ({"query": 5}, "query"), ({"model": ""}, "model")]
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        rerank.read(json.dumps(json.loads(BODY) | fields).encode())

    assert caught.value.fault().param == param


@pytest.mark.parametrize("body", [b"", b"{}", b'{"error":"no"}'])
def test_an_invalid_answer_raises(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        rerank.read(BODY).plain(body)
