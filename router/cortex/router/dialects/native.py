"""Requests in a dialect that the worker supports itself, forwarded without translation, for functions that enable it.

The model's name is replaced, the billing header is removed from the prompt, fields that are not allowed are dropped
(`gate.py`), the function's token limit is set, and usage is read. A truncated stream never ends like a complete one.
"""

from typing import Any, Literal

import msgspec

from cortex.functions.passing import passing
from cortex.functions.servers import server_of
from cortex.functions.spec import Function
from cortex.router.dialects import gate
from cortex.router.dialects.core import grammar, images, lenient, prompt_cache, wire
from cortex.router.dialects.core.chunks import CHARACTERS_PER_TOKEN, Plain, Tokens, count, truncation
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Dialect, Fault, Kind, anthropic_error
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.sse import Event, comment
from cortex.router.dialects.core.stream import FrameStream, is_empty
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages.request import session_of

NativeDialect = Literal["messages", "responses"]
PATHS: dict[NativeDialect, str] = {"messages": "/v1/messages", "responses": "/v1/responses"}

_USAGE = frozenset({"message_start", "message_delta", "response.completed", "response.incomplete", "response.failed"})
_ENDS = frozenset({"message_stop", "error", "response.completed", "response.incomplete", "response.failed"})
_STARTS = frozenset({"response.created"})


_LIMITS: dict[NativeDialect, str] = {"messages": "max_tokens", "responses": "max_output_tokens"}
PLAIN: dict[NativeDialect, Traits] = {
    "messages": Traits(passing=passing("openai", "messages")),
    "responses": Traits(passing=passing("openai", "responses")),
}


def native_dialect(function: Function, kind: Dialect, *, cache_is_shared: bool) -> NativeDialect | None:
    """Return the dialect in which to forward a request, or None to translate it.

    An engine's `/v1/messages` has no field that separates the cached prompts of keys, and for a server without such a
    field cortex hides cached token counts. In both cases only requests that share a cache are forwarded.
    """
    if kind not in PATHS or kind not in function.native:
        return None
    server = server_of(function)
    if kind not in server.native:
        return None
    if not cache_is_shared and (kind == "messages" or server.isolation == "none"):
        return None
    return kind


class _Params(msgspec.Struct):
    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    max_output_tokens: int | None = None
    prompt_cache_key: str | None = None
    metadata: Any = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _AnswerFields(msgspec.Struct):
    """The fields of an answer or an event that cortex reads."""

    type: str | None = None
    usage: _Usage | None = None
    message: "_AnswerFields | None" = None
    response: "_AnswerFields | None" = None


_decoder = msgspec.json.Decoder(_AnswerFields)


class NativeRequest(msgspec.Struct, frozen=True, kw_only=True):
    dialect: NativeDialect
    model: str
    stream: bool
    max_tokens: int | None
    fields: gate.Fields
    affinity: str | None = None
    dropped: tuple[str, ...] = ()
    limit_is_ours: bool = False
    limit_field: str = "max_tokens"
    choices: int = 1
    cuts: tuple[str, ...] = ()
    completes: bool = False

    def body(self, model: str, max_tokens: int | None = None) -> Body:
        """Return the body to send, with the worker's name of the model."""
        fields = self.fields
        if max_tokens is not None:
            fields = fields | {_LIMITS[self.dialect]: _raw(max_tokens)}
        return wire.write(fields, model)

    def count(self, model: str) -> Body:
        return self.body(model)

    def answer(self, id: str, created: int) -> "Reply":
        return Reply(self.dialect)


class Reply(msgspec.Struct, frozen=True):
    dialect: NativeDialect

    def plain(self, body: bytes) -> Plain:
        """Return the worker's answer unchanged. Raises `BadAnswer` when it is not one."""
        try:
            answer, body = lenient.decode(body, _decoder)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"the worker sent something that is not an answer: {error}") from None
        return Plain(body, _tokens(answer.usage, Tokens()))

    def with_limit(self, max_tokens: int | None, input_tokens: int | None) -> "Reply":
        return self

    def stream(self, request_id: str | None = None) -> "NativeStream":
        return NativeStream(self.dialect, request_id)


class NativeStream(FrameStream):
    """The `Stream` of a worker with the client's dialect: whole frames are forwarded, their names tracked."""

    def __init__(self, dialect: NativeDialect, request_id: str | None) -> None:
        super().__init__()
        self.tokens = Tokens()
        self._dialect: NativeDialect = dialect
        self._request_id = request_id
        self._response: dict[str, Any] = {}

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        """Do nothing: no event has a limit or a count of cortex's."""

    def open(self) -> bytes:
        return b""

    def ping(self, reason: str = "") -> bytes:
        """Return a keep-alive that may precede the worker's first event."""
        if self.over:
            return b""
        if self._dialect == "messages":
            return (comment(reason) if reason else b"") + b'event: ping\ndata: {"type":"ping"}\n\n'
        return comment(reason or "waiting") + b"\n"

    def _relay(self, frame: Event, out: list[bytes]) -> None:
        if is_empty(frame.data):
            return
        name = frame.event.decode("utf-8", "replace")
        if name.endswith("delta"):
            self._rough_tokens += _rough_tokens(frame.data)
        if name in _USAGE or name in _STARTS:
            self._read_event(frame.data, name)
        if name in _ENDS:
            self.over = True
            if name == "error":
                self.fault = Fault(kind=Kind.WORKER_ERROR, message="the worker reported an error in its stream")
        head = b"event: %b\n" % frame.event if frame.event else b""
        data = _strict(frame.data)
        out.append(head + b"".join(b"data: %b\n" % line for line in data.split(b"\n")) + b"\n")

    def _relay_last(self, frame: Event, out: list[bytes]) -> None:
        if not self.over and _is_complete(frame):
            self._relay(frame, out)

    def _end(self, out: list[bytes]) -> None:
        raise truncation()

    def _encode_fault(self, fault: Fault) -> bytes:
        if self._dialect == "messages":
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode(anthropic_error(fault, self._request_id))
        error = {"code": fault.failed_code, "message": fault.message}
        response = {"id": "", "object": "response", "output": [], **self._response, "status": "failed", "error": error}
        event = {"type": "response.failed", "response": response}
        return b"event: response.failed\ndata: %b\n\n" % msgspec.json.encode(event)

    def _read_event(self, data: bytes, name: str) -> None:
        try:
            event, data = lenient.decode(data, _decoder)
            if name in _STARTS:
                self._response = msgspec.json.decode(data, type=dict[str, Any]).get("response") or {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"the worker sent something that is not an answer: {error}") from None
        inner = event.message or event.response or event
        self.tokens = _tokens(inner.usage, self.tokens)


