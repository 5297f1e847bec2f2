"""Map a worker's error, of any engine, to a `Fault`. Pure; no other module parses worker errors.

Formats differ: vLLM puts an integer into `code`, llama-server names its types, llama_cpp.server's framework sends
`detail`, older servers send plain text. The text is cleaned and forwarded for people to read. The status is cortex's
own: a worker's 404 is a fault of cortex's configuration, and its 401 does not concern the client's key.
"""

import re
from http import HTTPStatus
from typing import Any

import msgspec

from cortex.platform import untrusted
from cortex.router.dialects.core.errors import Fault, Kind, max_tokens_too_large, prompt_too_long
from cortex.router.dialects.core.sse import SSEDecoder

_LONGEST_MESSAGE = 4000
_LONGEST_WORD = 200
_LONGEST_WAIT_S = 3600.0
BREAKDOWNS = frozenset({500, 502, 503})
"""Statuses of a worker that has failed and is about to exit."""

# How vLLM's API server reports that its engine died; it exits seconds later. Matched at the start of the message only:
# an error may quote a prompt.
_ENGINE_DIED = re.compile(
    r"(?:EngineCore encountered an issue|EngineDeadError|AsyncEngineDeadError|MQEngineDeadError"
    r"|Background loop (?:has errored already|is not running)|Engine loop is not running|Engine process died)"
)

# Error texts of engines: the prompt alone is too long, or prompt and answer together. Groups name the numbers.
_PROMPT = (
    re.compile(r"prompt \(length (?P<tokens>\d+)\) is longer than the maximum model length of (?P<limit>\d+)"),
    re.compile(
        r"maximum context length is (?P<limit>\d+) tokens\. However, your"
        r" (?:request has|prompt contains at least|messages resulted in) (?P<tokens>\d+)"
    ),
    re.compile(r"request \((?P<tokens>\d+) tokens\) exceeds the available context size \((?P<limit>\d+) tokens\)"),
    re.compile(r"prompt is too long: (?P<tokens>\d+) tokens > (?P<limit>\d+) maximum"),
    re.compile(
        r"input \((?P<tokens>\d+) tokens\) is too large to process\. increase the physical batch size"
        r" \(current batch size: (?P<limit>\d+)\)"
    ),
    re.compile(r"input \((?P<tokens>\d+) tokens\) is larger than the max context size \((?P<limit>\d+) tokens\)"),
    re.compile(r"[Rr]equested tokens \((?P<tokens>\d+)\) exceed context window of (?P<limit>\d+)"),
)
_TOGETHER = (
    re.compile(
        r"too large: (?P<max>\d+)\. This model's maximum context length is (?P<limit>\d+) tokens"
        r" and your request has (?P<tokens>\d+) input tokens"
    ),
    re.compile(
        r"maximum context length is (?P<limit>\d+) tokens\. However, you requested (?P<max>\d+) output tokens"
        r" and your prompt contains at least (?P<tokens>\d+) input tokens"
    ),
    re.compile(
        r"maximum context length is (?P<limit>\d+) tokens\. However, you requested \d+ tokens"
        r" \((?P<tokens>\d+) in the messages, (?P<max>\d+) in the completion\)"
    ),
    re.compile(
        r"passed (?P<tokens>\d+) input tokens and requested (?P<max>\d+) output tokens\."
        r" However, the model's context length is only (?P<limit>\d+)"
    ),
    re.compile(r"exceed context limit: (?P<tokens>\d+) \+ (?P<max>\d+) > (?P<limit>\d+)"),
)
_TOO_LONG_TYPES = frozenset({"exceed_context_size_error", "context_length_exceeded"})

# Errors of a request that llama.cpp answers with 500, and the field. Matched at the start of the message only.
_INVALID = (
    re.compile(r"Failed to parse (?P<param>tools|messages):"),
    re.compile(r"Field '(?P<param>[A-Za-z0-9_.]{1,80})':"),
    re.compile(r"(?:image|audio|video|file) input is not supported"),
    re.compile(r"\[json\.exception\.(?:type_error|out_of_range|parse_error)\."),
)

_KINDS = {
    408: Kind.TIMEOUT,
    413: Kind.BODY_TOO_BIG,
    429: Kind.RATE_LIMITED,
    499: Kind.CLIENT_GONE,
    501: Kind.UNSUPPORTED,
    503: Kind.LOADING,
    504: Kind.TIMEOUT,
    529: Kind.LOADING,
}
# An unknown path or model at the worker is a fault of cortex.
_OURS = frozenset({402, 404, 405, 407})
# Other answers prove that the worker's key is right, so it refuses the request itself.
_REFUSED = frozenset({401, 403})
_LOADING_S = 5.0


def fault_from_worker(status: int, body: bytes, retry_after: str | None = None) -> Fault:
    """Return the fault for a worker's answer that is not 2xx."""
    try:
        answer: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")
    if isinstance(answer, dict) and "error" in answer:
        return fault_from_error(answer["error"], status, retry_after)
    return fault_from_error(answer, status, retry_after)


