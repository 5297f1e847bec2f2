"""What a worker meant by its error, whichever engine it is. Pure; the one place where foreign errors are read.

Engines agree on nothing: vLLM puts an integer into `code`, llama-server names its types, llama_cpp.server lets
its framework answer with `detail`, older servers send plain text. The words are kept, because they are what a
person needs; the status is ours, because a worker's 401 or 404 is our mistake and not the client's.
"""

import re
from typing import Any

import msgspec

from cortex.router.dialects.errors import Fault, Kind, max_tokens_too_large, prompt_too_long

_LONGEST_MESSAGE = 4000

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
# A worker that does not know us, the path or the model was set up wrongly by us.
_OURS = frozenset({401, 402, 403, 404, 405, 407})
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
    message = _message(error) or f"the worker answered {status} and gave no reason"
    too_long = _too_long(fields, message)
    if too_long is not None:
        return too_long
    kind = _kind(status, str(fields.get("type", "")))
    param = fields.get("param")
    return Fault(
        kind=kind,
        message=message,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) and kind in (Kind.BAD_REQUEST, Kind.UNSUPPORTED) else None,
        retry_after_s=_seconds(retry_after, kind),
    )


def _kind(status: int, type_: str) -> Kind:
    if type_ == "unavailable_error":
        return Kind.LOADING
    if type_ == "not_supported_error":
        return Kind.UNSUPPORTED
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
    """The words for a person, from every shape seen so far."""
    if isinstance(error, str):
        return error.strip()[:_LONGEST_MESSAGE]
    if depth == 0:
        return ""
    if isinstance(error, list):
        said = [_message(one, depth - 1) for one in error[:8]]
        return "; ".join(one for one in said if one)[:_LONGEST_MESSAGE]
    if not isinstance(error, dict):
        return ""
    if isinstance(error.get("msg"), str):  # one complaint of a pydantic list
        where = error.get("loc")
        steps = [str(step) for step in where if isinstance(step, str | int)] if isinstance(where, list) else []
        at = ".".join(step for step in steps if step != "body")
        return (f"{at}: {error['msg']}" if at else error["msg"])[:_LONGEST_MESSAGE]
    for key in ("message", "detail", "error"):
        value = error.get(key)
        if isinstance(value, str | list | dict) and value:
            return _message(value, depth - 1)
    return ""


def _seconds(retry_after: str | None, kind: Kind) -> float | None:
    if retry_after is not None and retry_after.strip().isdecimal():
        return float(retry_after.strip()[:6])
    return _LOADING_S if kind is Kind.LOADING else None
