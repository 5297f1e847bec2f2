"""Decode a client's JSON; errors name the field.

The top level is decoded into structs. Elements that may have an unknown type (messages, content blocks, tools, input
items) stay plain objects until their `type` is checked and are then converted one by one, so that an unknown type is
not an error and an invalid element is named by its path.
"""

import codecs
import functools
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, ParamSpec, TypeVar

import msgspec

from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.large_object import LARGE, Body, LargeObject
from cortex.router.dialects.core.long_strings import Outline

T = TypeVar("T")
P = ParamSpec("P")


class UnknownField(BadRequest):
    """A field that a struct with `forbid_unknown_fields` does not declare."""


_PIECE = 1024 * 1024
"""Bytes to search or check in one call; other threads run in between."""
_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
_NO_NUMBER = re.compile(rb"[:,\[]\s*(NaN|-?Infinity)\b")
_FIELD = re.compile(rb'"([A-Za-z0-9_.-]{1,100})"\s*:\s*\[?[^"\]]*\Z')
_LONGEST_FIELD = 256
_ERRORS = (RecursionError, UnicodeDecodeError, msgspec.DecodeError)
_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parser(read: Callable[P, T]) -> Callable[P, T]:
    """Decorate a parser: RecursionError and OverflowError become BadRequest."""

    @functools.wraps(read)
    def bound(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except RecursionError:
            raise BadRequest("the body is nested too deeply") from None
        except OverflowError:
            raise BadRequest("the body holds a number that is out of range") from None

    return bound


_decoders: dict[type, "msgspec.json.Decoder[Any]"] = {}


def _names(shape: type) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(shape))


def _decode(body: bytes, shape: type[T]) -> T:
    """Decode JSON. A decoder that exists costs less than one that msgspec makes for each call."""
    decoder = _decoders.get(shape)
    if decoder is None:
        decoder = _decoders[shape] = msgspec.json.Decoder(shape)
    decoded: T = decoder.decode(body)
    return decoded


def peek(body: bytes, shape: type[T]) -> T:
    """Decode the fields of a request body that a struct has, before the rest is read. Raises BadRequest."""
    try:
        if len(body) < LARGE:
            return _decode(body, shape)
        outline, fields = _outline(body, check=False)
        return msgspec.convert({name: outline.decode(fields[name]) for name in _names(shape) if name in fields}, shape)
    except _ERRORS as error:
        raise _rejection(error, body) from None


def read(body: bytes, shape: type[T]) -> T:
    """Decode a whole request body. Raises BadRequest."""
    if len(body) >= LARGE:
        return read_fields(body, shape)[0]
    try:
        if not body.isascii():
            _check_utf8(body)  # msgspec skips unknown fields without validating them
        return _decode(body, shape)
    except _ERRORS as error:
        raise _rejection(error, body) from None


def read_fields(body: bytes, shape: type[T], *, partly: str = "") -> tuple[T, dict[str, msgspec.Raw]]:
    """Decode a whole request body, and return its fields as they were sent too. A long string in the field `partly` is
    a `Beginning`, if the body is large. Raises BadRequest."""
    if len(body) < LARGE:
        return read(body, shape), _fields(body)
    try:
        outline, fields = _outline(body)
        if not outline.text.isascii():
            _check_utf8(body)
        values = {name: outline.decode(value, whole=name != partly) for name, value in fields.items()}
        params = msgspec.convert(values, shape)
    except _ERRORS as error:
        raise _rejection(error, body) from None
    return params, {name: outline.restore(value) for name, value in fields.items()}


def _outline(body: bytes, *, check: bool = True) -> tuple[Outline, dict[str, msgspec.Raw]]:
    """Return a large body without its long strings, and its fields; `check`: the strings are valid. Raises
    DecodeError."""
    outline = Outline(body)
    try:
        if check:
            outline.check()
        return outline, outline.fields()
    except msgspec.DecodeError:
        _fields(body)  # the error has the byte
        raise


