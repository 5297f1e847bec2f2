"""Case 15: schemas that a worker's grammars cannot say."""

import json
from typing import Any

import pytest

from cortex.router.dialects.core.grammar import is_grammar_error, loosen_request

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "pattern": {"type": "string", "pattern": "^(?=a)b", "minLength": 2, "description": "d"},
        "n": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": {"format": "kept"}}]},
        "list": {"type": "array", "items": {"type": "string", "format": "date"}, "maxItems": 3},
    },
    "required": ["pattern"],
}


def body(**more: Any) -> bytes:
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]} | more).encode()


@pytest.mark.parametrize(
    "message",
    [
        "Failed to parse grammar",
        "JSON schema conversion failed:\nPattern must start with '^' and end with '$'",
        "Failed to initialize samplers: failed to parse grammar",
        "The provided JSON schema contains features not supported by xgrammar.",
        "Invalid grammar specification: unexpected token",
        'Grammar error: Unimplemented keys: ["propertyNames"]',
    ],
)
def test_case_15_grammar_errors_of_every_worker_are_recognised(message: str) -> None:
    assert is_grammar_error(message)


@pytest.mark.parametrize(
    "message",
    ["max_tokens is too large", "The model `x` does not exist.", "invalid role", "Failed to load image: no such type"],
)
def test_case_15_other_errors_are_not_grammar_errors(message: str) -> None:
    assert not is_grammar_error(message)


def test_case_15_keywords_without_a_grammar_are_removed() -> None:
    actual = loosen_request(body(seed=1))

    assert actual is not None
    parsed = json.loads(bytes(actual))
    assert parsed["seed"] == 1
    assert parsed["tools"][0]["function"] == {
        "name": "f",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "pattern": {"type": "string", "description": "d"},
                "n": {"anyOf": [{"type": "number"}, {"const": {"format": "kept"}}]},
                "list": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["pattern"],
        },
    }
    assert loosen_request(actual) is None  # it is tried once


def test_case_15_a_schema_of_the_answer_is_never_loosened() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}

    assert loosen_request(json.dumps({"model": "m", "messages": [], "response_format": form}).encode()) is None
    actual = loosen_request(body(response_format=form))
    assert actual is not None
    assert json.loads(bytes(actual))["response_format"] == form


def test_case_15_a_tool_without_parameters_gets_none() -> None:
    plain = {"type": "function", "function": {"name": "g"}}

    assert loosen_request(json.dumps({"tools": [plain]}).encode()) is None


def test_case_15_a_too_deep_schema_is_cut() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}

    assert loosen_request(json.dumps({"tools": [tool]}).encode()) is not None
