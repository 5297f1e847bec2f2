"""Check the constraints of a request, and loosen tool schemas that a worker cannot compile into a grammar.

Agents use all of JSON Schema, and engines compile it into grammars that express less. A tool's schema is
mainly a hint to the model, so keywords that no grammar expresses are removed and the tool stays usable. A schema for
the answer itself is a guarantee to the client and is never loosened.
"""

import functools
import re
from typing import Any

import msgspec

from cortex.router.dialects.core import constraints
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.large_object import Body

FIELDS = frozenset(
    {
        "functions", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
        "guided_grammar", "grammar",
    }
)  # fmt: skip
"""Top-level fields with a schema, an expression or a grammar; `tools` and `response_format` are checked separately."""
_FORMATS = frozenset({"text", "json_object", "json_schema", "structural_tag"})

_GRAMMAR = re.compile(r"grammar|json[ _-]?schema|structured[ _]outputs?|guided|\bpattern\b|\bregex", re.IGNORECASE)
_FAILURE = re.compile(r"fail|unsupported|not support|invalid|error|cannot|could ?n.t|unable|must|conver", re.IGNORECASE)
_MAX_DEPTH = 64

# Keywords beyond a value's type. Engines differ in which of these they lack.
_BEYOND_TYPE = frozenset(
    {
        "$schema", "pattern", "patternProperties", "propertyNames", "format", "minLength", "maxLength", "minimum",
        "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems",
        "contains", "minContains", "maxContains", "minProperties", "maxProperties", "not", "if", "then", "else",
        "dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "contentEncoding",
    }
)  # fmt: skip
_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions"})


def check_field(name: str, raw: msgspec.Raw, allow: frozenset[str]) -> msgspec.Raw | None:
    """Measure a field of `FIELDS`. Return a looser value if it needs one, else None.

    Raises BadRequest with the bound that it exceeds.
    """
    value: Any = msgspec.json.decode(raw)
    if value is None:
        return None
    if name == "functions":
        looser = loosen_tools(value, name) if isinstance(value, list) else None
        return None if looser is None else msgspec.Raw(msgspec.json.encode(looser))
    if name == "structured_outputs":
        if not isinstance(value, dict):
            raise BadRequest("expected an object", name)
        for key, element in value.items():
            _check(_KINDS.get(key, "unknown"), element, f"{name}.{key}", allow)
        return None
    _check(_KINDS[name.removeprefix("guided_")], value, name, allow)
    return None


_KINDS = {
    "json": "schema", "json_schema": "schema", "structural_tag": "schema", "regex": "pattern",
    "whitespace_pattern": "pattern", "choice": "choices", "grammar": "grammar", "json_object": "switch",
    "disable_any_whitespace": "switch", "disable_additional_properties": "switch", "disable_fallback": "switch",
}  # fmt: skip


def _check(kind: str, value: Any, at: str, allow: frozenset[str]) -> None:
    if value is None:
        return
    match kind:
        case "schema":
            check_schema(constraints.json_value(value, at), at)
        case "pattern":
            constraints.pattern(_text(value, at), at)
        case "choices":
            constraints.choices(value, at)
        case "grammar":
            if at in allow or "grammar" in allow:
                constraints.grammar(_text(value, at), at)
            elif at == "grammar":  # of llama.cpp, whose form is known
                constraints.plain_grammar(_text(value, at), at)
            else:
                raise BadRequest("grammars from clients are not accepted", at, Kind.UNSUPPORTED)
        case "switch":
            return
        case _:
            raise BadRequest("not accepted from clients", at, Kind.UNSUPPORTED)


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise BadRequest("expected a string", at)
    return value


def check_schema(schema: Any, at: str) -> None:
    """Measure a schema that an answer has to follow. Raises BadRequest with the bound that it exceeds."""
    if isinstance(schema, (dict, list)):
        constraints.Measure().schema(schema, at)