@wire.parser
def read(dialect: NativeDialect, body: bytes, traits: Traits | None = None) -> NativeRequest:
    """Parse a request for a worker with this dialect. Raises `BadRequest`. The worker validates allowed fields."""
    traits = PLAIN[dialect] if traits is None else traits
    params, fields = wire.read_fields(body, _Params)
    if not params.model:
        raise BadRequest("expected a name", "model")
    result = gate.filter_fields(fields, traits.passing)
    fields = result.fields
    if dialect == "messages" and wire.contains(body, prompt_cache.MARK):
        fields = _without_billing(fields)
    fields = _check_fields(fields)
    client_limit = params.max_tokens if dialect == "messages" else params.max_output_tokens
    limit = traits.output_tokens(client_limit)
    if limit != client_limit:
        fields = fields | {_LIMITS[dialect]: _raw(limit)}
    return NativeRequest(
        dialect=dialect,
        model=params.model,
        stream=bool(params.stream),
        max_tokens=limit,
        fields=fields,
        affinity=params.prompt_cache_key or session_of(params.metadata),
        dropped=result.dropped,
        limit_is_ours=client_limit is None,
    )


_CONTENTS = ("messages", "system", "input", "instructions")


def _check_fields(fields: gate.Fields) -> gate.Fields:
    """Check the fields that the worker parses itself: media must be data, schemas are bounded."""
    for name in _CONTENTS:
        if name in fields:
            images.refuse_addresses(wire.decode_parts(fields[name]), name)
    if "tools" in fields:
        tools = msgspec.json.decode(fields["tools"])
        if isinstance(tools, list):
            images.refuse_addresses([_definition(tool) for tool in tools], "tools")
            if (looser := grammar.loosen_tools(tools, "tools")) is not None:
                fields = fields | {"tools": _raw(looser)}
    for name in ("output_config", "output_format", "text"):
        if name in fields:
            grammar.check_schema(msgspec.json.decode(fields[name]), name)
    return fields


def _definition(tool: Any) -> Any:
    """Return a tool without its schema, whose property names are the client's."""
    if not isinstance(tool, dict):
        return tool
    return {key: value for key, value in tool.items() if key not in ("input_schema", "parameters", "function")}


def _without_billing(fields: gate.Fields) -> gate.Fields:
    """Return the fields without the billing header, which changes between conversations."""
    fields = dict(fields)
    if "system" in fields:
        fields["system"] = _raw(_clean(msgspec.json.decode(fields["system"])))
    messages: Any = msgspec.json.decode(fields.get("messages", b"[]"))
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role") == "system":
            message["content"] = _clean(message.get("content"))
    return fields | {"messages": _raw(messages)}


def _clean(content: Any) -> Any:
    if isinstance(content, str):
        return prompt_cache.without_billing(content)
    if not isinstance(content, list):
        return content
    blocks = []
    for block in content:
        text = block.get("text") if isinstance(block, dict) else None
        if not isinstance(text, str):
            blocks.append(block)
        elif clean := prompt_cache.without_billing(text):
            blocks.append({**block, "text": clean})
    return blocks


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _tokens(usage: _Usage | None, tokens: Tokens) -> Tokens:
    """Merge the worker's usage into `tokens`. Anthropic counts cached tokens separately."""
    if usage is None:
        return tokens
    cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    prompt = tokens.input if usage.input_tokens is None else usage.input_tokens + cached + written
    output = tokens.output if usage.output_tokens is None else usage.output_tokens
    return Tokens(input=count(prompt), cached=count(cached), written=count(written), output=count(output))


class _Delta(msgspec.Struct):
    """An event with a piece of an answer: a string in Responses, an object in Messages."""

    delta: str | dict[str, Any] | None = None


def _rough_tokens(data: bytes) -> int:
    """Estimate the tokens of an event's text; at least one."""
    try:
        delta = msgspec.json.decode(data, type=_Delta).delta or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
    texts = [delta] if isinstance(delta, str) else [v for k, v in delta.items() if k != "type" and isinstance(v, str)]
    return max(1, sum(map(len, texts)) // CHARACTERS_PER_TOKEN)


def _strict(data: bytes) -> bytes:
    """Return an event's data as strict JSON; data that is none is the worker's own."""
    try:
        return lenient.decode(data, _any_decoder)[1]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data


_any_decoder = msgspec.json.Decoder(msgspec.Raw)


def _is_complete(frame: Event) -> bool:
    """Whether the last frame is complete JSON."""
    try:
        msgspec.json.decode(frame.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
