"""The CLI's HTTP client for a router."""

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from cortex.cli.connection import ERRORS, Connection, lines_of
from cortex.cli.exits import FAILED, NOT_FOUND, UNREACHABLE, USAGE, Failed
from cortex.cli.local import key_for, running
from cortex.platform import untrusted
from cortex.platform.api_keys import ApiKey
from cortex.platform.audit import AuditRecord
from cortex.platform.decisions import DecisionRecord
from cortex.router import api_types as api
from cortex.router.batches.batch import Batch, BatchesAnswer
from cortex.router.context_types import ContextsAnswer, RemoveContextsAnswer, RemoveContextsRequest
from cortex.router.plan_types import Plan

T = TypeVar("T")
JSON = {"content-type": "application/json"}

LINE_LENGTH = 400
"""Maximum characters of one line of a worker's log."""
PIECE = 1 << 20
"""Bytes of a file that are read at a time."""
DEFAULT_URL = "http://127.0.0.1:31313"


class Model(Struct, frozen=True):
    """What the CLI reads of an entry of `/v1/models`."""

    id: str
    feasible_on: tuple[str, ...] = ()


class OwnFile(Struct, frozen=True):
    """What the CLI reads of a file of its key."""

    id: str
    bytes: int


class LineCounts(Struct, frozen=True):
    """The lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchProblem(Struct, frozen=True):
    """Why a batch failed."""

    message: str
    line: int | None = None


class BatchProblems(Struct, frozen=True):
    """Why a batch failed, all reasons."""

    data: tuple[BatchProblem, ...] = ()


class OwnBatch(Struct, frozen=True):
    """What the CLI reads of a batch of its key."""

    id: str
    status: str
    request_counts: LineCounts = LineCounts()
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchProblems | None = None
    finish_at: int | None = None
    waits_for: str | None = None


class _Models(Struct, frozen=True):
    data: tuple[Model, ...]


class _RefusalDetail(Struct, frozen=True):
    message: str = ""
    code: str | None = None


class _Refusal(Struct, frozen=True):
    error: _RefusalDetail = _RefusalDetail()


def router_url() -> str:
    """Return the router's URL: `CORTEX_URL`, else a local `cortex up`, else the default port."""
    if url := os.environ.get("CORTEX_URL"):
        return url.rstrip("/")
    result = running()
    return result.url if result else DEFAULT_URL


def api_key(url: str) -> str:
    """Return the key for a router: `CORTEX_API_KEY`, else that of this user's `cortex up`, else empty."""
    return os.environ.get("CORTEX_API_KEY") or key_for(url)


