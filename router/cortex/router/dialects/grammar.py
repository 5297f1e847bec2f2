"""When a worker cannot make a grammar of a tool's schema: ask again with a schema that says less.

Agents send schemas with everything JSON Schema has, and engines turn them into grammars that have less. A tool's
schema is a hint to the model first and a constraint second, so what no grammar can say is left out of it and the
tool stays usable. A schema that the client wants its answer to have is a promise: it is never loosened.
"""

import re
from typing import Any

import msgspec

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
        if key not in _BEYOND_TYPE
    }
