"""What becomes an entry of the audit record, and how entries are written while Redis is away."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast
from unittest.mock import Mock

import pytest
from litestar import get, post

from cortex.platform.api_keys import LOCAL
from cortex.platform.audit import AuditRecord
from cortex.platform.registry import RecordUnavailable
from cortex.router.access import audit
from cortex.router.access.audit import ACTIONS, AuditLog, action_of
from cortex.router.status import routes as status
from tests.support.admin_page import handlers, path


class Trail:
    """Takes entries, unless it is away."""

    def __init__(self) -> None:
        self.entries: list[AuditRecord] = []
        self.away = False
        self.written = asyncio.Event()

    async def append(self, entries: Iterable[AuditRecord]) -> None:
        """Add entries."""
        if self.away:
            raise RecordUnavailable("away")
        self.entries.extend(entries)
        self.written.set()


@post("/admin/functions/{name:path}", opt={"needs": "admin"})
async def act(name: str) -> None: ...


@get("/admin/logs", opt={"needs": "admin"})
async def logs() -> None: ...


@get("/admin/hosts", opt={"needs": "status"})
async def hosts() -> None: ...


def scope(handler: Any = act, query: str = "", **state: Any) -> dict[str, Any]:
    (method,) = handler.http_methods
    return {
        "route_handler": handler,
        "method": method,
        "path_params": {"name": "/one/open/warm"} if handler is act else {},
        "query_string": query.encode(),
        "headers": [(b"cookie", b"cortex_session=abc")],
        "client": ("10.0.0.9", 1234),
        "state": {"principal": LOCAL, **state},
    }


async def serve(log: AuditLog, request: dict[str, Any], answer: int | None = 200, body: bytes = b"") -> None:
    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        if answer is not None:
            await send({"type": "http.response.start", "status": answer, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Any) -> None: ...

    await log.serve(cast(Any, app), request, cast(Any, receive), send)


async def entries_of(*requests: dict[str, Any], answer: int | None = 200) -> list[AuditRecord]:
    trail = Trail()
    log = AuditLog(cast(Any, trail))
    for request in requests:
        await serve(log, request, answer)
    await log.write()
    return trail.entries


def test_every_route_that_needs_an_admin_key_has_an_action() -> None:
    none = cast(Any, None)
    all_handlers = [*handlers(), *status.routes(none, Mock(), none, none, none)]

    assert {path(h) for h in all_handlers if h.opt.get("needs", "admin") == "admin"} == ACTIONS.keys()


@pytest.mark.parametrize(
    ("route", "values", "query", "body", "what", "target", "detail"),
    [
        ("POST /admin/functions/{name}", {"name": "/one/open/cool"}, {"now": "1"}, b"", "function cool", "one/open",
         {"now": "1"}),
        ("POST /admin/functions/{name}", {"name": "/f/set"}, {"min": "0"}, b"", "function set", "f", {"min": "0"}),
        ("POST /admin/hosts/{host}/{verb}", {"host": "a", "verb": "drain"}, {}, b"", "host drain", "a",
         {}),
        ("POST /admin/keys", {}, {}, b'{"name": "ci", "scope": "admin", "rpm": 0, "functions": ["a", "b"]}', "key new",
         "ci", {"scope": "admin", "functions": "a, b"}),
        ("POST /admin/keys", {}, {}, b"[" * 5000, "key new", "", {}),
        ("POST /admin/keys", {}, {}, b'{"name": "ci", "budget": {"usd": 0.0, "tokens": 0}}', "key new", "ci", {}),
        ("POST /admin/keys/{name}", {"name": "ci"}, {}, b'{"name": "cd", "budget": {"usd": 20}}', "key change", "ci",
         {"new_name": "cd", "budget": "20usd/month"}),
        ("POST /admin/keys/{name}", {"name": "ci"}, {}, b'{"budget": {"usd": 0.0, "tokens": 0}}', "key change", "ci",
         {"budget": "none"}),
        ("POST /admin/weights/remove", {}, {}, b'{"names": ["a", "b"], "host": "h"}', "weights remove", "a, b",
         {"host": "h"}),
        ("GET /admin/logs", {}, {"function": "f", "grep": "a prompt", "run": "previous"}, b"", "log read", "f",
         {"run": "previous"}),
        ("POST /admin/later", {}, {"secret": "x"}, b"", "POST /admin/later", "", {}),
    ],
)  # fmt: skip
def test_an_action_has_a_target_and_only_listed_parameters(
    route: str, values: dict[str, str], query: dict[str, str], body: bytes, what: str, target: str, detail: object
) -> None:
    action = action_of(route, values, query, body)

    assert (action.what, action.target, action.detail) == (what, target, detail)


async def test_an_entry_has_who_from_where_and_the_outcome() -> None:
    (entry,) = await entries_of(scope(), answer=503)

    assert (entry.by, entry.session, entry.address, entry.status) == ("local", True, "10.0.0.9", 503)
    assert not entry.succeeded


async def test_a_request_that_ends_without_an_answer_is_an_entry() -> None:
    (entry,) = await entries_of(scope(), answer=None)

    assert (entry.what, entry.status) == ("function warm", 0)


@pytest.mark.parametrize(
    "request_", [scope(query="plan=1"), scope(hosts), scope(principal=None), scope() | {"route_handler": None}]
)
async def test_plans_reads_of_status_and_rejected_callers_are_no_entries(request_: dict[str, Any]) -> None:
    assert await entries_of(request_) == []


async def test_a_repeated_read_is_one_entry_and_a_repeated_change_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    read = scope(logs, "function=f")

    assert len(await entries_of(read, read, scope(logs, "function=other"))) == 2
    assert len(await entries_of(scope(), scope())) == 2
    monkeypatch.setattr(audit, "SAME_S", 0.0)
    assert len(await entries_of(read, read)) == 2


async def test_memory_of_reads_and_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_BUFFERED", 10)

    entries = await entries_of(*(scope(logs, f"function={n}") for n in range(50)))

    assert len(entries) == 10


async def test_entries_are_written_when_redis_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "RETRY_S", 0.01)
    trail = Trail()
    trail.away = True
    log = AuditLog(cast(Any, trail))
    await serve(log, scope())
    assert await log.write() is False

    trail.away = False
    writer = asyncio.create_task(log.run())
    await asyncio.wait_for(trail.written.wait(), 5)
    writer.cancel()

    assert [e.what for e in trail.entries] == ["function warm"]


async def test_a_long_body_is_passed_on_whole_and_not_read() -> None:
    body = b'{"names": ["' + b"x" * 100_000 + b'"]}'
    bodies = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Any) -> None: ...

    trail = Trail()
    log = AuditLog(cast(Any, trail))
    await log.serve(cast(Any, app), scope(), cast(Any, receive), send)
    await log.write()

    assert bodies == [body]
    assert trail.entries[0].detail == {}
