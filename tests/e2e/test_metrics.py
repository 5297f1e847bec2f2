"""The metrics port of a running cortex, with one and with two worker processes."""

import re
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def reader(stack: Stack) -> Callable[[str], float]:
    """Return what reads a series off the port, by a pattern; 0 when it is not there."""
    url = eventually(lambda: re.findall(r'"url": "([^"]+/metrics)"', stack.log("router")), what="the metrics port")[-1]

    def read(series: str) -> float:
        text = httpx.get(url, trust_env=False).text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(series, line))

    return read


def test_requests_of_all_workers_are_counted_once(stack: Stack) -> None:
    read = reader(stack)
    requests = r'cortex_requests_total\{model="fake/counted",node="here"\}'

    for _ in range(8):  # a new connection each: with two workers both get some
        with httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as http:
            http.post(
                "/v1/chat/completions", json={"model": "fake/counted", "messages": [{"role": "user", "content": "hi"}]}
            )

    eventually(lambda: read(requests) >= 8, what="all requests to be counted")
    assert read(requests) == 8
    assert read(r"cortex_completion_tokens_total\{model=\"fake/counted\"") == 8 * 3
    assert read(r"cortex_record_up 1") == 1
    assert read(r"cortex_router_processes") == read(r"cortex_routers")
    assert read(r'cortex_cold_starts_total\{model="fake/counted",node="here"\}') >= 1
    assert read(r'cortex_device_memory_mb\{device="[^"]+",kind="total",node="here"\}') > 0
    assert read(r'cortex_requests_in_flight\{model="fake/counted"') == 0


def test_a_stream_is_measured(stack: Stack) -> None:
    read = reader(stack)
    first = r'cortex_time_to_first_token_seconds_count\{model="fake/streams",node="here"\}'
    before = read(first)

    with stack.http.stream(
        "POST",
        "/v1/messages",
        json={
            "model": "fake/streams",
            "max_tokens": 20,
            "stream": True,
            "messages": [{"role": "user", "content": "hi"}],
        },
    ) as answer:
        answer.read()

    eventually(lambda: read(first) == before + 1, what="the stream to be counted")
    assert read(r'cortex_inter_token_seconds_count\{model="fake/streams"') > 10
    assert read(r'cortex_tokens_per_second_count\{model="fake/streams"') >= 1
    assert read(r'cortex_responses_total\{dialect="messages",model="fake/streams",status="200"\}') >= 1


def test_requests_rejected_before_a_function_are_counted_by_reason(stack: Stack) -> None:
    read = reader(stack)
    unknown = r'cortex_requests_refused_total\{reason="unknown_model"\}'
    before = read(unknown)

    assert stack.chat("who/knows").status_code == 404

    eventually(lambda: read(unknown) == before + 1, what="the refusal to be counted")
