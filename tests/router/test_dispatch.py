"""Which application serves a path, and what an error before or within an answer does."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from cortex.platform.api_keys import LOCAL
from cortex.platform.serving.client_connection import EXTENSION
from cortex.router import dispatch
from cortex.router.access.audit import AuditLog
from cortex.router.access.cross_origin import CrossOrigin
from cortex.router.dispatch import Dispatcher
from cortex.router.errors import NoKey, QueueFull
from cortex.router.http_answer import Client
from cortex.router.rejections import Rejections
from cortex.router.request.incoming import ClientLeft, Incoming
from tests.support.incoming import ReadingClient, with_client


class Guard:
    """Lets everyone in, or refuses everyone."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def authorize(self, scope: Any, needs: str) -> Any:
        if self.error is not None:
            raise self.error
        return LOCAL


class Counts:
    """The errors that were counted."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def count_rejection(self, kind: str) -> None:
        self.kinds.append(kind)


class Served:
    """An application with one inference path, and what it sent."""

    def __init__(
        self,
        error: BaseException | None = None,
        *,
        late: BaseException | None = None,
        guard: Any = None,
        origins: tuple[str, ...] = (),
        root_path: str = "",
    ) -> None:
        self.sent: list[Any] = []
        self.ids: list[str] = []
        self.counts, self.error, self.late = Counts(), error, late
        rejections = Rejections(cast(Any, self.counts))
        self.app = Dispatcher(
            {"/v1/messages": self._handler},
            cast(Any, self._rest),
            cast(Any, guard or Guard()),
            rejections,
            CrossOrigin(origins),
            AuditLog(cast(Any, None)),
            root_path,
        )

    async def _handler(self, request: Incoming) -> Any:
        self.ids.append(request.id)
        if self.error is not None:
            raise self.error
        return self._answer

    async def _answer(self, client: Client) -> None:
        client.start(200, [])
        if self.late is not None:
            raise self.late
        client.write(b"inference")
        await client.end()

    async def _rest(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "rest"})

    async def call(self, path: str, method: str = "POST", headers: Sequence[tuple[bytes, bytes]] = ()) -> list[Any]:
        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {
            "type": "http",
            "path": path,
            "query_string": b"",
            "method": method,
            "headers": [(b"host", b"h"), *headers],
        }
        await with_client(self.app)(scope, None, send)
        return self.sent


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/", "//v1//messages"])
async def test_a_path_of_the_table_is_served_with_or_without_extra_slashes(path: str) -> None:
    assert (await Served().call(path))[-1]["body"] == b"inference"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/messages/x", "/v1/message", "", "/v1/messages%2F"])
async def test_any_other_path_is_the_frameworks(path: str) -> None:
    assert await Served().call(path) == [{"type": "rest"}]


async def test_another_method_gets_an_error_in_the_paths_dialect_before_any_key_is_read() -> None:
    served = Served(guard=Guard(NoKey("no key")))

    head, body = await served.call("/v1/messages", "GET")

    assert head["status"] == 405
    assert (b"allow", b"OPTIONS, POST") in head["headers"]
    assert b"/v1/messages does not support GET" in body["body"]
    assert b'"type":"error"' in body["body"]
    assert served.counts.kinds == ["wrong_method"]


async def test_options_names_the_methods() -> None:
    head, _ = await Served().call("/v1/messages", "OPTIONS")

    assert (head["status"], head["headers"]) == (204, [(b"allow", b"OPTIONS, POST")])


async def test_a_caller_without_a_key_is_refused_before_its_request_is_read() -> None:
    served = Served(ValueError("read"), guard=Guard(NoKey("no key")))

    head, _ = await served.call("/v1/messages")

    assert (head["status"], served.counts.kinds) == (401, ["no_key"])


async def test_a_request_is_not_begun_while_its_client_leaves_earlier_answers_unread() -> None:
    served, reads = Served(), asyncio.Event()

    class FullClient(ReadingClient):
        async def drain(self) -> None:
            await reads.wait()

    client = FullClient()
    client.is_full = True
    scope = {
        "type": "http",
        "path": "/v1/messages",
        "query_string": b"",
        "method": "POST",
        "headers": [],
        "extensions": {EXTENSION: client},
    }
    task = asyncio.create_task(served.app(scope, cast(Any, None), cast(Any, None)))
    await asyncio.sleep(0)
    begun = list(served.ids)
    reads.set()
    await task

    assert begun == []
    assert client.body == b"inference"


async def test_an_error_within_a_request_has_the_requests_id() -> None:
    served = Served(QueueFull("full"))

    head, _ = await served.call("/v1/messages")

    assert head["status"] == 429
    assert (b"x-request-id", served.ids[0].encode()) in head["headers"]


async def test_an_unexpected_error_is_a_500_without_its_text() -> None:
    served = Served(ValueError("a secret"))

    head, body = await served.call("/v1/messages")

    assert (head["status"], served.counts.kinds) == (500, ["internal"])
    assert b"secret" not in body["body"]


async def test_an_unexpected_error_within_an_answer_reaches_the_server_which_closes_the_connection() -> None:
    served = Served(late=ValueError("late"))

    with pytest.raises(ValueError, match="late"):
        await served.call("/v1/messages")

    assert served.counts.kinds == []


async def test_a_client_that_left_gets_nothing() -> None:
    served = Served(ClientLeft())

    assert await served.call("/v1/messages") == []
    assert served.counts.kinds == []


@pytest.mark.parametrize("path", ["/cortex/v1/messages", "/v1/messages", "/cortex//v1/messages"])
async def test_a_path_is_served_whether_the_proxy_removes_the_root_path_or_not(path: str) -> None:
    assert (await Served(root_path="/cortex").call(path))[-1]["body"] == b"inference"


@pytest.mark.parametrize("path", ["/cortexv1/messages", "/other/v1/messages", "/cortex/cortex/v1/messages"])
async def test_a_path_that_only_resembles_the_root_path_is_left_as_it_is(path: str) -> None:
    assert await Served(root_path="/cortex").call(path) == [{"type": "rest"}]


ORIGIN = (b"origin", b"https://app.example")
PREFLIGHT = [ORIGIN, (b"access-control-request-method", b"POST")]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/models", "/v2/rerank"])
async def test_a_preflight_of_a_listed_origin_is_answered_before_any_key_is_read(path: str) -> None:
    served = Served(origins=("https://app.example",), guard=Guard(NoKey("no key")))

    head, body = await served.call(path, "OPTIONS", PREFLIGHT)

    assert (head["status"], body["body"]) == (204, b"")
    assert (b"access-control-allow-headers", b"authorization, *") in head["headers"]


async def test_an_answer_and_an_error_say_which_origin_may_read_them() -> None:
    allowed = (b"access-control-allow-origin", ORIGIN[1])
    answer = Served(origins=("https://app.example",))
    error = Served(origins=("https://app.example",), guard=Guard(NoKey("no key")))

    assert allowed in (await answer.call("/v1/messages", headers=[ORIGIN]))[0]["headers"]
    assert allowed in (await error.call("/v1/messages", headers=[ORIGIN]))[0]["headers"]


async def test_without_listed_origins_a_preflight_is_a_request_like_any_other() -> None:
    head, _ = await Served().call("/v1/messages", "OPTIONS", PREFLIGHT)

    assert head["headers"] == [(b"allow", b"OPTIONS, POST")]


async def test_a_request_that_the_stop_of_the_router_cancels_gets_an_error_to_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "stopping", lambda: True)
    cancelled, late = Served(asyncio.CancelledError()), Served(late=asyncio.CancelledError())

    head, body = await cancelled.call("/v1/messages")
    with pytest.raises(asyncio.CancelledError):
        await late.call("/v1/messages")

    assert head["status"] == 529
    assert (b"retry-after", b"1") in head["headers"]
    assert b'"type":"error"' in body["body"]
    assert b"this router stops" in body["body"]


async def test_another_cancellation_of_a_request_is_none_of_the_dispatchers() -> None:
    with pytest.raises(asyncio.CancelledError):
        await Served(asyncio.CancelledError()).call("/v1/messages")