def fault_from_error(error: object, status: int = 500, retry_after: str | None = None) -> Fault:
    """Return the fault for an `error` value, from a body or a stream."""
    fields: dict[str, Any] = error if isinstance(error, dict) else {}
    code = fields.get("code")
    if status == 500 and isinstance(code, int) and 400 <= code < 600:
        status = code
    if 300 <= status < 400:
        message = f"the worker answered with a redirect ({status}); cortex does not follow redirects"
    else:
        message = _message(error)
        if not message or message.casefold() == _phrase(status):  # a framework's own answer to an exception
            message = f"the worker answered {status} without a message"
    too_long = _too_long(fields, message)
    if too_long is not None:
        return too_long
    kind, param = _kind(status, str(fields.get("type", ""))), fields.get("param") or _location(fields.get("detail"))
    if kind in (Kind.WORKER_ERROR, Kind.BAD_REQUEST) and (invalid := _invalid(message)):
        kind, param = Kind.BAD_REQUEST, param or invalid.groupdict().get("param", "messages")
    if kind is Kind.FORBIDDEN:
        message = f"the worker refused this request ({status}): {message}"
    return Fault(
        kind=kind,
        message=message,
        param=untrusted.name(param, _LONGEST_WORD) or None,
        code=untrusted.name(code, _LONGEST_WORD) or None if kind in (Kind.BAD_REQUEST, Kind.UNSUPPORTED) else None,
        retry_after_s=_seconds(retry_after, kind),
    )


def _phrase(status: int) -> str:
    """Return the words that HTTP has for a status.

    >>> _phrase(500)
    'internal server error'
    """
    try:
        return HTTPStatus(status).phrase.casefold()
    except ValueError:
        return ""


def _invalid(message: str) -> re.Match[str] | None:
    return next((match for pattern in _INVALID if (match := pattern.match(message))), None)


def engine_died(message: str) -> bool:
    """Whether a worker's error means that its engine died and the worker is about to exit."""
    return _ENGINE_DIED.match(message) is not None


def first_error(chunk: bytes) -> Fault | None:
    """Return the error at the start of a stream's first piece, or None."""
    if b'"error"' not in chunk:
        return None
    frames = SSEDecoder()
    first = next(iter([*frames.feed(chunk), *frames.close()]), None)
    try:
        event: Any = msgspec.json.decode(first.data) if first else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return fault_from_error(event["error"]) if isinstance(event, dict) and event.get("error") else None


def _kind(status: int, type_: str) -> Kind:
    if type_ == "unavailable_error":
        return Kind.LOADING
    if type_ == "not_supported_error":
        return Kind.UNSUPPORTED
    if status in _REFUSED:
        return Kind.FORBIDDEN
    if status in _OURS:
        return Kind.WORKER_ERROR
    if status in _KINDS:
        return _KINDS[status]
    if 400 <= status < 500:
        return Kind.BAD_REQUEST
    return Kind.WORKER_ERROR


def _too_long(fields: dict[str, Any], message: str) -> Fault | None:
    tokens, limit = fields.get("n_prompt_tokens"), fields.get("n_ctx")
    if isinstance(tokens, int) and isinstance(limit, int) and limit > 0:
        return prompt_too_long(tokens, limit)
    for pattern in _TOGETHER:
        if match := pattern.search(message):
            numbers = {name: int(digits[:18]) for name, digits in match.groupdict().items()}
            if numbers["tokens"] >= numbers["limit"]:
                return prompt_too_long(numbers["tokens"], numbers["limit"])
            return max_tokens_too_large(numbers["tokens"], numbers["max"], numbers["limit"])
    for pattern in _PROMPT:
        if match := pattern.search(message):
            return prompt_too_long(int(match["tokens"][:18]), int(match["limit"][:18]))
    if _TOO_LONG_TYPES & {str(fields.get("type")), str(fields.get("code"))}:
        return Fault(kind=Kind.PROMPT_TOO_LONG, message=message, param="messages")
    return None


def _message(error: object, depth: int = 5) -> str:
    """Return the message of an error in any known shape, cleaned; "" without one."""
    if isinstance(error, str):
        return untrusted.text(error, _LONGEST_MESSAGE).strip()
    if depth == 0:
        return ""
    if isinstance(error, list):
        messages = [_message(element, depth - 1) for element in error[:8]]
        return "; ".join(message for message in messages if message)[:_LONGEST_MESSAGE]
    if not isinstance(error, dict):
        return ""
    if isinstance(error.get("msg"), str):  # one entry of a pydantic error list
        loc = error.get("loc")
        steps = [str(step) for step in loc[:16] if isinstance(step, str | int)] if isinstance(loc, list) else []
        at = ".".join(step for step in steps if step != "body")
        return _message(f"{at}: {error['msg']}" if at else error["msg"])
    for key in ("message", "detail", "error"):
        value = error.get(key)
        if isinstance(value, str | list | dict) and value:
            return _message(value, depth - 1)
    return ""


def _location(detail: object) -> str | None:
    """Return the field of the first entry of a pydantic error list."""
    first = detail[0] if isinstance(detail, list) and detail else None
    loc = first.get("loc") if isinstance(first, dict) else None
    steps = [step for step in loc[:16] if isinstance(step, str) and step != "body"] if isinstance(loc, list) else []
    return steps[0] if steps else None


def _seconds(retry_after: str | None, kind: Kind) -> float | None:
    if retry_after is not None and retry_after.strip().isdecimal():
        return min(float(retry_after.strip()[:6]), _LONGEST_WAIT_S)
    return _LOADING_S if kind is Kind.LOADING else None
