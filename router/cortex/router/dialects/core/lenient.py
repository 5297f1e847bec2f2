"""JSON from clients and workers that strict parsers refuse, made strict. Pure.

Programs in Python write NaN and infinities as bare words; text that was cut inside a character ends in half a surrogate
pair, or in bytes that are not UTF-8; typed clients write null for a field that they leave out. Requests are repaired
before they are parsed, answers when their parser refuses them, so a well-formed message costs a search or two.
"""

import json
import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_BOM = b"\xef\xbb\xbf"
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATES = re.compile(rb"(?<!\\)((?:\\\\)*)(?:(" + _HIGH + _LOW + rb")|" + _HIGH + rb"|" + _LOW + rb")")
"""A surrogate pair, or half of one, after an even number of backslashes."""
_SURROGATE = re.compile(rb"\\u[dD]")
_PIECE = 1024 * 1024
_PAIR = 12
"""Bytes of an escaped surrogate pair."""
_NULL_MEMBER = re.compile(
    rb'null(?:(?<=[^\\]":null)|(?<=[^\\]": null)|(?<=[\t\r\n]null)|(?<=  null)|(?<= :null)|(?<= : null))'
)
"""What may be a member that is null: a quote inside a string has a backslash before it."""
_DATA = frozenset({"parameters", "input_schema", "schema", "guided_json", "arguments", "metadata", "json"})
"""Fields whose objects are the client's data: a null in a schema or an argument is a value."""
_SCHEMA_WORDS = frozenset({"properties", "items", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs"})
_LEVELS = 12
"""Levels of a request that are searched separately; the envelope of a dialect is not deeper."""
_encode = msgspec.json.Encoder().encode
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(data: bytes, decoder: "msgspec.json.Decoder[T]") -> tuple[T, bytes]:
    """Decode a worker's JSON; also return it as strict JSON.

    Raises what the decoder raises for data that is no JSON to a lenient parser either, or has another shape.
    """
    if b"\\" in data or not data.isascii():
        data = repair_text(data)
    try:
        return decoder.decode(data), data
    except _ERRORS:
        strict = _repair_values(data)
        if strict is None:
            raise
        return decoder.decode(strict), strict


def repair_text(data: bytes) -> bytes:
    """Return JSON with U+FFFD for each half of a surrogate pair, and for bytes that are not UTF-8."""
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            data = data.decode("utf-8", "replace").encode()
    return repair_surrogates(data)


def repair_surrogates(data: bytes) -> bytes:
    """Return JSON with U+FFFD for each escaped half of a surrogate pair."""
    if b"\\" not in data or not _contains(_SURROGATE, data):
        return data
    if len(data) <= _PIECE:
        return _SURROGATES.sub(_replace_half, data)
    pieces, at = [], 0
    while at < len(data):
        end = _end_of_piece(data, at + _PIECE)
        pieces.append(_SURROGATES.sub(_replace_half, data[at:end]))
        at = end
    return b"".join(pieces)


def _contains(short: re.Pattern[bytes], data: bytes | memoryview) -> bool:
    """Whether a pattern of a few bytes matches anywhere, searched piece by piece: other threads run in between."""
    if len(data) <= _PIECE:
        return short.search(data) is not None
    return any(short.search(data, at, at + _PIECE + _PAIR) for at in range(0, len(data), _PIECE))


def _replace_half(match: re.Match[bytes]) -> bytes:
    return match[0] if match[2] else match[1] + b"\\ufffd"


def _end_of_piece(data: bytes, end: int) -> int:
    """Return the first index from `end` on that is not inside an escape."""
    while end < len(data) and (last := data.rfind(b"\\", end - _PAIR, end)) >= 0:
        end = last + _PAIR + 1
    return min(end, len(data))


def _repair_values(data: bytes) -> bytes | None:
    """Return JSON with null for NaN, infinities and numbers out of range; None if it is no JSON."""
    try:
        return _encode(json.loads(data))
    except (ValueError, RecursionError, OverflowError):
        return None


def repair_request(body: bytes) -> bytes:
    """Return a request's JSON without a byte order mark, halves of surrogate pairs and null members."""
    body = body.removeprefix(_BOM)
    if len(body) <= _PIECE and b"\\" not in body and b"null" not in body:
        return body  # as most are
    return without_nulls(repair_surrogates(body))


def without_nulls(body: bytes) -> bytes:
    """Return a request without the members of objects that are null, at every depth.

    `content` of a message stays, which may be null, and so do schemas and arguments. A body that is no JSON is returned
    as it is.
    """
    try:
        return bytes(_strip(msgspec.Raw(body), "", _LEVELS)) if has_nulls(body) else body
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        return body  # the dialect's parser names what is wrong


def has_nulls(body: bytes | memoryview) -> bool:
    """Whether JSON may have a member that is null."""
    return _contains(_NULL_MEMBER, body)


def _strip(raw: msgspec.Raw, name: str, levels: int) -> msgspec.Raw:
    """Return a value without null members; `name` is that of its own member."""
    view = memoryview(raw)
    opening = bytes(view[:64]).lstrip()[:1]
    if opening not in (b"{", b"[") or not has_nulls(view):
        return raw
    if not levels:
        return msgspec.Raw(_encode(_strip_value(msgspec.json.decode(raw), name)))
    if opening == b"[":
        elements = msgspec.json.decode(raw, type=list[msgspec.Raw])
        return msgspec.Raw(_encode([_strip(element, "", levels - 1) for element in elements]))
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    if _is_data(name, fields):
        return raw
    return msgspec.Raw(
        _encode(
            {
                key: _strip(value, key, levels - 1)
                for key, value in fields.items()
                if key == "content" or bytes(memoryview(value)[:5]).strip() != b"null"
            }
        )
    )


def _strip_value(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_strip_value(element, "") for element in value]
    if not isinstance(value, dict) or _is_data(name, value):
        return value
    return {k: _strip_value(v, k) for k, v in value.items() if v is not None or k == "content"}


def _is_data(name: str, fields: dict[str, Any]) -> bool:
    """Whether an object is the client's data: `input` of a call, `json_schema` and Ollama's `format` where they are the
    schema itself."""
    if name == "format":
        return not _SCHEMA_WORDS.isdisjoint(fields)
    return name in _DATA or name == "input" or (name == "json_schema" and "schema" not in fields)
