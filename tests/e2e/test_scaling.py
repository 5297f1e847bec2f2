"""A function over its target concurrency gets another instance, which is reaped later."""

import contextlib

import pytest

from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = [
    pytest.mark.long,
    pytest.mark.parametrize("stack", [TWO], indirect=True),
]


def test_a_busy_function_scales_up_and_down(stack: Stack) -> None:
    body = {"model": "fake/grows", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    with contextlib.ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(stack.http.stream("POST", "/v1/chat/completions", json=body))
        first = stack.instance("fake/grows")["id"]
        eventually(lambda: len(ready(stack)) == 2, what="a second instance")
        late = streams.enter_context(stack.http.stream("POST", "/v1/chat/completions", json=body))
        chosen = late.headers["x-cortex-instance"]

    eventually(lambda: stack.state("fake/grows") == "cold", what="both to be let go")

    assert chosen != first
    assert stack.spawned("fake/grows") == 2


def ready(stack: Stack) -> list[str]:
    return [i["id"] for i in stack.function("fake/grows")["instances"] if i["state"] == "ready"]
