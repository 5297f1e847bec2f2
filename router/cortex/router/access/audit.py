"""Records what operators do: every request to a route that needs an admin key, in one place.

Rejected callers are not recorded: a client without rights could otherwise push out the entries of others. The log has
them (`access_denied`). A read that is repeated within `SAME_S` is one entry. A task of its own writes entries at once,
so that no operator waits for it, and tries again while Redis is away.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import structlog
from litestar.types import ASGIApp, Receive, Send
from msgspec import Struct

from cortex.platform.api_keys import Principal, Right
from cortex.platform.audit import AuditRecord
from cortex.platform.audit_trail import AuditTrail
from cortex.platform.budget import Budget
from cortex.platform.registry import RecordUnavailable
from cortex.router.access.auth import NEEDS, SAFE, read_credentials

log = structlog.get_logger()

MOST_BUFFERED = 1000
SAME_S = 60.0
RETRY_S = 1.0
LONGEST_BODY = 4096
"""Bytes of a body that are read for an entry's target; a longer one has none."""
LONGEST_TEXT = 200

ACTIONS: dict[str, tuple[str, str]] = {
    "POST /admin/functions/{name}": ("function", "name"),
    "POST /admin/hosts/{host}/{verb}": ("host {verb}", "host"),
    "POST /admin/keys": ("key new", "name"),
    "POST /admin/keys/{name}": ("key change", "name"),
    "POST /admin/keys/{name}/rotate": ("key rotate", "name"),
    "POST /admin/keys/{name}/revoke": ("key revoke", "name"),
    "POST /admin/requests/{id}/cancel": ("request cancel", "id"),
    "POST /admin/batches/{id}/cancel": ("batch cancel", "id"),
    "POST /admin/weights/remove": ("weights remove", "names"),
    "POST /admin/weights/fetch": ("weights fetch", "function"),
    "POST /admin/contexts/remove": ("conversations remove", "ids"),
    "POST /admin/usage/forget": ("usage forget", "key"),
    "POST /admin/jobs/{job}/cancel": ("download cancel", "job"),
    "GET /admin/instances/{instance}/logs": ("log read", "instance"),
    "GET /admin/logs": ("log read", "function"),
    "GET /status/log": ("log read", "function"),
    "GET /admin/hosts/{host}/events": ("events read", "host"),
    "GET /admin/audit": ("audit read", "by"),
}
"""By method and path: the action, and the part of the path, query or body that names its target."""
DETAILS = (
    "now", "min", "max", "host", "instance", "run", "follow", "key", "scope", "functions", "rpm", "tpm", "concurrent",
    "priority", "group", "budget", "new_name", "expires_s", "overlap_s", "unused", "dry_run", "since",
    "function", "all",
)  # fmt: skip
"""The parameters that an entry records. The search text of a log is not among them."""
NOTHING: tuple[object, ...] = (None, "", 0, False, [])
"""Values that are not worth an entry."""


class Action(Struct, frozen=True):
    """What a request does, to what, and how."""

    what: str
    target: str = ""
    detail: dict[str, str] = {}


def action_of(route: str, path: Mapping[str, Any], query: Mapping[str, str], body: bytes) -> Action:
    """Return the action of a request, by its route's method and path. An action without a row is named by these."""
    what, target = ACTIONS.get(route, (route, ""))
    fields = _fields(body)
    values: dict[str, Any] = {**fields, **query, **path}
    if what == "key change":
        values["new_name"] = fields.get("name")
    name = _text(values.get(target, ""))
    if what == "function":  # ids hold slashes, so the verb is the last segment
        name, _, verb = name.lstrip("/").rpartition("/")
        what = f"function {verb}"
    elif "{verb}" in what:
        what = what.format(verb=_text(values.get("verb", "")))
    if "budget" in fields:
        values["budget"] = _budget(fields["budget"], says_none=what == "key change")
    detail = {k: _text(values[k]) for k in DETAILS if k != target and values.get(k) not in NOTHING}
    return Action(what[:LONGEST_TEXT], name, detail)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any]) if body else {}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}


