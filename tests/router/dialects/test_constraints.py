"""Bounds of schemas, expressions and grammars: what real clients send passes, what holds an engine does not."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.functions.passing import passing
from cortex.router.dialects.core import constraints, grammar
from cortex.router.dialects.core.constraints import Measure, TooCostly
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits
from tests.router.dialects.request_builders import (
    Json,
    body_of,
    chat_request,
    messages_request,
    refusal_of,
    responses_request,
    tool,
)

REAL = [
    r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$",
    r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$",
    r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$",
    r"^(([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63})$",
    r"^\{[a-z]+\}[(){}\[\]]*$",
    r"^(\w+\s?)*$",
    r"a{1000}",
    r"[{(*]{3}",
    r"^(\+?\d{1,3}[ -]?)?(\(\d{2,4}\)[ -]?)?\d{3,4}([ -]?\d{2,4}){1,3}$",
    r"^https?://([\w-]+\.)+[\w-]+(:\d+)?(/[\w./?%&=-]*)?$",
    r"(a?)?",
    r"(a?b)*",
    r"(\d{0,3})?",
    "a?" * 64,
]
COSTLY = [
    "^(((a{0,200}){0,200}){0,200}){0,200}$",
    "(((a*)*)*)*",
    "(?:(?:a{1,999}){1,999})",
    "((a+){100,}){100,}",
    "a{99999999999999999999}",
    "(" * 40 + "a" + ")" * 40,
    "a" * 2049,
    "((a?){0,40}){0,40}",
    "(a*)+",
    "(a?b?|c){2}",
    "(|a)*",
    "(^|$)*",
    "((a)?){3}",
    "a?" * 65,
    "(a?b?)?" * 22,
    "a{0,9}" * 65,
]


@pytest.mark.parametrize("text", REAL)
def test_a_common_pattern_passes(text: str) -> None:
    constraints.pattern(text, "pattern")


@pytest.mark.parametrize("text", COSTLY, ids=lambda text: text[:30])
def test_a_costly_pattern_is_refused(text: str) -> None:
    with pytest.raises(TooCostly):
        constraints.pattern(text, "pattern")


@given(st.text(alphabet="ab()[]{}*+?|\\,019^$.", max_size=200))
def test_any_text_is_measured_or_refused(text: str) -> None:
    try:
        constraints.pattern(text, "pattern")
        constraints.grammar(text, "grammar")
    except BadRequest:
        pass


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_nested_repetitions_count_as_their_product(a: int, b: int, c: int) -> None:
    text = f"((x{{1,{a}}}){{1,{b}}}){{1,{c}}}"

    levels = sum(n > 1 for n in (a, b, c))
    most = constraints.MAX_NESTED.get(levels, constraints.MAX_REPETITIONS)
    if a * b * c <= most:
        constraints.pattern(text, "pattern")
        return
    with pytest.raises(TooCostly, match="multiply to more than"):
        constraints.pattern(text, "pattern")


GRAMMAR = r"""
root ::= "{" ws pair ("," ws pair){0,20} "}"   # an object
pair ::= string ":" value
value ::= string | [0-9]+ | root
string ::= "\"" [^"\\]* "\""
ws ::= [ \t\n]*
"""


def test_a_common_grammar_passes() -> None:
    constraints.grammar(GRAMMAR, "grammar")


@pytest.mark.parametrize(
    "text",
    [
        "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000,
        "root ::= " + "(" * 40 + '"a"' + ")" * 40,
        'root ::= a{100}\na ::= b{100}\nb ::= "x"{100}',
        'root ::= ((("a"*)*)*)*',
        "\n".join(f"r{n} ::= r{n + 1}" for n in range(1000)),
    ],
    ids=["60000 groups", "40 groups", "by reference", "stars", "a chain of rules"],
)
def test_a_costly_grammar_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        constraints.grammar(text, "grammar")


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "The"',
        'root ::= "a"{5,5}',
        'root ::= item ("," item){0,7}  # a list\nitem ::= [a-z] [a-z0-9_]{0,40} | "\\"" [^"]* "\\""',
        'root ::= day "-" day\r\nday ::= [0-3] [0-9]\r\n',
    ],
)
def test_a_grammar_without_recursion_is_plain(text: str) -> None:
    constraints.plain_grammar(text, "grammar")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GRAMMAR, "recursion"),
        ('root ::= a | "x"\na ::= root root', "recursion"),
        ('root ::= a{2000}\na ::= "x"?', "can be empty"),
        ("root ::= " + "a " * 65 + '\na ::= "x"?', "optional"),
        (
            "root ::= a0\n" + "\n".join(f"a{n} ::= a{n + 1} a{n + 1}" for n in range(20)) + '\na20 ::= "x"',
            "more than 512",
        ),
        ("root ::= ([a-z ]{1,30}){1,30}", "more than 512"),
        ("root ::= (([a-z ]{1,12}){1,12}){1,12}", "more than 343"),
        ("root ::= a{100}\na ::= [a-z] | [a-z] [a-z] | [a-z]{1,9}", "more than 512"),
        ("root ::= " + " | ".join(f'"{"a" * n}"' for n in range(1, 40)), "more than 512"),
        ("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(40)) + '\nr40 ::= "x"', "nested"),
        ('root ::= "' + "x" * 5000 + '"', "unexpected"),
        ("root ::= missing", "'missing' is missing"),
        ("", "'root' is missing"),
        ('root ::= "a"\nother ::= "b"', "not used"),
        ("root ::= 1\n1 ::= 1 1", "expected a rule"),
        ('root ::= "' + "x" * 300 + '#" root', "unexpected"),
        ("root ::= # a comment\r root", "recursion"),
        ("start: /x+/", "unexpected"),
        ('"a" root ::= "b"', "expected a rule"),
        ('root ::= "a', "unexpected"),
    ],
)
def test_a_grammar_with_recursion_or_above_the_bounds_of_a_pattern_is_not_plain(text: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        constraints.plain_grammar(text, "grammar")


@given(st.text(alphabet='rot:=" ()[]{}*+?|#\n\r\\,09a', max_size=60))
def test_any_text_is_a_plain_grammar_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        constraints.plain_grammar("root ::= a " + text + "\na ::= [a-z]" + text, "grammar")


def nested(depth: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (nested(80), "128 levels"),
        ({"examples": list(range(20_001))}, "20000 values"),
        ({"enum": list(range(4097))}, "4096 values of enum"),
        ({"anyOf": [{"anyOf": [{"const": n}] * 2} for n in range(1400)]}, "4096 values of enum"),
        ({"properties": {f"p{n}": {} for n in range(600)}, "required": ["p1", "other"]}, "512 optional properties"),
        ({"properties": {f"p{n}": {"pattern": "a{0,2000}"} for n in range(17)}}, "32000 repetitions"),
        ({"properties": {f"p{n}": {"pattern": "(a)" * 500} for n in range(50)}}, "65536 characters"),
        ({"properties": {"a": {"pattern": "((a?){0,40}){0,40}"}}}, "that can be empty"),
        ({"description": "x" * 600_000}, "524288 characters"),
        ({"properties": {"a": {"pattern": COSTLY[0]}}}, "multiply"),
        ({"patternProperties": {COSTLY[1]: {}}}, "that can be empty"),
        ({"$ref": "http://192.0.2.1/schema"}, "into its own schema"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
        ({"maxItems": 1000, "items": {"maxItems": 1000, "items": {}}}, "multiply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schema_for_the_answer_is_bounded_in_every_dialect(schema: Json, what: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}

    for fault in (
        refusal_of(chat_request, response_format=form),
        refusal_of(chat_request, traits=Traits(passing=passing("llama", "chat")), json_schema=schema),
        refusal_of(chat_request, traits=Traits(passing=passing("vllm", "chat")), guided_json=json.dumps(schema)),
        refusal_of(chat_request, traits=Traits(passing=passing("vllm", "chat")), structured_outputs={"json": schema}),
        refusal_of(messages_request, output_format={"type": "json_schema", "schema": schema}),
        refusal_of(responses_request, text=text),
    ):
        assert what in fault.message


def test_large_but_common_objects_and_enums_pass() -> None:
    names = [f"p{n}" for n in range(2000)]
    zones = {"enum": [f"Continent/City_{n}" for n in range(600)]}

    Measure().schema(
        {"properties": {n: {"type": "string"} for n in names}, "required": names[600:] + names[:200]}, "at"
    )
    Measure().schema({"properties": {f"zone{n}": zones for n in range(6)}}, "at")


def test_a_property_may_have_the_name_of_a_json_schema_keyword() -> None:
    schema = {"properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}, "maxLength": {"type": "null"}}}

    Measure().schema(schema, "schema")


@pytest.mark.parametrize("ask", [chat_request, messages_request, responses_request])
def test_a_too_costly_tool_schema_is_loosened(ask: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": COSTLY[0], "maxLength": 10**9}}}
    declaration: Json = {
        chat_request: {"type": "function", "function": {"name": "f", "parameters": schema}},
        messages_request: tool("f", input_schema=schema),
        responses_request: {"type": "function", "name": "f", "parameters": schema},
    }[ask]

    actual = body_of(ask(tools=[declaration]))["tools"][0]["function"]["parameters"]

    assert actual == {"type": "object", "properties": {"a": {"type": "string"}}}


def test_the_schemas_of_a_request_are_bounded_together() -> None:
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": {"examples": list(range(3000))}}}
        for n in range(10)
    ]

    assert "20000 values" in refusal_of(chat_request, tools=tools).message


def test_a_grammar_with_recursion_passes_only_where_an_operator_allows_it_and_is_measured_there() -> None:
    allowed = Traits(passing=passing("vllm", "chat", ("grammar",)))

    assert body_of(chat_request(allowed, structured_outputs={"grammar": GRAMMAR}))["structured_outputs"]
    assert refusal_of(chat_request, traits=allowed, grammar="root ::= " + "(" * 99 + ")" * 99).param == "grammar"
    assert refusal_of(
        chat_request, traits=Traits(passing=passing("vllm", "chat")), structured_outputs={"grammar": GRAMMAR}
    ).param == ("structured_outputs.grammar")
    assert refusal_of(chat_request, traits=Traits(passing=passing("llama", "chat")), grammar=GRAMMAR).param == "grammar"


def test_llama_cpp_gets_a_plain_grammar() -> None:
    traits = Traits(passing=passing("llama", "chat"))

    assert body_of(chat_request(traits, grammar='root ::= "The"'))["grammar"] == 'root ::= "The"'


def test_measuring_takes_linear_time() -> None:
    began = time.process_time()
    for text in ('"' * constraints.MAX_GRAMMAR, "[" * constraints.MAX_GRAMMAR, "/\\" * (constraints.MAX_GRAMMAR // 2)):
        constraints.grammar(text, "grammar")

    assert time.process_time() - began < 10


def test_a_format_of_another_kind_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"response_format.type"):
        grammar.check_format("grammar", {"type": "grammar"})
