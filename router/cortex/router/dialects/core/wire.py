"""Reading the JSON of a client: what is wrong is said once, here, with the name of the field.

Top levels are decoded straight into structs. Lists whose elements may be of kinds we do not know yet (messages,
content blocks, tools, input items) stay plain objects until someone has looked at their `type`, and are then
given their shape one by one, so that an unknown kind is never an error and a known one names its place.
"""

import codecs
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec

from cortex.router.dialects.core.errors import BadRequest

T = TypeVar("T")
P = ParamSpec("P")


class UnknownField(BadRequest):
    """A field that a shape does not have, where the shape says that it takes no other."""


_PIECE = 1024 * 1024
"""Bytes that are copied, checked or decoded at a time: other threads run in between."""
_LEVELS = 8
"""How deep large JSON is taken apart: messages, their contents, the parts in them, what these hold."""
_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
_encode = msgspec.json.Encoder().encode


def parser(read: Callable[P, T]) -> Callable[P, T]:
    """Turn what Python itself gives up on (depth, size) into a request that was bad."""

    @functools.wraps(read)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except RecursionError:
            raise BadRequest("the body is nested too deeply") from None
        except OverflowError:
            raise BadRequest("the body holds a number that is out of range") from None

    return bounded


def read(body: bytes, shape: type[T]) -> T:
    """Decode a whole request body."""
    try:
        if not body.isascii():
            _check_utf8(body)  # msgspec skips over unknown fields without looking into them
        if len(body) < _PIECE:
            return msgspec.json.decode(body, type=shape)
        return msgspec.convert(decode_parts(body), shape)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8 at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise _named(error, "") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None


def decode_parts(raw: bytes | msgspec.Raw, levels: int = _LEVELS) -> Any:
    """Decode JSON, what is large of it element by element, so that no single call takes long."""
    view = memoryview(raw)
    if len(view) < _PIECE or not levels:
        return msgspec.json.decode(raw)
    match bytes(view[:1]):
        case b"[":
            return [decode_parts(one, levels - 1) for one in msgspec.json.decode(raw, type=list[msgspec.Raw])]
        case b"{":
            fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
            return {name: decode_parts(one, levels - 1) for name, one in fields.items()}
    return msgspec.json.decode(raw)


def encode_parts(values: Sequence[Any]) -> bytes:
    """Encode a list, element by element."""
    return b"".join((b"[", b",".join([_encode(value) for value in values]), b"]"))


def holds(raw: bytes | msgspec.Raw, mark: bytes) -> bool:
    """Whether JSON holds some bytes, looked for a piece at a time."""
    view = memoryview(raw)
    if len(view) <= _PIECE:
        return mark in bytes(view)
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


def shaped(value: object, shape: type[T], at: str) -> T:
    """Give a known shape to one object of a request."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise _named(error, at) from None


def kind_of(value: dict[str, Any], at: str, default: str = "") -> str:
    """The `type` of an object that may be of any kind."""
    kind = value.get("type", default)
    if not isinstance(kind, str):
        raise BadRequest("expected a string", f"{at}.type")
    return kind


def text_of(value: object) -> str:
    """JSON as compact text."""
    return _encode(value).decode()


def write(fields: dict[str, msgspec.Raw], model: str) -> bytes:
    """A request from the fields that were read, for a worker's name of the model. A field that the client gave twice
    is in it once, with the value that was read."""
    whole: dict[str, Any] = {**fields, "model": model}
    views = {name: memoryview(value) for name, value in fields.items()}
    if max(map(len, views.values())) < _PIECE:
        return _encode(whole)
    views["model"] = memoryview(_encode(model))
    pieces: list[bytes] = []
    for name, view in views.items():
        pieces += (b"," if pieces else b"{", _encode(name), b":")
        pieces += (bytes(view[at : at + _PIECE]) for at in range(0, len(view), _PIECE))
    return b"".join((*pieces, b"}"))


def _named(error: msgspec.ValidationError, at: str) -> BadRequest:
    said = str(error)
    if found := _AT.search(said):
        path, said = found[1], said[: found.start()]
        at = f"{at}.{path}" if at and not path.startswith("[") else at + path
    if said.startswith("Object contains unknown field"):
        return UnknownField(said[:1].lower() + said[1:], at or None)
    if found := _MISSING.match(said):
        return BadRequest("field required", f"{at}.{found[1]}" if at else found[1])
    return BadRequest(said[:1].lower() + said[1:], at or None)
