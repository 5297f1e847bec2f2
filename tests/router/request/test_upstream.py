"""The router's way to workers: whose refusal a 401 is, what is proved before a request goes, what is not believed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.platform.fleet import Fleet
from cortex.platform.keys import FleetToken, host_token, worker_key
from cortex.platform.registry import SUBSCRIBED, RecordUnavailable, Registry
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.fleet_view import FleetView
from cortex.router.request.upstream import Broken, NotReached, Stranger, Upstream
from tests.support.factories import HOST, an_instance
from tests.support.servers import answering_raw, serving
from tests.support.stack import free_port
from tests.support.until import until

TOKEN = "t" * 32
KEY = worker_key(host_token(TOKEN, HOST), "one")


class Worker:
    """A worker that notes what it gets; its list of models and its answers to requests can be chosen."""

    def __init__(self, models: str = '{"data": [{"id": "f"}]}', status: int = 200, key: str = "") -> None:
        self.models, self.status, self.key = models, status, key
        self.headers: dict[str, str] = {}
        self.lines: list[str] = []
        self.requests: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.lines.append(f"{request.method} {request.path}")
        self.requests.append(request)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401, text="who are you")
        if request.method == "GET":
            return web.Response(text=self.models)
        return web.Response(status=self.status, text="an answer", headers=self.headers)


@pytest.fixture
def token(tmp_path: Path) -> FleetToken:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return FleetToken(path)


@asynccontextmanager
async def upstream(token: FleetToken, unsure: Callable[[str], bool] = lambda _: False) -> AsyncIterator[Upstream]:
    workers = Upstream(lambda i: token.worker_keys([i.host], i.id), unsure)
    try:
        yield workers
    finally:
        await workers.close()


async def ask(upstream: Upstream, url: str, host: str = HOST) -> tuple[int, bytes]:
    answer = await upstream.post(an_instance(function="f", url=url, host=host), "/v1/chat/completions", b"{}")
    try:
        return answer.status, await answer.whole()
    finally:
        answer.close()


async def test_a_request_for_a_worker_that_is_known_goes_alone(token: FleetToken) -> None:
    worker = Worker(key=KEY)
    async with serving(worker.answer) as url, upstream(token) as up:
        answer = await ask(up, url)

    assert answer == (200, b"an answer")
    assert worker.lines == ["POST /v1/chat/completions"]
    assert worker.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [401, 403])
async def test_what_a_worker_refuses_although_it_accepts_the_key_is_its_answer(token: FleetToken, status: int) -> None:
    worker = Worker(status=status)
    async with serving(worker.answer) as url, upstream(token) as up:
        answer = await ask(up, url)

    assert answer == (status, b"an answer")
    assert worker.lines == ["POST /v1/chat/completions", "GET /v1/models"]


@pytest.mark.parametrize(
    "worker",
    [Worker(key="another's"), Worker(status=403, models='{"data": [{"id": "g"}]}'), Worker(status=403, models="?")],
    ids=["another-key", "another-model", "no-list"],
)
async def test_who_refuses_the_key_or_has_another_model_is_a_stranger(token: FleetToken, worker: Worker) -> None:
    async with serving(worker.answer) as url, upstream(token) as up:
        with pytest.raises(Stranger):
            await ask(up, url)


async def test_a_worker_with_the_key_of_an_earlier_token_is_no_stranger(token: FleetToken, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("n" * 32 + "\n" + TOKEN)
    worker = Worker(key=KEY)
    async with serving(worker.answer) as url, upstream(FleetToken(tmp_path / "token")) as up:
        first, second = await ask(up, url), await ask(up, url)

    assert first == second == (200, b"an answer")
    assert worker.lines[-1] == "POST /v1/chat/completions"
    assert worker.lines.count("POST /v1/chat/completions") == 3  # refused, then twice with the key it has


async def test_a_workers_key_is_derived_once_and_not_for_each_request(
    token: FleetToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived: list[tuple[list[str], str]] = []
    worker_keys = token.worker_keys

    def derive(hosts: list[str], instance: str) -> list[str]:
        derived.append((hosts, instance))
        return worker_keys(hosts, instance)

    monkeypatch.setattr(token, "worker_keys", derive)
    worker = Worker(key=KEY)
    async with serving(worker.answer) as url, upstream(token) as up:
        answers = [await ask(up, url) for _ in range(3)]

    assert answers == [(200, b"an answer")] * 3
    assert derived == [([HOST], "one")]


async def test_an_instance_that_another_host_lists_gets_no_key_of_its_own_host(token: FleetToken) -> None:
    worker, forged = Worker(key=KEY), Worker()
    async with serving(worker.answer) as url, serving(forged.answer) as elsewhere, upstream(token) as up:
        await ask(up, url)
        await ask(up, elsewhere, host="host-b")
        again = await ask(up, url)

    assert again == (200, b"an answer")
    assert KEY not in forged.requests[0].headers["Authorization"]
    assert worker.lines == ["POST /v1/chat/completions"] * 2  # the forged one did not replace the key it has


async def test_a_worker_that_may_have_been_replaced_is_proved_before_each_request(token: FleetToken) -> None:
    worker = Worker()
    async with serving(worker.answer) as url, upstream(token, lambda _: True) as up:
        answers = [await ask(up, url), await ask(up, url)]

    assert answers == [(200, b"an answer")] * 2
    assert worker.lines == ["GET /v1/models", "POST /v1/chat/completions"] * 2


async def test_a_worker_that_cannot_be_reached_for_its_proof_has_not_got_the_request(token: FleetToken) -> None:
    async with upstream(token, lambda _: True) as up:
        with pytest.raises(NotReached):
            await ask(up, f"http://127.0.0.1:{free_port()}")


async def test_another_model_at_the_address_of_a_worker_never_gets_the_request(token: FleetToken) -> None:
    worker = Worker(models='{"data": [{"id": "g"}]}')
    async with serving(worker.answer) as url, upstream(token, lambda _: True) as up:
        with pytest.raises(Stranger):
            await ask(up, url)

    assert worker.lines == ["GET /v1/models"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_goes_nowhere(token: FleetToken, status: int) -> None:
    elsewhere, worker = Worker(), Worker(status=status)
    async with serving(elsewhere.answer) as away, serving(worker.answer) as url, upstream(token) as up:
        worker.headers = {"Location": away}
        answer = await ask(up, url)

    assert (answer[0], elsewhere.lines) == (status, [])


async def test_a_cookie_of_a_worker_is_not_sent_again(token: FleetToken) -> None:
    worker = Worker()
    worker.headers = {"Set-Cookie": "who=you; Path=/"}
    async with serving(worker.answer) as url, upstream(token) as up:
        named = url.replace("127.0.0.1", "localhost")
        await ask(up, named)
        await ask(up, named)

    assert "Cookie" not in worker.requests[-1].headers


HEADS = [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/9 2\r\n", b"\0\xff", b""]
LINES = [
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n", b"\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"Content-Encoding: \xff\r\n", b"X: \0\r\n",
    b"Retry-After: \xd9\xa1\r\n", b"X: " + b"x" * 9000 + b"\r\n", b"X: y\r\n" * 500, b"no colon\r\n",
]  # fmt: skip
BODIES = [b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffff\r\n", b"\x1f\x8b\x08\0", b"\xff" * 100]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HEADS), st.lists(st.sampled_from(LINES), max_size=4), st.sampled_from(BODIES))
async def test_whatever_bytes_a_worker_answers_are_an_answer_or_one_of_two_errors(
    token: FleetToken, head: bytes, lines: list[bytes], body: bytes
) -> None:
    async with answering_raw(head + b"".join(lines) + b"\r\n" + body) as url, upstream(token) as up:
        try:
            status, _ = await ask(up, url)
        except (Broken, BadAnswer) as error:
            assert len(str(error)) < 300
            return

    assert 100 <= status < 1000


class Record:
    """A record that can be away."""

    away = False

    async def fleet(self, now: float) -> Fleet:
        if self.away:
            raise RecordUnavailable("no answer")
        return Fleet(at=now)

    async def bell(self) -> AsyncIterator[str]:
        if self.away:
            raise RecordUnavailable("no answer")
        yield SUBSCRIBED


async def test_a_view_is_unsure_of_instances_before_its_first_reading_and_while_the_record_is_away() -> None:
    record = Record()
    view = FleetView(cast(Registry, record), "router-1")
    before = view.unsure("one")
    following = asyncio.create_task(view.follow())

    try:
        await until(lambda: not view.away)
        fresh = view.unsure("one")
        record.away = True
        await until(lambda: view.away)
        after = view.unsure("one")
    finally:
        following.cancel()

    assert (before, fresh, after) == (True, False, True)
