"""The entry of a function as it takes effect, with the origin of each value. Pure."""

import tomllib
from typing import Any

import msgspec
from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.functions.spec import Function
from cortex.functions.toml_lines import TomlLines


class Value(Struct, frozen=True):
    """A key's value; `line` is None and `table` empty for what cortex itself has as the default."""

    key: str
    value: Any
    table: str = ""
    """`models`, or `defaults`."""
    line: int | None = None


def explain(text: str, catalogue: Catalogue, name: str) -> tuple[Function, list[Value]] | None:
    """Return the function with an id or alias, and its values in the order of the documentation; None: there is none.
    `catalogue` is what was read from `text`.
    """
    function = catalogue.resolve(name)
    if function is None:
        return None
    raw, lines = tomllib.loads(text), TomlLines(text)
    nth = next(n for n, entry in enumerate(raw["models"]) if entry.get("id") == function.id)
    values = []
    for key, value in msgspec.structs.asdict(function).items():
        table, written = _origin(key, raw["models"][nth], raw.get("defaults", {}))
        line = lines.key(table, written, nth if table == "models" else 0) if table else None
        values.append(Value(key, msgspec.to_builtins(value), table, line))
    return function, values


def _origin(key: str, entry: dict[str, Any], defaults: dict[str, Any]) -> tuple[str, str]:
    """Return the table and the key that a value comes from; "" for both: from nowhere in the file."""
    names = ("engine", "harness") if key == "engine" else (key,)  # harness is the older word for engine
    for table, content in (("models", entry), ("defaults", defaults)):
        for name in names:
            if name in content:
                return table, name
    return "", ""
