"""Reading the JSON of a client: what is wrong is said once, here, with the name of the field.

Top levels are decoded straight into structs. Lists whose elements may be of kinds we do not know yet (messages,
content blocks, tools, input items) stay plain objects until someone has looked at their `type`, and are then
given their shape one by one, so that an unknown kind is never an error and a known one names its place.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import msgspec

from cortex.router.dialects import splice
from cortex.router.dialects.errors import BadRequest

T = TypeVar("T")
P = ParamSpec("P")

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
            body.decode("utf-8")  # msgspec skips over unknown fields without looking into them
        return msgspec.json.decode(body, type=shape)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8 at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise _named(error, "") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None


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


def renamed(body: bytes, was: str, model: str) -> bytes:
    """A request that was read already, under another model's name."""
    return body if model == was else splice.with_model(body, model)


def _named(error: msgspec.ValidationError, at: str) -> BadRequest:
    said = str(error)
    if found := _AT.search(said):
        path, said = found[1], said[: found.start()]
        at = f"{at}.{path}" if at and not path.startswith("[") else at + path
    if found := _MISSING.match(said):
        return BadRequest("field required", f"{at}.{found[1]}" if at else found[1])
    return BadRequest(said[:1].lower() + said[1:], at or None)