def _budget(value: object, *, says_none: bool) -> str:
    """Return a budget as operators write it. That a new key has none is not worth saying."""
    try:
        budget = msgspec.convert(value, Budget)
    except msgspec.ValidationError:
        return _text(value)
    return str(budget) if budget or says_none else ""


def _text(value: object) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value))[:LONGEST_TEXT]


class AuditLog:
    """Collects the entries of one router worker, and writes them."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._buffer: deque[AuditRecord] = deque()
        self._wake = asyncio.Event()
        self._reads: dict[tuple[object, ...], float] = {}

    async def serve(self, app: ASGIApp, scope: Any, receive: Receive, send: Send) -> None:
        """Serve a request by `app`, and add an entry when its answer begins, or when it ends without one."""
        at, body, status = time.time(), bytearray(), 0

        def note() -> None:
            if entry := _entry(scope, bytes(body), at, status):
                self.add(entry)

        async def receive_body() -> Any:
            message = await receive()
            if message["type"] == "http.request" and len(body) <= LONGEST_BODY:
                body.extend(message.get("body", b""))
            return message

        async def send_answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                note()
            await send(message)

        try:
            await app(scope, receive_body, send_answer)
        finally:
            if not status:
                note()

    def add(self, entry: AuditRecord) -> None:
        """Add an entry, unless it repeats a read."""
        if entry.what.endswith(" read") and self._is_repeated(entry):
            return
        log.info("audit", **msgspec.to_builtins(entry))
        if len(self._buffer) >= MOST_BUFFERED:
            log.error("audit_entry_lost", why="Redis is away, and the buffer is full", id=entry.id)
            return
        self._buffer.append(entry)
        self._wake.set()

    def _is_repeated(self, entry: AuditRecord) -> bool:
        now = time.monotonic()
        read = (entry.by, entry.address, entry.what, entry.target, entry.status)
        if now - self._reads.get(read, -SAME_S) < SAME_S:
            return True
        if len(self._reads) >= MOST_BUFFERED:
            self._reads = {r: at for r, at in self._reads.items() if now - at < SAME_S}
        if len(self._reads) < MOST_BUFFERED:
            self._reads[read] = now
        return False

    async def run(self) -> None:
        """Write entries as they arrive."""
        while True:
            await self._wake.wait()
            if not await self.write():
                await asyncio.sleep(RETRY_S)

    async def write(self) -> bool:
        """Write the buffered entries; return whether the record took them. Otherwise they stay buffered."""
        self._wake.clear()
        entries = list(self._buffer)
        try:
            if entries:
                await self._trail.append(entries)
        except RecordUnavailable:
            self._wake.set()
            return False
        for _ in entries:
            self._buffer.popleft()
        return True


def _entry(scope: Any, body: bytes, at: float, status: int) -> AuditRecord | None:
    """Return the entry of a request; None if it needs no admin key, was rejected, or requests a plan only."""
    handler, principal = scope.get("route_handler"), scope.get("state", {}).get("principal")
    if handler is None or not isinstance(principal, Principal) or handler.opt.get(NEEDS, Right.ADMIN) != Right.ADMIN:
        return None
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
    if query.get("plan", "0").lower() not in ("0", "false", "no", "off", "") and scope["method"] not in SAFE:
        return None
    credentials = read_credentials(scope["headers"], tls=scope.get("scheme") == "https")
    action = action_of(_route(handler, scope["method"]), scope.get("path_params", {}), query, body[:LONGEST_BODY])
    return AuditRecord(
        id=secrets.token_hex(8),
        at=at,
        by=principal.id,
        name=principal.name if principal.name != principal.id else "",
        session=bool(credentials.session),
        address=(scope.get("client") or ("",))[0],
        what=action.what,
        target=action.target,
        detail=action.detail,
        status=status,
        took_s=round(time.time() - at, 3),
    )


def _route(handler: Any, method: str) -> str:
    path: str = min(handler.paths)
    return f"{method} {path.replace(':path', '').replace(':str', '')}"
