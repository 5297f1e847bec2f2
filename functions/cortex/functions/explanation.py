"""The entry of a function as it takes effect, with the origin of each value. Pure."""

import tomllib
from typing import Any

import msgspec
from msgspec import Struct

from cortex.functions.catalogue import Catalogue
from cortex.functions.spec import Function
from cortex.functions.toml_lines import TomlLines
from cortex.functions.variants import NOT_INHERITED, fold, sharers


class Value(Struct, frozen=True):
    """A key's value; `line` is None and `table` empty for what cortex itself has as the default."""

    key: str
    value: Any
    table: str = ""
    """`models`, or `defaults`."""
    line: int | None = None
    of: str = ""
    """The other function whose entry has it: the base of a variant, or one that shares its instances."""


def explain(text: str, catalogue: Catalogue, name: str) -> tuple[Function, list[Value]] | None:
    """Return the function with an id or alias, and its values in the order of the documentation; None: there is none.
    `catalogue` is what was read from `text`. What functions with the same instances wish of these is the strongest.
    """
    declared = catalogue.resolve(name)
    if declared is None:
        return None
    raw, lines = tomllib.loads(text), TomlLines(text)
    function = fold(catalogue.functions)[declared.id]
    values = []
    for key, value in msgspec.structs.asdict(function).items():
        if key == "adapters":  # in no entry: those of the variants
            continue
        source = declared if getattr(declared, key) == value else _strongest(catalogue, function, key)
        names = (source.id,) if source is not declared or _is_own(declared, key) else (declared.id, declared.base_id)
        of, table, line = "", "", None
        for id in names:
            nth = next(n for n, entry in enumerate(raw["models"]) if entry.get("id") == id)
            defaults = raw.get("defaults", {}) if id == catalogue.functions[id].base_id else {}
            table, written = _origin(key, raw["models"][nth], defaults)
            if table:
                of, line = id, lines.key(table, written, nth if table == "models" else 0)
                break
        values.append(Value(key, msgspec.to_builtins(value), table, line, "" if of == declared.id else of))
    return function, values


def _is_own(function: Function, key: str) -> bool:
    """Whether a function does not have a key's value from its base."""
    return not function.variant_of or key in NOT_INHERITED


def _strongest(catalogue: Catalogue, function: Function, key: str) -> Function:
    """Return the function whose wish the shared instances follow."""
    every = sharers(catalogue.functions, function.base_id)
    return next((f for f in every if getattr(f, key) == getattr(function, key)), every[0])


def _origin(key: str, entry: dict[str, Any], defaults: dict[str, Any]) -> tuple[str, str]:
    """Return the table and the key that a value comes from; "" for both: from nowhere in the file."""
    names = {"engine": ("engine", "harness"), "variant_of": ("variant_of", "base")}.get(key, (key,))
    for table, content in (("models", entry), ("defaults", defaults)):
        for name in names:
            if name in content:
                return table, name
    return "", ""
