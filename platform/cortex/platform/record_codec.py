"""Encoding and decoding of the record's values in Redis. Pure.

Unknown fields of another release are ignored, missing ones get their default, and an invalid value counts as missing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.api_keys import ApiKey
from cortex.platform.record import HostRecord, Override

T = TypeVar("T")

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding arbitrary bytes raises: bad JSON, a wrong shape, bad UTF-8, lists nested too deeply."""
LONGEST_NUMBER = 15
HEAD_BYTES = 512
"""The part of a host's record that a reader compares, before it reads a record that has changed: up to its `change`, or
all of it where an earlier release wrote none."""
CHANGE = b'","change":"'


def decode_as(value: bytes | str | None, kind: type[T]) -> T | None:
    """Return a JSON value as a `kind`; None when it is missing or invalid."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except UNREADABLE:
        return None


def host_record(value: bytes | str | None, name: str) -> HostRecord | None:
    """Return the record below a host's name, its instances marked as that host's; None if it is of another name.

    A host may write below its own name alone, and workers' keys follow from the name.
    """
    record = decode_as(value, HostRecord)
    if record is None or record.name != name:
        return None
    return replace(record, instances=tuple(replace(i, host=name) for i in record.instances))


def comparable(head: bytes) -> bytes | None:
    """Return what a reader compares of the beginning of a host's record; None: two writes may be equal in it.

    A quote inside a JSON string is escaped, so no other field can look like `change`. Earlier releases have the time
    and the sequence instead, and before that the sequence elsewhere.
    """
    before, separator, rest = head.partition(CHANGE)
    value, end, _ = rest.partition(b'"')
    if separator and value and end:
        return before + separator + value
    _, separator, rest = head.partition(b',"sequence":')
    return head if separator and b',"labels":' in rest and b',"at":' in head else None


class Beat(Struct, frozen=True):
    """A heartbeat: all that differs between two writes of a host's record with the same `change`."""

    sequence: int
    at: float
    change: str
    host: str

    def message(self) -> str:
        """Return it as a message of the bell."""
        return f"beat:{self.sequence}:{self.at!r}:{self.change}:{self.host}"


def beat(text: str) -> Beat | None:
    """Return a heartbeat from its message of the bell, without `beat:`; None when it is none."""
    parts = text.split(":", 3)
    try:
        return Beat(int(parts[0]), float(parts[1]), *parts[2:])
    except (ValueError, TypeError, IndexError):
        return None


def override(fields: Mapping[bytes | str, bytes | str]) -> Override:
    """Return an override from the fields of its hash."""
    numbers = {k: int(v) for k, v in words(fields).items() if v.isdecimal() and len(v) <= LONGEST_NUMBER}
    pinned = numbers.get("pinned")
    return Override(pinned=None if pinned is None else bool(pinned), min=numbers.get("min"), max=numbers.get("max"))


def override_fields(override: Override) -> dict[str, int]:
    """Return the settings of an override as the fields of a hash."""
    return {k: int(v) for k, v in msgspec.structs.asdict(override).items() if v is not None}


def key(digest: str, fields: Mapping[bytes, bytes]) -> ApiKey | None:
    """Return a key from the fields of its hash; None when they are invalid."""
    try:
        values = {text(f): msgspec.json.decode(v) for f, v in fields.items()}
        return msgspec.convert({**values, "digest": digest}, ApiKey)
    except UNREADABLE:
        return None


def key_fields(key: ApiKey) -> dict[str, bytes]:
    """Return a key as the fields of a hash, which is named by the key's digest."""
    fields: dict[str, Any] = msgspec.to_builtins(key)
    return {f: msgspec.json.encode(v) for f, v in fields.items() if f != "digest"}


def words(fields: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    """Return the fields of a hash as text."""
    return {text(k): text(v) for k, v in fields.items()}


def names(members: Iterable[bytes | str]) -> list[str]:
    """Return the names in an index, sorted, without those that are not UTF-8: cortex did not write them."""
    texts = []
    for member in members:
        try:
            texts.append(member.decode() if isinstance(member, bytes) else member)
        except UnicodeDecodeError:
            continue
    return sorted(filter(None, texts))


def text(value: bytes | str) -> str:
    """Return a value from Redis as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
