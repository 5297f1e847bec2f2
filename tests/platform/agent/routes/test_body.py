"""Bodies that are not what a route of the agent expects: a 4xx that says why, never a 500."""

from typing import Any

import pytest
from litestar import Litestar, Request, post
from litestar.exceptions import HTTPException
from litestar.testing import TestClient
from msgspec import Struct

from cortex.platform.agent.api import error_response
from cortex.platform.agent.routes.body import read


class Sized(Struct):
    """What the route expects."""

    size: int
    words: tuple[Any, ...] = ()


@post("/", status_code=200)
async def route(request: Request[Any, Any, Any]) -> dict[str, int]:
    return {"size": (await read(request, Sized)).size}


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "not valid JSON"),
        (b"size=1", 400, "not valid JSON"),
        (b'{"size": 1', 400, "not valid JSON"),
        (b'{"size": 1, "words": ["\xff"]}', 400, "not valid JSON"),
        (b'{"size": 1, "words": ["\\ud800"]}', 400, "not valid JSON"),
        (b'{"size": 1, "words": [' + b"[" * 100_000, 400, "nested too deeply"),
        (b'{"size": 1, "words": [' + b"1" * 5000 + b"]}", 422, "out of range"),
        (b'{"size": "large"}', 422, "`$.size`"),
        (b"{}", 422, "`size`"),
        (b"[]", 422, "got `array`"),
        (b" " * 11_000_000, 413, "Too Large"),
    ],
)
def test_a_body_that_is_not_what_a_route_expects_is_a_4xx_with_the_reason(body: bytes, status: int, why: str) -> None:
    with TestClient(
        Litestar([route], exception_handlers={Exception: error_response, HTTPException: error_response})
    ) as client:
        good = client.post("/", content=b'{"size": 3}', headers={"content-type": "text/plain"})
        bad = client.post("/", content=body)

    assert (good.status_code, good.json()) == (200, {"size": 3})
    assert (bad.status_code, bad.json()["status_code"]) == (status, status)
    assert why in bad.json()["detail"]