class Router:
    """A router's admin API. Every method raises Failed with a hint."""

    def __init__(self, timeout_s: float = 30) -> None:
        self.url = router_url()
        key = api_key(self.url)
        if not (key.isascii() and key.isprintable()):
            raise Failed("CORTEX_API_KEY is not a key of cortex: it has characters that no key has", code=USAGE)
        headers = {**JSON, **({"authorization": f"Bearer {key}"} if key else {})}
        trusted = None
        if self.url.startswith("https:"):  # loading the system's authorities takes a tenth of a second
            from cortex.platform.serving.trust import trust

            trusted = trust(os.environ.get("CORTEX_CA_FILE", ""))
        self._connection = Connection(self.url, headers, trusted)
        self._timeout_s = timeout_s

    # Functions and hosts.

    def functions(self) -> tuple[api.FunctionView, ...]:
        """Return every function."""
        return self._send("GET", "/admin/functions", api.FunctionsAnswer).functions

    def function(self, name: str) -> api.FunctionView:
        """Return one function, by id or alias."""
        return self._send("GET", f"/admin/functions/{_quote(name)}", api.FunctionView)

    def warm(self, name: str) -> str:
        """Start a function; return the instance's id."""
        return self._send("POST", f"/admin/functions/{_quote(name)}/warm", api.WarmAnswer).instance

    def cool(self, name: str, *, now: bool, park: bool = False) -> tuple[str, ...]:
        """Drain a function's instances, which then stop or are parked; return their ids."""
        path = f"/admin/functions/{_quote(name)}/cool{'?now=1' if now else '?park=1' if park else ''}"
        return self._send("POST", path, api.CoolAnswer).instances

    def override(self, name: str, action: str, **values: int) -> api.FunctionSettings:
        """Override settings of a function at run time: pin, unpin, set or reset."""
        return self._send("POST", f"/admin/functions/{_quote(name)}/{action}?{urlencode(values)}", api.FunctionSettings)

    def forget(self, name: str) -> api.ForgetAnswer:
        """Delete a function's measurements."""
        return self._send("POST", f"/admin/functions/{_quote(name)}/forget", api.ForgetAnswer)

    def hosts(self) -> api.HostsAnswer:
        """Return every host."""
        return self._send("GET", "/admin/hosts", api.HostsAnswer)

    def cordon(self, host: str, action: str) -> api.CordonAnswer:
        """Cordon or uncordon a host."""
        return self._send("POST", f"/admin/hosts/{_quote(host)}/{action}", api.CordonAnswer)

    def drain(self, host: str) -> api.DrainAnswer:
        """Drain a host; return when its functions run elsewhere."""
        return self._send("POST", f"/admin/hosts/{_quote(host)}/drain", api.DrainAnswer, timeout_s=3600)

    def plan_warm(self, name: str) -> Plan:
        """Return the plan of a warm."""
        return self._send("POST", f"/admin/functions/{_quote(name)}/warm?plan=1", Plan)

    def plan_drain(self, host: str) -> Plan:
        """Return the plan of a drain."""
        return self._send("POST", f"/admin/hosts/{_quote(host)}/drain?plan=1", Plan)

    def host_events(self, host: str) -> Iterator[str]:
        """Yield the last events of a host's scheduler as JSON lines."""
        return self.lines(f"/admin/hosts/{_quote(host)}/events", {})

    # Requests and decisions.

    def requests(self, function: str = "") -> tuple[api.RequestSummary, ...]:
        """Return the live requests, of one function or of all."""
        return self._send("GET", f"/admin/requests?{urlencode({'function': function})}", api.RequestsAnswer).requests

    def request(self, id: str) -> tuple[api.RequestSummary, ...]:
        """Return the live and recent requests with an id."""
        return self._send("GET", f"/admin/requests/{_quote(id)}", api.RequestsAnswer).requests

    def cancel_request(self, id: str, key: str = "") -> int:
        """Cancel requests; return how many."""
        query = f"?{urlencode({'key': key})}" if key else ""
        return self._send("POST", f"/admin/requests/{_quote(id)}/cancel{query}", api.CancelAnswer).cancelled

    def traffic(self) -> api.TrafficAnswer:
        """Return the traffic of the last hour."""
        return self._send("GET", "/admin/traffic", api.TrafficAnswer)

    def decisions(self, limit: int, **filters: str) -> tuple[DecisionRecord, ...]:
        """Return decisions, newest first."""
        query = urlencode({"limit": limit, **{k: v for k, v in filters.items() if v}})
        return self._send("GET", f"/admin/decisions?{query}", api.DecisionsAnswer).decisions

    def audit(self, limit: int, **filters: str | float) -> tuple[AuditRecord, ...]:
        """Return what operators did, newest first."""
        query = urlencode({"limit": limit, **{k: v for k, v in filters.items() if v}})
        return self._send("GET", f"/admin/audit?{query}", api.AuditAnswer).entries

    def usage(self, by: str, since: float, until: float, key: str) -> api.UsageAnswer:
        """Return what requests used, in groups."""
        query = urlencode({"by": by, "since": since, "until": until, "key": key})
        return self._send("GET", f"/admin/usage?{query}", api.UsageAnswer)

    def forget_usage(self, key: str) -> api.ForgetUsageAnswer:
        """Delete the usage of a key."""
        return self._send("POST", f"/admin/usage/forget?{urlencode({'key': key})}", api.ForgetUsageAnswer)

    # Batches.

    def batches(self, limit: int, after: str = "") -> tuple[Batch, ...]:
        """Return the newest batches of all keys, or the next ones after the batch with the id `after`."""
        return self._send("GET", f"/admin/batches?limit={limit}&after={_quote(after)}", BatchesAnswer).batches

    def batch(self, id: str) -> Batch:
        """Return a batch of any key."""
        return self._send("GET", f"/admin/batches/{_quote(id)}", BatchesAnswer).batches[0]

    def cancel_batch(self, id: str) -> Batch:
        """Cancel a batch of any key."""
        return self._send("POST", f"/admin/batches/{_quote(id)}/cancel", BatchesAnswer).batches[0]

    def upload(self, file: Path) -> OwnFile:
        """Store a file of this key, for a batch."""
        mark, name = secrets.token_hex(16), re.sub(r'["\r\n]', "_", file.name)
        part = f"--{mark}\r\nContent-Disposition: form-data; name="
        head = f'{part}"purpose"\r\n\r\nbatch\r\n{part}"file"; filename="{name}"\r\n\r\n'.encode(errors="replace")
        tail = f"\r\n--{mark}--\r\n".encode()
        with file.open("rb") as content:
            size = len(head) + os.fstat(content.fileno()).st_size + len(tail)
            headers = {"content-type": f"multipart/form-data; boundary={mark}", "content-length": str(size)}
            pieces = itertools.chain([head], iter(lambda: content.read(1 << 20), b""), [tail])
            return self._read(self._exchange("POST", "/v1/files", pieces, timeout_s=600, headers=headers), OwnFile)

    def new_batch(self, file: str, endpoint: str) -> OwnBatch:
        """Create a batch from a file."""
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"}
        return self._send("POST", "/v1/batches", OwnBatch, body)

    def own_batch(self, id: str) -> OwnBatch:
        """Return a batch of this key."""
        return self._send("GET", f"/v1/batches/{_quote(id)}", OwnBatch)

    def download(self, file: str, path: Path) -> None:
        """Write a file of this key to a path."""
        try:
            with self._connection.answer("GET", f"/v1/files/{_quote(file)}/content", None, timeout_s=60) as answer:
                if not _is_success(answer.status):
                    self._raise_error(answer.status, answer.read())
                write_file(path, iter(lambda: answer.read(PIECE), b""))
        except ERRORS as error:
            raise self._unreachable(error) from None

    # Weights and downloads.

    def list_weights(self, host: str) -> api.WeightsAnswer:
        """Return the weights on every host, or on one."""
        return self._send("GET", f"/admin/weights?host={_quote(host)}", api.WeightsAnswer)

    def remove_weights(self, command: api.RemoveRequest) -> api.RemoveAnswer:
        """Remove weights; return the removed and the remaining ones."""
        return self._send("POST", "/admin/weights/remove", api.RemoveAnswer, command, timeout_s=600)

    def contexts(self, function: str, host: str) -> ContextsAnswer:
        """Return the saved conversations of all hosts and functions, or of one."""
        query = urlencode({"function": function, "host": host})
        return self._send("GET", f"/admin/contexts?{query}", ContextsAnswer)

    def remove_contexts(self, command: RemoveContextsRequest) -> RemoveContextsAnswer:
        """Remove saved conversations; return those."""
        return self._send("POST", "/admin/contexts/remove", RemoveContextsAnswer, command, timeout_s=60)

    def prefetch(self, name: str, host: str) -> api.FetchAnswer:
        """Fetch a function's weights; return the host and the job."""
        return self._send("POST", "/admin/weights/fetch", api.FetchAnswer, api.FetchRequest(function=name, host=host))

    def estimate(self, name: str, host: str) -> api.EstimateAnswer:
        """Return the estimated memory of a function."""
        query = urlencode({"function": name, "host": host})
        return self._send("GET", f"/admin/weights/estimate?{query}", api.EstimateAnswer, timeout_s=90)

    def jobs(self, host: str) -> api.JobsAnswer:
        """Return the downloads on every host, or on one."""
        return self._send("GET", f"/admin/jobs?host={_quote(host)}", api.JobsAnswer)

    def cancel_job(self, job: str) -> api.CancelJobAnswer:
        """Cancel a download."""
        return self._send("POST", f"/admin/jobs/{_quote(job)}/cancel", api.CancelJobAnswer)

    # API keys.

    def keys(self, name: str = "") -> api.KeysAnswer:
        """Return every key, or those of a name, and what those with a budget have spent."""
        return self._send("GET", f"/admin/keys{f'/{_quote(name)}' if name else ''}", api.KeysAnswer)

    def new_key(self, request: api.NewKey) -> api.KeySecret:
        """Create a key."""
        return self._send("POST", "/admin/keys", api.KeySecret, request)

    def change_key(self, name: str, change: api.KeyChange) -> tuple[ApiKey, ...]:
        """Change a key."""
        return self._send("POST", f"/admin/keys/{_quote(name)}", api.KeysAnswer, change).keys

    def rotate_key(self, name: str, overlap: api.KeyOverlap) -> api.KeySecret:
        """Replace a key."""
        return self._send("POST", f"/admin/keys/{_quote(name)}/rotate", api.KeySecret, overlap)

    def revoke_key(self, name: str) -> tuple[str, ...]:
        """Delete a key; return the ids that were deleted."""
        return self._send("POST", f"/admin/keys/{_quote(name)}/revoke", api.RevokeAnswer).revoked

    # The rest.

    def health(self) -> api.Health:
        """Return the router's health."""
        return self._send("GET", "/health", api.Health)

    def models(self) -> tuple[Model, ...]:
        """Return every function and alias, with the hosts that can run it."""
        return self._send("GET", "/v1/models", _Models).data

    def chat(self, body: object) -> object:
        """Return the whole answer to a chat request."""
        return self._send("POST", "/v1/chat/completions", object, body, timeout_s=3600)

    def lines(self, path: str, query: Mapping[str, str | int], *, body: object = None) -> Iterator[str]:
        """Yield the lines of an answer as they arrive; with a body the request is a POST."""
        path = f"{path}?{urlencode(query)}" if query else path
        method = "POST" if body is not None else "GET"
        try:
            with self._connection.answer(method, path, _encode(body), timeout_s=30, endless=True) as answer:
                if not _is_success(answer.status):
                    self._raise_error(answer.status, answer.read())
                yield from lines_of(answer)
        except ERRORS as error:
            raise self._unreachable(error) from None

    def last_lines(self, function: api.FunctionView, most: int = 5) -> list[str]:
        """Return the last lines of a failed worker's log; empty without an admin key, or without a log."""
        if not function.failure or not function.failed_instance:
            return []
        path = f"/admin/instances/{_quote(function.failed_instance)}/logs"
        try:
            lines = [untrusted.line(line, LINE_LENGTH) for line in self.lines(path, {"lines": 4 * most})]
        except Failed:
            return []
        return [line for line in lines if line.strip()][-most:]

    def _send(self, method: str, path: str, kind: type[T], body: object = None, *, timeout_s: float | None = None) -> T:
        """Send a request and return its answer."""
        within_s = self._timeout_s if timeout_s is None else timeout_s
        return self._read(self._exchange(method, path, _encode(body), timeout_s=within_s), kind)

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request and return the body of its answer."""
        try:
            with self._connection.answer(method, path, body, timeout_s=timeout_s, headers=headers) as answer:
                content = answer.read()
        except ERRORS as error:
            raise self._unreachable(error) from None
        if not _is_success(answer.status):
            self._raise_error(answer.status, content)
        return content

    def _read(self, content: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError as error:
            reason = f"{self.url} answers in a form that this version of cortex does not know: {error}"
            hint = "Run the same version of cortex here and there: `cortex --version` shows it."
            raise Failed(reason, code=UNREACHABLE, hint=hint) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Failed(f"{self.url} is not a cortex router: its answer is not JSON", code=UNREACHABLE) from None

    def _unreachable(self, error: Exception) -> Failed:
        hint = "Start one with `cortex up`, or set CORTEX_URL to a running one."
        return Failed(f"no router answers at {self.url}: {error}", code=UNREACHABLE, hint=hint)

    def _raise_error(self, status: int, content: bytes) -> NoReturn:
        error = self._read(content, _Refusal).error
        hints = {
            "model_not_found": "`cortex fn ls` lists every function.",
            "host_not_found": "`cortex host ls` lists every host.",
            "key_not_found": "`cortex key ls` lists every key.",
            "request_not_found": "`cortex req ls` lists the live requests.",
            "instance_not_found": "`cortex fn history NAME` shows what happened to it.",
            "batch_not_found": "`cortex batch ls` lists every batch.",
            "job_not_found": "`cortex jobs ls` lists every download.",
        }
        hint = hints.get(error.code or "", "")
        code = NOT_FOUND if hint else FAILED
        if status in (401, 403):
            hint = "These commands send CORTEX_API_KEY; `cortex key new NAME --admin` creates a key."
        raise Failed(error.message or content.decode(errors="replace"), code=code, hint=hint)


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file. Raises Failed if that is not possible, and whatever reading the pieces raises."""
    with _named(path):
        output = path.open("wb", buffering=0)
    with output:
        for piece in pieces:
            with _named(path):
                rest = memoryview(piece)
                while rest:
                    rest = rest[output.write(rest) :]


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "Make room, or name another file with --output."
        raise Failed(f"{path} cannot be written: {error.strerror}", hint=hint) from None


def _quote(name: str) -> str:
    return quote(name, safe="")


def _encode(body: object) -> bytes | None:
    return None if body is None else msgspec.json.encode(body)


def _is_success(status: int) -> bool:
    return status // 100 == 2
