"""Limits of a key, over both router workers, on the wire of each dialect."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis

from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")
HELLO = [{"role": "user", "content": "Hello!"}]


def test_requests_per_minute_are_limited_over_all_workers_with_retry_after(keyed: Keyed) -> None:
    key = keyed.make("three", rpm=3)
    keyed.everywhere("inference", 200)

    eventually(lambda: keyed.ask(key).status_code != 401, what="the key to be known")
    answers = [keyed.ask(key) for _ in range(12)]

    served = [a for a in answers if a.status_code == 200]
    over = [a for a in answers if a.status_code == 429]
    assert len(served) in (2, 3)  # the first was taken above; a bucket fills while we ask
    assert len(served) + len(over) == 12
    assert int(over[0].headers["retry-after"]) <= 20
    assert over[0].headers["x-ratelimit-limit-requests"] == "3"
    assert over[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert served[0].headers["x-ratelimit-remaining-requests"] in ("1", "2")


def test_rate_limits_in_messages_have_anthropics_headers_and_error(keyed: Keyed) -> None:
    key = keyed.make("one-message", rpm=1)
    with keyed.client() as http:

        def ask() -> httpx.Response:
            body = {"model": "one/open", "max_tokens": 4, "messages": HELLO}
            return http.post("/v1/messages", json=body, headers={"x-api-key": key})

        eventually(lambda: ask().status_code == 429, what="the key to be known on both workers, and used up")
        second = ask()

    assert second.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert second.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert (second.status_code, second.json()["error"]["type"]) == (429, "rate_limit_error")


def test_concurrent_requests_are_limited_until_a_stream_has_ended(keyed: Keyed) -> None:
    key = keyed.make("two-at-a-time", concurrent=2)
    keyed.everywhere(key, 200)

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: keyed.ask(key, "one/slow", stream=True).status_code, range(8)))

    assert sorted(statuses) == [200, 200, 429, 429, 429, 429, 429, 429]
    assert keyed.ask(key).status_code == 200


def test_a_client_that_disconnects_returns_its_ticket(keyed: Keyed) -> None:
    key = keyed.make("leaver", concurrent=1)
    keyed.everywhere(key, 200)
    body = {"model": "one/slow", "messages": HELLO, "stream": True}

    with keyed.client(key) as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        pieces = stream.iter_bytes()  # kept: the stream is closed with it
        next(pieces)
        busy = keyed.ask(key).status_code

    assert (stream.status_code, busy) == (200, 429)
    eventually(lambda: keyed.ask(key).status_code == 200, within_s=2, what="its place to be free")


def test_tokens_of_a_stream_are_settled_at_its_end(keyed: Keyed) -> None:
    key = keyed.make("frugal", tpm=1_000_000)
    keyed.everywhere(key, 200)
    keyed.ask(key, stream=True)

    left = int(keyed.ask(key, messages=[{"role": "user", "content": "x" * 400_000}]).headers[
        "x-ratelimit-remaining-tokens"
    ])  # fmt: skip

    after = eventually(
        lambda: n if (n := int(keyed.ask(key).headers["x-ratelimit-remaining-tokens"])) != left else None,
        what="the long prompt to be settled",
    )
    assert 880_000 < left < 901_000
    assert after != left


def test_counting_tokens_counts_as_a_request(keyed: Keyed) -> None:
    key = keyed.make("counter", rpm=2)
    body = {"model": "one/open", "messages": [{"role": "user", "content": "x" * 4000}]}
    with keyed.client(key) as http:
        eventually(lambda: http.post("/v1/messages/count_tokens", json=body).status_code == 429, what="its limit")
        over = http.post("/v1/messages/count_tokens", json=body)
    with keyed.client("inference") as http:
        counted = http.post("/v1/messages/count_tokens", json=body, headers={"x-request-id": "counts"})
    with keyed.client("status") as http:
        listed = [
            http.get(f"/admin/requests/{name}").json()["requests"][0]
            for name in ("counts", over.headers["x-request-id"])
        ]

    assert (over.status_code, over.json()["error"]["type"]) == (429, "rate_limit_error")
    assert counted.status_code == 200
    assert [(one["status"], one["who"]) for one in listed] == [(200, "inference"), (429, "counter")]
    assert (listed[0]["dialect"], listed[0]["function"]) == ("count_tokens", "one/open")


def test_the_body_of_a_key_over_its_limits_is_not_read(keyed: Keyed) -> None:
    key = keyed.make("not-read", rpm=1)
    eventually(lambda: keyed.ask(key).status_code == 429, what="its limit")

    with keyed.client(key) as http:
        answer = http.post("/v1/chat/completions", content=b"this is no request at all")

    assert answer.status_code == 429


def test_a_client_that_disconnects_early_pays_for_its_prompt(keyed: Keyed) -> None:
    key = keyed.make("early", tpm=100_000)
    keyed.everywhere(key, 200)
    prompt = [{"role": "user", "content": "x" * 200_000}]
    body = {"model": "one/late", "messages": prompt, "stream": True}

    def phases() -> list[str]:
        with keyed.client("status") as http:
            answer = http.get("/admin/requests", params={"function": "one/late"}).json()["requests"]
        return [one["phase"] for one in answer]

    with keyed.client(key) as http, http.stream("POST", "/v1/chat/completions", json=body):
        eventually(lambda: phases() == ["forwarded"], what="the worker to have it")
    eventually(lambda: not phases(), what="the request to be over")

    left = int(keyed.ask(key).headers["x-ratelimit-remaining-tokens"])
    assert left < 75_000


def test_a_key_without_limits_makes_no_redis_call(keyed: Keyed) -> None:
    keyed.everywhere("inference", 200)
    with redis.Redis.from_url(keyed.redis_url) as client:
        commands: list[str] = []
        with client.monitor() as monitor:
            for _ in range(20):
                keyed.ask("inference")
            client.echo("the end")
            while "the end" not in (command := monitor.next_command()["command"]):
                commands.append(command)

    assert not [c for c in commands if "cortex:quota:" in c or "cortex:tickets:" in c]
