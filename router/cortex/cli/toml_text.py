"""Writes keys and values of TOML."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def write_key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if _BARE.fullmatch(name) else write_value(name)


def write_value(value: Any) -> str:
    """Return a value in one line. Members of a table that are None are left out: TOML has no null."""
    if isinstance(value, Mapping):
        members = [f"{write_key(str(k))} = {write_value(v)}" for k, v in value.items() if v is not None]
        return "{ " + ", ".join(members) + " }" if members else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(write_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