def check_format(kind: str, value: Any) -> None:
    """Measure a `response_format`. Raises BadRequest."""
    if kind not in _FORMATS:
        raise BadRequest("expected text, json_object or json_schema", "response_format.type", Kind.UNSUPPORTED)
    if kind != "text":
        check_schema(value, "response_format")


def loosen_tools(tools: list[Any], at: str) -> list[Any] | None:
    """Measure the schemas of tools. Return the tools with the too costly schemas loosened, or None when there are none.

    Raises BadRequest for schemas that are too large or too deep.
    """
    return _loosen_tools(tools, at, constraints.Measure())


def _loosen_tools(tools: list[Any], at: str, measure: constraints.Measure) -> list[Any] | None:
    changed = False
    result: list[Any] = []
    for index, tool in enumerate(tools):
        members = tool.get("tools") if isinstance(tool, dict) else None
        if isinstance(members, list):  # a namespace of a Responses request
            looser = _loosen_tools(members, f"{at}[{index}].tools", measure)
            changed = changed or looser is not None
            tool = {**tool, "tools": members if looser is None else looser}
        function = tool.get("function") if isinstance(tool, dict) else None
        holder = function if isinstance(function, dict) else tool
        for key in ("parameters", "input_schema", "format"):
            schema = holder.get(key) if isinstance(holder, dict) else None
            if not isinstance(schema, (dict, list)):
                continue
            try:
                measure.schema(schema, f"{at}[{index}].{'function.' if holder is function else ''}{key}")
            except constraints.TooCostly:
                changed = True
                holder = {**holder, key: _looser(schema, _MAX_DEPTH)}
                tool = {**tool, "function": holder} if isinstance(function, dict) else holder
        result.append(tool)
    return result if changed else None


_MAX_CACHED = 128 * 1024
"""Largest list of tools, in bytes, to cache: agents send the same list with every turn."""


def fit(tools: list[dict[str, Any]], raw: msgspec.Raw, at: str = "tools") -> list[dict[str, Any]] | None:
    """Measure tools like `loosen_tools`, with a cache of lists that need no change."""
    if len(memoryview(raw)) <= _MAX_CACHED and _is_unchanged(bytes(raw)):
        return None
    return loosen_tools(tools, at)


@functools.lru_cache(maxsize=64)
def _is_unchanged(raw: bytes) -> bool:
    return loosen_tools(msgspec.json.decode(raw), "tools") is None


def is_grammar_error(message: str) -> bool:
    """Whether a worker's error reports a schema that it cannot compile into a grammar."""
    return bool(_GRAMMAR.search(message)) and bool(_FAILURE.search(message))


def loosen_request(body: Body) -> Body | None:
    """Return the request with looser tool schemas; None when they are minimal already."""
    if not isinstance(body, bytes):
        looser = _looser_tools(body.value("tools")) if "tools" in body else None
        return None if looser is None else body.replace({"tools": looser})
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    looser = _looser_tools(bytes(fields["tools"])) if "tools" in fields else None
    return None if looser is None else msgspec.json.encode(fields | {"tools": msgspec.Raw(looser)})


def _looser_tools(encoded: bytes) -> bytes | None:
    tools: Any = msgspec.json.decode(encoded)
    before = msgspec.json.encode(tools)
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            function.pop("strict", None)
            if "parameters" in function:
                function["parameters"] = _looser(function["parameters"], _MAX_DEPTH)
    after = msgspec.json.encode(tools)
    return None if after == before else after


def _looser(schema: Any, depth: int) -> Any:
    if isinstance(schema, list):
        return [_looser(element, depth - 1) for element in schema] if depth else []
    if not isinstance(schema, dict):
        return schema
    if depth == 0:
        return {}
    return {
        key: {name: _looser(element, depth - 1) for name, element in value.items()}
        if key in _NAMED_SCHEMAS and isinstance(value, dict)
        else value
        if key in ("enum", "const", "required", "default", "examples")
        else _looser(value, depth - 1)
        for key, value in schema.items()
        if key not in _BEYOND_TYPE and not (key == "$ref" and not str(value).startswith("#"))
    }