def _rejection(error: Exception, body: bytes) -> BadRequest:
    """Return what is wrong with a body that could not be decoded."""
    match error:
        case RecursionError():
            return BadRequest("the body is nested too deeply")
        case UnicodeDecodeError():
            return BadRequest(f"the body is not valid UTF-8 at byte {error.start}")
        case msgspec.ValidationError():
            return _with_path(error, "")
    if number := _NO_NUMBER.search(body):
        text = f"{number[1].decode()} is no number in JSON: leave the field out, or send null"
        return BadRequest(text, _field_of(body, number))
    return BadRequest(f"the body is not valid JSON: {error}")


def _field_of(body: bytes, number: re.Match[bytes]) -> str | None:
    """Return the name of the field whose value is not a number."""
    field = _FIELD.search(body[max(0, number.start() - _LONGEST_FIELD) : number.start(1)])
    return field[1].decode("utf-8", "replace") if field else None


def decode_parts(raw: bytes | msgspec.Raw) -> Any:
    """Decode JSON, large values element by element, so that no single call takes long."""
    if len(memoryview(raw)) < LARGE:
        return msgspec.json.decode(raw)
    outline = Outline(memoryview(raw))
    return outline.decode(outline.text)


def encode_parts(values: Sequence[Any]) -> bytes:
    """Encode a list, element by element. Other threads run in between."""
    whole, opening = BytesIO(), b"["
    for value in values:
        whole.write(opening)
        whole.write(_encode(value))
        opening = b","
    whole.write(b"]" if values else b"[]")
    return whole.getvalue()


def contains(raw: bytes | msgspec.Raw, mark: bytes) -> bool:
    """Whether JSON contains `mark`, searched piece by piece."""
    view = memoryview(raw)
    if view.nbytes <= _PIECE:
        return mark in view.tobytes()
    step = _PIECE - len(mark)
    return any(mark in bytes(view[at : at + _PIECE]) for at in range(0, len(view), step))


def _check_utf8(body: bytes) -> None:
    if len(body) <= _PIECE:
        body.decode("utf-8")
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(body), _PIECE):
        try:
            decoder.decode(body[at : at + _PIECE], at + _PIECE >= len(body))
        except UnicodeDecodeError as error:
            raise UnicodeDecodeError("utf-8", b"", at + error.start, at + error.end, error.reason) from None


def convert(value: object, shape: type[T], at: str) -> T:
    """Convert one object of a request to a struct. Raises BadRequest."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise _with_path(error, at) from None


def kind_of(value: dict[str, Any], at: str, default: str = "") -> str:
    """Return an object's `type`. Raises BadRequest."""
    kind = value.get("type", default)
    if not isinstance(kind, str):
        raise BadRequest("expected a string", f"{at}.type")
    return kind


def text_of(value: object) -> str:
    """Encode as compact JSON text."""
    return _encode(value).decode()


def write(fields: dict[str, msgspec.Raw], model: str) -> Body:
    """Encode a request from its fields, with the worker's name of the model. A duplicate field is sent once, with the
    value that was parsed."""
    if max([len(memoryview(value)) for value in fields.values()]) < LARGE:
        return _encode({**fields, "model": model})
    return LargeObject({**{name: (memoryview(value),) for name, value in fields.items()}, "model": (_encode(model),)})


def _with_path(error: msgspec.ValidationError, at: str) -> BadRequest:
    text = str(error)
    if match := _AT.search(text):
        path, text = match[1], text[: match.start()]
        at = f"{at}.{path}" if at and not path.startswith("[") else at + path
    if text.startswith("Object contains unknown field"):
        return UnknownField(text[:1].lower() + text[1:], at or None)
    if match := _MISSING.match(text):
        return BadRequest("field required", f"{at}.{match[1]}" if at else match[1])
    return BadRequest(text[:1].lower() + text[1:], at or None)
