"""Texts of `models.toml` for tests."""

import json
from collections.abc import Mapping


def fake(name: str, *args: str, **keys: object) -> str:
    """A function on the fake engine; `args` are its options."""
    return entry(name, engine="fake", args=list(args), **keys)


def gguf(name: str, path: str, **keys: object) -> str:
    """A function on llama.cpp with a file."""
    return entry(name, engine="llamacpp", source=path, **keys)


def entry(name: str, **keys: object) -> str:
    """One [[models]] entry."""
    lines = [f"{key} = {_toml(value)}" for key, value in {"id": name, **keys}.items()]
    return "\n".join(["[[models]]", *lines, ""])


def aliases(names: Mapping[str, str]) -> str:
    """The [aliases] table."""
    return "\n".join(["[aliases]", *(f"{json.dumps(a)} = {json.dumps(t)}" for a, t in names.items()), ""])


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)
