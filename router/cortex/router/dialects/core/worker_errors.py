"""What a worker meant by its error, whichever engine it is. Pure; the one place where foreign errors are read.

Engines agree on nothing: vLLM puts an integer into `code`, llama-server names its types, llama_cpp.server lets
its framework answer with `detail`, older servers send plain text. The text is passed on, cleaned, because it is what a
person needs; the status is ours: a worker's 404 is our mistake and not the client's, and its 401 is no word on the
client's key.
"""

import re
from typing import Any

import msgspec

from cortex.platform import untrusted
from cortex.router.dialects.core.errors import Fault, Kind, max_tokens_too_large, prompt_too_long
from cortex.router.dialects.core.sse import SSEDecoder

_LONGEST_MESSAGE = 4000
_LONGEST_WORD = 200
_LONGEST_WAIT_S = 3600.0
BREAKDOWNS = frozenset({500, 502, 503})
"""The statuses with which a worker that has failed answers, until it ends."""

# How vLLM's front says that its engine is no more; it ends some seconds later. At the beginning of the message only:
# an error may quote a prompt.
_ENGINE_DIED = re.compile(
    r"(?:EngineCore encountered an issue|EngineDeadError|AsyncEngineDeadError|MQEngineDeadError"
    r"|Background loop (?:has errored already|is not running)|Engine loop is not running|Engine process died)"
)

# How engines say that the prompt alone is too long, and that prompt and answer together are. Each has the names
# of the numbers that its words give.
_PROMPT = (
    re.compile(r"prompt \(length (?P<tokens>\d+)\) is longer than the maximum model length of (?P<limit>\d+)"),
    re.compile(
        r"maximum context length is (?P<limit>\d+) tokens\. However, your"
        r" (?:request has|prompt contains at least|messages resulted in) (?P<tokens>\d+)"
    ),
    re.compile(r"request \((?P<tokens>\d+) tokens\) exceeds the available context size \((?P<limit>\d+) tokens\)"),
    re.compile(r"prompt is too long: (?P<tokens>\d+) tokens > (?P<limit>\d+) maximum"),
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
# A worker that does not know the path or the model was set up wrongly by us.
_OURS = frozenset({402, 404, 405, 407})
# Its key was right, or the answer would not have come as far as here: what it refuses is the request.
_REFUSED = frozenset({401, 403})
_LOADING_S = 5.0


def fault_from_worker(status: int, body: bytes, retry_after: str | None = None) -> Fault:
    """The fault behind a worker's answer that was not 2xx."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")
    if isinstance(said, dict) and "error" in said:
        return fault_from_error(said["error"], status, retry_after)
    return fault_from_error(said, status, retry_after)


def fault_from_error(error: object, status: int = 500, retry_after: str | None = None) -> Fault:
    """The fault behind an `error` value, from a body or from the middle of a stream."""
    fields: dict[str, Any] = error if isinstance(error, dict) else {}
    code = fields.get("code")
    if status == 500 and isinstance(code, int) and 400 <= code < 600:
        status = code
    if 300 <= status < 400:
        message = f"the worker answered with a redirect ({status}), and cortex follows none"
    else:
        message = _message(error) or f"the worker answered {status} and gave no reason"
    too_long = _too_long(fields, message)
    if too_long is not None:
        return too_long
    kind = _kind(status, str(fields.get("type", "")))
    if kind is Kind.FORBIDDEN:
        message = f"the worker refused this request ({status}): {message}"
    return Fault(
        kind=kind,
        message=message,
        param=untrusted.name(fields.get("param"), _LONGEST_WORD) or None,
        code=untrusted.name(code, _LONGEST_WORD) or None if kind in (Kind.BAD_REQUEST, Kind.UNSUPPORTED) else None,
        retry_after_s=_seconds(retry_after, kind),
    )


def engine_died(message: str) -> bool:
    """Whether a worker's error means that its engine has ended, and the worker is about to."""
    return _ENGINE_DIED.match(message) is not None


def first_error(chunk: bytes) -> Fault | None:
    """Return the error that a stream's first piece begins with, if it does."""
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
        if found := pattern.search(message):
            numbers = {name: int(digits[:18]) for name, digits in found.groupdict().items()}
            if numbers["tokens"] >= numbers["limit"]:
                return prompt_too_long(numbers["tokens"], numbers["limit"])
            return max_tokens_too_large(numbers["tokens"], numbers["max"], numbers["limit"])
    for pattern in _PROMPT:
        if found := pattern.search(message):
            return prompt_too_long(int(found["tokens"][:18]), int(found["limit"][:18]))
    if _TOO_LONG_TYPES & {str(fields.get("type")), str(fields.get("code"))}:
        return Fault(kind=Kind.PROMPT_TOO_LONG, message=message, param="messages")
    return None


def _message(error: object, depth: int = 5) -> str:
    """The words for a person, cleaned, from every shape seen so far."""
    if isinstance(error, str):
        return untrusted.text(error, _LONGEST_MESSAGE).strip()
    if depth == 0:
        return ""
    if isinstance(error, list):
        said = [_message(one, depth - 1) for one in error[:8]]
        return "; ".join(one for one in said if one)[:_LONGEST_MESSAGE]
    if not isinstance(error, dict):
        return ""
    if isinstance(error.get("msg"), str):  # one complaint of a pydantic list
        where = error.get("loc")
        steps = [str(step) for step in where[:16] if isinstance(step, str | int)] if isinstance(where, list) else []
        at = ".".join(step for step in steps if step != "body")
        return _message(f"{at}: {error['msg']}" if at else error["msg"])
    for key in ("message", "detail", "error"):
        value = error.get(key)
        if isinstance(value, str | list | dict) and value:
            return _message(value, depth - 1)
    return ""


def _seconds(retry_after: str | None, kind: Kind) -> float | None:
    if retry_after is not None and retry_after.strip().isdecimal():
        return min(float(retry_after.strip()[:6]), _LONGEST_WAIT_S)
    return _LOADING_S if kind is Kind.LOADING else None
