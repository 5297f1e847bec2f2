"""Faults, how each dialect reports them, and the errors that dialects raise.

A `Fault` is a value: a kind, a message, optionally a field and a retry delay. Only the table below maps a kind to a
status, type and code; envelopes, error events and headers are computed from it. The dialect is that of the path the
client called, never the worker's. `router/errors.py` draws the whole tree of errors and has its other leaves.
"""

from enum import StrEnum
from math import ceil
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

Dialect = Literal[
    "chat", "completions", "embeddings", "rerank", "responses", "messages",
    "transcriptions", "translations", "speech", "images", "image_edits",
    "ollama_chat", "ollama_generate", "ollama_embed", "ollama_embeddings", "ollama",
    "tokenize", "detokenize", "apply_template", "infill", "score", "pooling",
]  # fmt: skip
"""A client's dialect, one for each of its paths; `ollama` is that of Ollama's other paths. Those from `tokenize` on are
engines' own routes, with OpenAI's errors."""
OLLAMA: frozenset[Dialect] = frozenset(
    {"ollama_chat", "ollama_generate", "ollama_embed", "ollama_embeddings", "ollama"}
)


class Kind(StrEnum):
    BAD_REQUEST = "bad_request"
    UNSUPPORTED = "unsupported"
    PROMPT_TOO_LONG = "prompt_too_long"
    MAX_TOKENS_TOO_LARGE = "max_tokens_too_large"
    NO_KEY = "no_key"
    FORBIDDEN = "forbidden"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_PATH = "unknown_path"
    WRONG_METHOD = "wrong_method"
    BODY_TOO_BIG = "body_too_big"
    UNSUPPORTED_MEDIA = "unsupported_media"
    RATE_LIMITED = "rate_limited"
    LOADING = "loading"
    NO_CAPACITY = "no_capacity"
    BATCH_WAITS = "batch_waits"
    CRASH_LOOPING = "crash_looping"
    WORKER_ERROR = "worker_error"
    INTERNAL = "internal"
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"


class _Row(NamedTuple):
    """`failed` is the code in `response.failed`; Codex uses it to decide whether to reconnect."""

    openai: int
    anthropic: int
    anthropic_type: str
    openai_type: str
    code: str | None
    failed: str


_INVALID = "invalid_request_error"
_TABLE = {
    Kind.BAD_REQUEST: _Row(400, 400, _INVALID, _INVALID, None, "invalid_prompt"),
    Kind.UNSUPPORTED: _Row(400, 400, _INVALID, _INVALID, "unsupported_parameter", "invalid_prompt"),
    Kind.PROMPT_TOO_LONG: _Row(400, 400, _INVALID, _INVALID, "context_length_exceeded", "context_length_exceeded"),
    Kind.MAX_TOKENS_TOO_LARGE: _Row(400, 400, _INVALID, _INVALID, "context_length_exceeded", "context_length_exceeded"),
    Kind.NO_KEY: _Row(401, 401, "authentication_error", _INVALID, "invalid_api_key", "invalid_prompt"),
    Kind.FORBIDDEN: _Row(403, 403, "permission_error", _INVALID, None, "invalid_prompt"),
    Kind.UNKNOWN_MODEL: _Row(404, 404, "not_found_error", _INVALID, "model_not_found", "invalid_prompt"),
    Kind.UNKNOWN_PATH: _Row(404, 404, "not_found_error", _INVALID, None, "invalid_prompt"),
    Kind.WRONG_METHOD: _Row(405, 405, _INVALID, _INVALID, None, "invalid_prompt"),
    Kind.BODY_TOO_BIG: _Row(413, 413, "request_too_large", _INVALID, None, "invalid_prompt"),
    Kind.UNSUPPORTED_MEDIA: _Row(415, 415, _INVALID, _INVALID, None, "invalid_prompt"),
    Kind.RATE_LIMITED: _Row(
        429, 429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded", "rate_limit_exceeded"
    ),
    Kind.LOADING: _Row(503, 529, "overloaded_error", "server_error", "model_loading", "server_error"),
    Kind.NO_CAPACITY: _Row(503, 529, "overloaded_error", "server_error", "model_loading", "server_is_overloaded"),
    Kind.BATCH_WAITS: _Row(503, 529, "overloaded_error", "server_error", "batch_waits", "server_is_overloaded"),
    Kind.CRASH_LOOPING: _Row(503, 503, "api_error", "server_error", "worker_error", "server_is_overloaded"),
    Kind.WORKER_ERROR: _Row(502, 502, "api_error", "server_error", "worker_error", "server_error"),
    Kind.INTERNAL: _Row(500, 500, "api_error", "server_error", "worker_error", "server_error"),
    Kind.TIMEOUT: _Row(504, 504, "timeout_error", "server_error", "timeout", "server_error"),
    Kind.CLIENT_GONE: _Row(499, 499, "api_error", "server_error", None, "server_error"),
}

# Retrying does not help; SDKs are told not to.
_NOT_RETRYABLE = frozenset({Kind.CRASH_LOOPING})


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """`anthropic_message` replaces `message` in the Messages dialect."""

    kind: Kind
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    anthropic_message: str | None = None

    def status(self, dialect: Dialect) -> int:
        row = _TABLE[self.kind]
        return row.anthropic if dialect == "messages" else row.openai

    @property
    def failed_code(self) -> str:
        """The code of a Responses stream's `response.failed`."""
        return _TABLE[self.kind].failed

    def headers(self) -> dict[str, str]:
        """Headers that tell an SDK whether and when to retry."""
        headers = {}
        if self.retry_after_s is not None and self.kind not in _NOT_RETRYABLE:
            headers["retry-after"] = str(max(1, ceil(self.retry_after_s)))
        if self.kind in _NOT_RETRYABLE:
            headers["x-should-retry"] = "false"
        if self.kind is Kind.NO_KEY:
            headers["www-authenticate"] = "Bearer"
        return headers


