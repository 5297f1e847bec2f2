"""Reads the JSON body of a request to the agent.

The framework's own decoding answers 500 for text that is not UTF-8 and for JSON that is nested deeply.
"""

from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException

T = TypeVar("T")


async def read(request: Request[Any, Any, Any], kind: type[T]) -> T:
    """Read and decode a body. Raises HTTPException: 413 for a body that is too large, otherwise as `decode`."""
    return decode(await request.body(), kind)


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a body. Raises HTTPException: 400 if it is not JSON, 422 naming the field if it is of another type."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise HTTPException(f"the body is invalid: {error}", status_code=422) from None
    except RecursionError:
        raise HTTPException("the body is nested too deeply", status_code=400) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(f"the body is not valid JSON: {error}", status_code=400) from None
