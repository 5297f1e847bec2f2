"""The lines of a batch: checking input, deciding about answers, and writing results. Pure.

An input line is `{"custom_id", "method", "url", "body"}`, the form of OpenAI's API; requests of Anthropic's message
batches are stored in the same form. A result is one line of JSON in the form of the batch's API.
"""

import codecs
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from cortex.router.batches.batch import ENDPOINTS, Batch, Form, Problem
from cortex.router.dialects.core.lenient import repair_surrogates

LONGEST_ID = 512
"""Characters of a `custom_id`, and of a model's name."""
MOST_MODELS = 100
"""Models of one file: the choice of the next line takes time in proportion to them."""
MOST_PROBLEMS = 100
"""Maximum number of problems that are reported for one file."""
TRIES = 3
"""How often a line is sent if its worker fails or times out."""
LONGEST_PAUSE_S = 3600.0
KEY_GONE = "key_gone"
"""The problem of a batch whose key may no longer make requests."""


class _Input(Struct, frozen=True):
    custom_id: str
    method: str
    url: str
    body: Raw


class _Peek(Struct, frozen=True):
    model: str | None = None
    stream: bool | None = None


class Line(Struct, frozen=True):
    """A valid line and its place in the file: offset and size in bytes. `number` counts from 1, as an editor does."""

    number: int
    custom_id: str
    url: str
    model: str
    at: int
    size: int


class Answer(Struct, frozen=True, kw_only=True):
    """A router's answer to a line."""

    status: int
    body: bytes
    request_id: str = ""
    retry_after_s: float | None = None
    may_retry: bool = True
    """Whether the router's answer allows a retry."""
    from_worker: bool = False
    """Whether a worker answered: its text may quote the prompt."""


class Again(Struct, frozen=True):
    """A line failed for a temporary reason. With `counts` it is sent `TRIES` times in all, otherwise until the batch
    expires."""

    pause_s: float
    counts: bool
    why: str


class KeyGone(Exception):
    """The key of a batch is revoked, has expired, or may no longer make requests."""


def check(
    raw_lines: Iterable[tuple[int, bytes]], endpoint: str, most: int, longest: int
) -> tuple[list[Line], list[Problem]]:
    """Return the valid lines of a file and its problems. `raw_lines` are its lines with their offsets, `most` is the
    maximum number of lines, `longest` the maximum size of one in bytes."""
    lines: list[Line] = []
    problems: list[Problem] = []
    ids: set[str] = set()
    models: set[str] = set()
    count = 0
    for number, (at, raw) in enumerate(raw_lines, 1):
        if not raw.strip():
            continue
        count += 1
        if count > most:
            problems.append(
                Problem(
                    code="too_many_lines",
                    message=f"a file may have {most} lines ([gateway] batch_max_lines)",
                    line=number,
                )
            )
            break
        line: Line | Problem
        if len(raw) > longest:
            text = f"the line has more than {longest} bytes ([gateway] max_body_mb)"
            line = Problem(code="line_too_long", message=text, line=number)
        else:
            line = read(raw, number, at, endpoint)
        if isinstance(line, Line) and line.custom_id in ids:
            text = f"an earlier line has the same custom_id {line.custom_id[:100]!r}"
            line = Problem(code="duplicate_custom_id", message=text, line=number, param="custom_id")
        if isinstance(line, Line) and line.model not in models and len(models) >= MOST_MODELS:
            text = f"the lines of a file may name {MOST_MODELS} models, and this line names another one"
            line = Problem(code="too_many_models", message=text, line=number, param="body.model")
        if isinstance(line, Problem):
            problems.append(line)
            if len(problems) >= MOST_PROBLEMS:
                break
            continue
        ids.add(line.custom_id)
        models.add(line.model)
        lines.append(line)
    if not count:
        problems.append(Problem(code="empty_file", message="the file has no lines"))
    return lines, problems


