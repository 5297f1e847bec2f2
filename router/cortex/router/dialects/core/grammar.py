"""What constrains an answer: which of it passes, and a looser schema where a worker cannot make a grammar of one.

Agents send schemas with everything JSON Schema has, and engines turn them into grammars that have less. A tool's
schema is a hint to the model first and a constraint second, so what no grammar can say is left out of it and the
tool stays usable. A schema that the client wants its answer to have is a promise: it is never loosened.
"""

import functools
import re
from typing import Any

import msgspec

from cortex.router.dialects.core import constraints
from cortex.router.dialects.core.errors import BadRequest, Kind

FIELDS = frozenset(
    {
        "functions", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
        "guided_grammar", "grammar",
    }
)  # fmt: skip
"""Top-level fields that hold a schema, an expression or a grammar; `tools` and `response_format` are read apart."""
_FORMATS = frozenset({"text", "json_object", "json_schema", "structural_tag"})

_ABOUT = re.compile(r"grammar|json[ _-]?schema|structured[ _]outputs?|guided|\bpattern\b|\bregex", re.IGNORECASE)
_FAILED = re.compile(r"fail|unsupported|not support|invalid|error|cannot|could ?n.t|unable|must|conver", re.IGNORECASE)
_DEEPEST = 64

# What describes a value beyond its type; which of these an engine cannot do differs, that it is one of these does not.
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
    """Measure a field of `FIELDS`. Return another value for it where it has to be looser, else None.

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
        for key, one in value.items():
            _check(_KINDS.get(key, "unknown"), one, f"{name}.{key}", allow)
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
            if at not in allow and "grammar" not in allow:
                raise BadRequest("grammars are not taken from clients here", at, Kind.UNSUPPORTED)
            constraints.grammar(_text(value, at), at)
        case "switch":
            return
        case _:
            raise BadRequest("not taken from clients here", at, Kind.UNSUPPORTED)


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise BadRequest("expected a string", at)
    return value


def check_schema(schema: Any, at: str) -> None:
    """Measure a schema that an answer has to follow. Raises BadRequest with the bound that it exceeds."""
    if isinstance(schema, (dict, list)):
        constraints.Measure().schema(schema, at)


def check_format(kind: str, whole: Any, at: str = "response_format") -> None:
    """Measure a `response_format`. Raises BadRequest."""
    if kind not in _FORMATS:
        raise BadRequest("expected text, json_object or json_schema", f"{at}.type", Kind.UNSUPPORTED)
    if kind != "text":
        check_schema(whole, at)


def loosen_tools(tools: list[Any], at: str) -> list[Any] | None:
    """Measure the schemas of tools. Return the tools with looser schemas where one would cost a worker too much; None
    when all may stay. Raises BadRequest for schemas that are too large or too deep.
    """
    return _loosen_tools(tools, at, constraints.Measure())


def _loosen_tools(tools: list[Any], at: str, measure: constraints.Measure) -> list[Any] | None:
    changed = False
    done: list[Any] = []
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
                holder = {**holder, key: _looser(schema, _DEEPEST)}
                tool = {**tool, "function": holder} if isinstance(function, dict) else holder
        done.append(tool)
    return done if changed else None


_REMEMBERED = 128 * 1024
"""Bytes of a list of tools that is remembered: agents send the same one with every turn."""


def fit(tools: list[dict[str, Any]], raw: msgspec.Raw, at: str = "tools") -> list[dict[str, Any]] | None:
    """Measure tools as `loosen_tools` does; those that were harmless before are known by their bytes."""
    if len(memoryview(raw)) <= _REMEMBERED and _harmless(bytes(raw)):
        return None
    return loosen_tools(tools, at)


@functools.lru_cache(maxsize=64)
def _harmless(raw: bytes) -> bool:
    return loosen_tools(msgspec.json.decode(raw), "tools") is None


def complains(message: str) -> bool:
    """Whether a worker's error says that it could not make a grammar of a schema."""
    return bool(_ABOUT.search(message)) and bool(_FAILED.search(message))


def loosened(body: bytes) -> bytes | None:
    """The request with simpler tool schemas; None when there is nothing to leave out."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if "tools" not in fields:
        return None
    tools: Any = msgspec.json.decode(fields["tools"])
    before = msgspec.json.encode(tools)
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            function.pop("strict", None)
            if "parameters" in function:
                function["parameters"] = _looser(function["parameters"], _DEEPEST)
    after = msgspec.json.encode(tools)
    return None if after == before else msgspec.json.encode(fields | {"tools": msgspec.Raw(after)})


def _looser(schema: Any, depth: int) -> Any:
    if isinstance(schema, list):
        return [_looser(one, depth - 1) for one in schema] if depth else []
    if not isinstance(schema, dict):
        return schema
    if depth == 0:
        return {}
    return {
        key: {name: _looser(one, depth - 1) for name, one in value.items()}
        if key in _NAMED_SCHEMAS and isinstance(value, dict)
        else value
        if key in ("enum", "const", "required", "default", "examples")
        else _looser(value, depth - 1)
        for key, value in schema.items()
        if key not in _BEYOND_TYPE and not (key == "$ref" and not str(value).startswith("#"))
    }