class RequestError(Exception):
    """A rejected request. `fault()` is the error that its client receives.

    `message` is for operators; it may name hosts and a worker's exit. `public` is for clients without the right to see
    the fleet.
    """

    kind = Kind.INTERNAL
    code: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Headers of the answer besides those of the fault."""

    def __init__(
        self, message: str, *, retry_after: int | None = None, param: str | None = None, public: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.public = message, public or message
        self.retry_after, self.param = retry_after, param

    @property
    def reason(self) -> str:
        """The text for the request's record and the log."""
        return self.message

    def fault(self, *, operator: bool = False) -> Fault:
        """Return the error as a value that every dialect can encode, with the operator's or the public message."""
        return Fault(
            kind=self.kind,
            message=self.message if operator else self.public,
            code=self.code,
            param=self.param,
            retry_after_s=self.retry_after,
        )


class DialectError(RequestError):
    """A request or an answer that cannot be translated. Its text may quote the request, so only the client gets it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message, param=fault.param)
        self._fault = fault

    @property
    def reason(self) -> str:
        """Empty: the text may quote the request."""
        return ""

    def fault(self, *, operator: bool = False) -> Fault:
        """Return the same fault for everyone."""
        return self._fault


class BadRequest(DialectError):
    """The request is invalid, or the function cannot serve it. Request parsers raise nothing else."""

    def __init__(self, message: str, param: str | None = None, kind: Kind = Kind.BAD_REQUEST) -> None:
        text = f"{param}: {message}" if param else message
        super().__init__(Fault(kind=kind, message=text, param=param))


class ContextExceeded(DialectError):
    """The prompt, or the prompt and the answer, exceed the context window."""


class WorkerRefusal(DialectError):
    """The worker refused the request, or failed while it served it; the fault has the worker's text."""


class BadAnswer(DialectError):
    """The worker's answer is invalid or incomplete."""

    def __init__(self, message: str, fault: Fault | None = None) -> None:
        super().__init__(fault or Fault(kind=Kind.WORKER_ERROR, message=message))


class AnthropicDetail(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct, tag_field="type", tag="error"):
    """The body of a failed request, and the `error` event of a stream."""

    error: AnthropicDetail
    request_id: str | None = None


class OpenAIDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(msgspec.Struct):
    error: OpenAIDetail


class OllamaError(msgspec.Struct):
    """The body of a failed request, and the last line of a stream that fails."""

    error: str


def anthropic_error(fault: Fault, request_id: str | None = None) -> AnthropicError:
    detail = AnthropicDetail(_TABLE[fault.kind].anthropic_type, fault.anthropic_message or fault.message)
    return AnthropicError(detail, request_id)


def openai_error(fault: Fault) -> OpenAIError:
    row = _TABLE[fault.kind]
    return OpenAIError(OpenAIDetail(fault.message, row.openai_type, fault.param, fault.code or row.code))


def ollama_error(fault: Fault) -> OllamaError:
    return OllamaError(fault.message)


def envelope(fault: Fault, dialect: Dialect, request_id: str | None = None) -> bytes:
    """The body of a failed request."""
    if dialect == "messages":
        return msgspec.json.encode(anthropic_error(fault, request_id))
    if dialect in OLLAMA:
        return msgspec.json.encode(ollama_error(fault))
    return msgspec.json.encode(openai_error(fault))


def prompt_too_long(tokens: int, limit: int) -> Fault:
    """Claude Code parses both numbers and compacts the conversation."""
    return Fault(
        kind=Kind.PROMPT_TOO_LONG,
        message=f"prompt is too long: {tokens} tokens > {limit} maximum",
        param="messages",
    )


def max_tokens_too_large(tokens: int, max_tokens: int, limit: int) -> Fault:
    """Claude Code parses the numbers and retries with the tokens that are left."""
    return Fault(
        kind=Kind.MAX_TOKENS_TOO_LARGE,
        message=(
            f"input length and `max_tokens` exceed context limit: {tokens} + {max_tokens} > {limit},"
            " decrease input length or `max_tokens` and try again"
        ),
        param="max_tokens",
    )


_PROMPTS: dict[Dialect, str] = {
    "responses": "input",
    "completions": "prompt",
    "embeddings": "input",
    "rerank": "documents",
    "ollama_generate": "prompt",
    "ollama_embed": "input",
    "ollama_embeddings": "prompt",
    "tokenize": "content",
    "infill": "input_prefix",
    "score": "text_2",
    "pooling": "input",
}


def in_client_terms(fault: Fault, dialect: Dialect, limit_field: str) -> Fault:
    """Return a fault of sizes with the fields that the client sent: its prompt, and its limit."""
    if fault.kind is Kind.PROMPT_TOO_LONG:
        return replace(fault, param=_PROMPTS.get(dialect, "messages"))
    if fault.kind is Kind.MAX_TOKENS_TOO_LARGE:
        return replace(fault, param=limit_field, message=fault.message.replace("`max_tokens`", f"`{limit_field}`"))
    return fault
