"""How the record's values are written in Redis, and read again. Pure.

A record of another release may hold more (ignored) or less (defaults); what cannot be read is not there.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from cortex.platform.api_keys import ApiKey
from cortex.platform.record import Override

T = TypeVar("T")

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding bytes of anybody's raises: bad JSON, a wrong shape, bad UTF-8, lists nested without end."""
LONGEST_NUMBER = 15


def decoded(value: bytes | str | None, kind: type[T]) -> T | None:
    """Return a JSON value as what it stands for."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except UNREADABLE:
        return None


def override(kept: Mapping[bytes | str, bytes | str]) -> Override:
    """Return the fields of an override's hash as an override."""
    numbers = {k: int(v) for k, v in words(kept).items() if v.isdecimal() and len(v) <= LONGEST_NUMBER}
    pinned = numbers.get("pinned")
    return Override(pinned=None if pinned is None else bool(pinned), min=numbers.get("min"), max=numbers.get("max"))


def override_fields(override: Override) -> dict[str, int]:
    """Return what an override sets, as the fields of a hash."""
    return {k: int(v) for k, v in msgspec.structs.asdict(override).items() if v is not None}


def key(digest: str, kept: Mapping[bytes, bytes]) -> ApiKey | None:
    """Return the fields of a key's hash as a key."""
    try:
        values = {text(f): msgspec.json.decode(v) for f, v in kept.items()}
        return msgspec.convert({**values, "digest": digest}, ApiKey)
    except UNREADABLE:
        return None


def key_fields(key: ApiKey) -> dict[str, bytes]:
    """Return a key as the fields of a hash. Its digest is the hash's name."""
    fields: dict[str, Any] = msgspec.to_builtins(key)
    return {f: msgspec.json.encode(v) for f, v in fields.items() if f != "digest"}


def words(kept: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    """Return the fields of a hash as text."""
    return {text(k): text(v) for k, v in kept.items()}


def names(members: Iterable[bytes | str]) -> list[str]:
    """Return the names in an index, in order. One that is no text was not written by cortex, and names nothing."""
    texts = []
    for member in members:
        try:
            texts.append(member.decode() if isinstance(member, bytes) else member)
        except UnicodeDecodeError:
            continue
    return sorted(filter(None, texts))


def text(value: bytes | str) -> str:
    """Return what Redis gave, as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