def read(raw: bytes, number: int, at: int, endpoint: str) -> Line | Problem:
    """Return a line, or its problem."""

    def problem(code: str, message: str, param: str | None = None) -> Problem:
        return Problem(code=code, message=message, line=number, param=param)

    try:
        entry = _entry(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return problem("invalid_json_line", f"the line is not a request: {error}")
    if not entry.custom_id or len(entry.custom_id) > LONGEST_ID:
        return problem("invalid_custom_id", f"custom_id must have 1 to {LONGEST_ID} characters", "custom_id")
    if entry.method != "POST":
        return problem("invalid_method", f"method is {entry.method[:20]!r}; it must be POST", "method")
    if entry.url not in ENDPOINTS:
        return problem("invalid_url", f"url is {entry.url[:100]!r}; it must be one of {', '.join(ENDPOINTS)}", "url")
    if entry.url != endpoint:
        return problem("mismatched_url", f"url is {entry.url}; the batch's endpoint is {endpoint}", "url")
    try:
        body = msgspec.json.decode(entry.body, type=_Peek)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return problem("invalid_body", f"body is not a request: {error}", "body")
    model = body.model or ""
    if len(model) > LONGEST_ID:
        return problem("invalid_model", f"model has more than {LONGEST_ID} characters", "body.model")
    if body.stream:
        return problem("stream_in_batch", "answers in batches cannot be streamed: leave `stream` out", "body.stream")
    return Line(number, entry.custom_id, entry.url, sys.intern(model), at, len(raw))


def body_of(raw: bytes) -> bytes:
    """Return the body of a line that was checked before. Raises DecodeError if the file has changed since."""
    return bytes(_entry(raw).body)


def _entry(raw: bytes) -> _Input:
    """Decode a line. A byte order mark, with which editors of Windows begin a file, is removed; half a surrogate pair
    is replaced, as in a direct request."""
    return msgspec.json.decode(repair_surrogates(raw.removeprefix(codecs.BOM_UTF8)), type=_Input)


def verdict(answer: Answer, tries: int) -> Again | None:
    """Return how a line is sent again after its answer number `tries`; None: the answer is its result.

    (1) 401: the pass is no longer valid, and the next try has a new one; if the answer forbids a retry, raises KeyGone.
    (2) 429: a rate limit, a budget or a full queue; it is sent again when that allows.
    (3) 503, or 529 in Anthropic's dialect: there is no room, or the batch gives way; it is sent again, unless the
        answer forbids a retry, as for a function that cannot start.
    (4) 500, 502 and 504: a worker failed or timed out; it is sent `TRIES` times in all.
    (5) Everything else is the result.
    """
    pause_s = min(LONGEST_PAUSE_S, max(1.0, answer.retry_after_s or 0.0))
    match answer.status:
        case 401 if not answer.may_retry:  # (1)
            raise KeyGone
        case 401 | 429:  # (1), (2)
            return Again(pause_s, counts=False, why=_reason(answer))
        case 503 | 529 if answer.may_retry:  # (3)
            return Again(pause_s, counts=False, why=_reason(answer))
        case 500 | 502 | 504 if tries < TRIES and answer.may_retry:  # (4)
            return Again(pause_s, counts=True, why=f"the last answer had status {answer.status}")
    return None  # (5)


class _Error(Struct, frozen=True):
    message: str = ""


class _Envelope(Struct, frozen=True):
    error: _Error = _Error()


def _reason(answer: Answer) -> str:
    """Return why a line waits, without a worker's text."""
    if answer.from_worker:
        return f"its worker answered with status {answer.status}"
    try:
        return msgspec.json.decode(answer.body, type=_Envelope).error.message[:300]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"the last answer had status {answer.status}"


# Results.


def result(batch: Batch, line: Line, answer: Answer) -> tuple[bool, bytes]:
    """Return whether a line succeeded, and its result as a line."""
    body = _json(answer.body)
    succeeded = answer.status == 200 and body is not None
    if batch.form is Form.ANTHROPIC:
        if succeeded:
            return True, _message_result(line, {"type": "succeeded", "message": body})
        error = _anthropic_error(answer.status) if body is None else body
        return False, _message_result(line, {"type": "errored", "error": error})
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
    problem = None if body is not None else {"code": "not_json", "message": "the answer is not JSON"}
    return succeeded, _openai_result(batch, line, response, problem)


def ending(batch: Batch, line: Line, code: str, message: str) -> bytes:
    """Return the result of a line that was not sent, because the batch is `cancelled`, `expired` or `failed`."""
    if batch.form is Form.ANTHROPIC:
        kinds: dict[str, dict[str, Any]] = {"cancelled": {"type": "canceled"}, "expired": {"type": "expired"}}
        is_refused = any(problem.code == KEY_GONE for problem in batch.problems)
        kind = "authentication_error" if is_refused else "api_error"
        error = {"type": "error", "error": {"type": kind, "message": message}}
        return _message_result(line, kinds.get(code) or {"type": "errored", "error": error})
    return _openai_result(batch, line, None, {"code": f"batch_{code}", "message": message})


class ResultHead(Struct, frozen=True):
    """The fields that the batch worker reads from a result in the folder."""

    custom_id: str
    result: dict[str, Any] = {}
    error: dict[str, Any] | None = None


def _openai_result(batch: Batch, line: Line, response: object, error: object) -> bytes:
    id = f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}"
    fields = {"id": id, "custom_id": line.custom_id, "response": response, "error": error}
    return msgspec.json.encode(fields) + b"\n"


def _message_result(line: Line, result: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"custom_id": line.custom_id, "result": result}) + b"\n"


def _anthropic_error(status: int) -> dict[str, Any]:
    message = f"the answer has status {status} and is not JSON"
    return {"type": "error", "error": {"type": "api_error", "message": message}}


def on_one_line(json: bytes | Raw) -> Raw:
    """Return JSON as one line. Strings in JSON have no line breaks, so those that it has are spaces."""
    return Raw(bytes(json).replace(b"\n", b" ").replace(b"\r", b" ").strip())


def _json(body: bytes) -> Raw | None:
    """Return a body's JSON as one line; None if it is not JSON."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return on_one_line(body)
