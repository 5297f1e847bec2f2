"""Requests in a dialect that the worker speaks itself, for functions that ask for that: handed over and handed back.

Nothing is translated. The model's name is replaced, the billing header is taken out of the prompt, what does not pass
is left out (`gate.py`), the function's limit of tokens is written, usage is read as it passes; and a stream that broke
off still never ends the way a whole one does.
"""

from typing import Any, Literal

import msgspec

from cortex.functions.passing import passing
from cortex.functions.servers import server_of
from cortex.functions.spec import Function
from cortex.router.dialects import gate
from cortex.router.dialects.core import grammar, images, prompt_cache, wire
from cortex.router.dialects.core.chunks import LETTERS_PER_TOKEN, Plain, Tokens, count
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Dialect, Fault, Kind, anthropic_error
from cortex.router.dialects.core.sse import Event, SSEDecoder
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages.request import session_of

NativeDialect = Literal["messages", "responses"]
PATHS: dict[NativeDialect, str] = {"messages": "/v1/messages", "responses": "/v1/responses"}

_USAGE = frozenset({"message_start", "message_delta", "response.completed", "response.incomplete", "response.failed"})
_ENDS = frozenset({"message_stop", "error", "response.completed", "response.incomplete", "response.failed"})
_BEGUN = frozenset({"response.created"})


_LIMITS: dict[NativeDialect, str] = {"messages": "max_tokens", "responses": "max_output_tokens"}
PLAIN: dict[NativeDialect, Traits] = {
    "messages": Traits(passing=passing("openai", "messages")),
    "responses": Traits(passing=passing("openai", "responses")),
}


def spoken(function: Function, kind: Dialect, *, cache_is_shared: bool) -> NativeDialect | None:
    """Return the dialect in which a request is handed over, or None where it is translated.

    An engine's own `/v1/messages` takes no field that would keep the cached prompts of keys apart, and of a server
    without such a field at all the counts of its usage are hidden: there, only those who share a cache are handed over.
    """
    server = server_of(function)
    if kind not in PATHS or kind not in function.native or kind not in server.native:
        return None
    if not cache_is_shared and (kind == "messages" or server.isolation == "none"):
        return None
    return kind


class _Wire(msgspec.Struct):
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


class _Said(msgspec.Struct):
    """What of an answer, or an event, is read in passing."""

    type: str | None = None
    usage: _Usage | None = None
    message: "_Said | None" = None
    response: "_Said | None" = None


class NativeRequest(msgspec.Struct, frozen=True, kw_only=True):
    dialect: NativeDialect
    model: str
    stream: bool
    max_tokens: int | None
    fields: gate.Fields
    affinity: str | None = None
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    limit_is_ours: bool = False
    choices: int = 1

    def body(self, model: str, max_tokens: int | None = None) -> bytes:
        """What to send: the client's own words, to the worker's name."""
        fields = self.fields
        if max_tokens is not None:
            fields = fields | {_LIMITS[self.dialect]: _raw(max_tokens)}
        return wire.write(fields, model)

    def count(self, model: str) -> bytes:
        return self.body(model)

    def answer(self, id: str, created: int, input_tokens: int | None = None) -> "Reply":
        return Reply(self.dialect)


class Reply(msgspec.Struct, frozen=True):
    dialect: NativeDialect

    def plain(self, body: bytes) -> Plain:
        """The worker's answer as it is; raises `BadAnswer` when it is none."""
        try:
            said = msgspec.json.decode(body, type=_Said)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"the worker sent something that is not an answer: {error}") from None
        return Plain(body, _tokens(said.usage, Tokens(), self.dialect))

    def stream(self, request_id: str | None = None) -> "NativeStream":
        return NativeStream(self.dialect, request_id)


class NativeStream:
    """The `Stream` of a worker that speaks the client's dialect: whole frames pass, their names are watched."""

    def __init__(self, dialect: NativeDialect, request_id: str | None) -> None:
        self.fault: Fault | None = None
        self.over = False
        self.tokens = Tokens()
        self.rough_tokens = 0
        self._dialect: NativeDialect = dialect
        self._request_id = request_id
        self._frames = SSEDecoder()
        self._response: dict[str, Any] = {}

    def open(self) -> bytes:
        return b""

    def ping(self) -> bytes:
        """Before the worker's own beginning, so nothing that would be a beginning."""
        if self.over:
            return b""
        return b'event: ping\ndata: {"type":"ping"}\n\n' if self._dialect == "messages" else b": waiting\n\n"

    def feed(self, data: bytes) -> bytes:
        if self.over:
            return b""
        out: list[bytes] = []
        try:
            for frame in self._frames.feed(data):
                out.append(self._passed(frame))
                if self.over:
                    break
        except BadAnswer as error:
            out.append(self.fail(error.fault))
        return b"".join(out)

    def close(self) -> bytes:
        if self.over:
            return b""
        out = [self._passed(frame) for frame in self._frames.close() if not self.over and _whole(frame)]
        if not self.over:
            reason = "the worker's answer ended before it was complete"
            out.append(self.fail(Fault(kind=Kind.WORKER_ERROR, message=reason)))
        return b"".join(out)

    def fail(self, fault: Fault) -> bytes:
        if self.over:
            return b""
        self.over, self.fault = True, fault
        if self._dialect == "messages":
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode(anthropic_error(fault, self._request_id))
        said = {"code": fault.failed_code, "message": fault.message}
        response = {"id": "", "object": "response", "output": [], **self._response, "status": "failed", "error": said}
        event = {"type": "response.failed", "response": response}
        return b"event: response.failed\ndata: %b\n\n" % msgspec.json.encode(event)

    def _passed(self, frame: Event) -> bytes:
        name = frame.event.decode("utf-8", "replace")
        if name.endswith("delta"):
            self.rough_tokens += _rough_tokens(frame.data)
        if name in _USAGE or name in _BEGUN:
            self._look(frame.data, name)
        if name in _ENDS:
            self.over = True
            if name == "error":
                self.fault = Fault(kind=Kind.WORKER_ERROR, message="the worker said so in its stream")
        head = b"event: %b\n" % frame.event if frame.event else b""
        return head + b"".join(b"data: %b\n" % line for line in frame.data.split(b"\n")) + b"\n"

    def _look(self, data: bytes, name: str) -> None:
        try:
            said = msgspec.json.decode(data, type=_Said)
            if name in _BEGUN:
                self._response = msgspec.json.decode(data, type=dict[str, Any]).get("response") or {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"the worker sent something that is not an answer: {error}") from None
        inner = said.message or said.response or said
        self.tokens = _tokens(inner.usage, self.tokens, self._dialect)


@wire.parser
def read(dialect: NativeDialect, body: bytes, traits: Traits | None = None) -> NativeRequest:
    """A request for a worker that speaks this dialect; raises `BadRequest`. What passes is the worker's to judge."""
    traits = PLAIN[dialect] if traits is None else traits
    said = wire.read(body, _Wire)
    if not said.model:
        raise BadRequest("expected a name", "model")
    passed = gate.admit(msgspec.json.decode(body, type=gate.Fields), traits.passing)
    fields = passed.fields
    if dialect == "messages" and prompt_cache.MARK in body:
        fields = _without_billing(fields)
    fields = _checked(fields)
    asked = said.max_tokens if dialect == "messages" else said.max_output_tokens
    limit = traits.output_tokens(asked)
    if limit != asked:
        fields = fields | {_LIMITS[dialect]: _raw(limit)}
    return NativeRequest(
        dialect=dialect,
        model=said.model,
        stream=bool(said.stream),
        max_tokens=limit,
        fields=fields,
        affinity=said.prompt_cache_key or session_of(said.metadata),
        dropped=passed.dropped,
        limit_is_ours=asked is None,
    )


_CONTENTS = ("messages", "system", "input", "instructions")


def _checked(fields: gate.Fields) -> gate.Fields:
    """Hold what the worker reads itself to the bounds of the gate: media are data, schemas are bounded."""
    for name in _CONTENTS:
        if name in fields:
            images.refuse_addresses(msgspec.json.decode(fields[name]), name)
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
    """A tool without its schema, whose properties are names that the client chose."""
    if not isinstance(tool, dict):
        return tool
    return {key: value for key, value in tool.items() if key not in ("input_schema", "parameters", "function")}


def _without_billing(fields: gate.Fields) -> gate.Fields:
    """The request without the header that changes from one conversation to the next."""
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
    kept = []
    for block in content:
        text = block.get("text") if isinstance(block, dict) else None
        if not isinstance(text, str):
            kept.append(block)
        elif clean := prompt_cache.without_billing(text):
            kept.append({**block, "text": clean})
    return kept


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _tokens(usage: _Usage | None, known: Tokens, dialect: NativeDialect) -> Tokens:
    """The cost as the worker counted it; what it does not repeat stays. Anthropic counts the cached apart."""
    if usage is None:
        return known
    cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    prompt = known.input if usage.input_tokens is None else usage.input_tokens + cached + written
    output = known.output if usage.output_tokens is None else usage.output_tokens
    return Tokens(input=count(prompt), cached=count(cached), written=count(written), output=count(output))


class _Delta(msgspec.Struct):
    """An event that brings a piece of an answer: in Responses a text, in Messages an object with one."""

    delta: str | dict[str, Any] | None = None


def _rough_tokens(data: bytes) -> int:
    """Return about how many tokens an event's text has; at least one."""
    try:
        delta = msgspec.json.decode(data, type=_Delta).delta or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
    texts = [delta] if isinstance(delta, str) else [v for k, v in delta.items() if k != "type" and isinstance(v, str)]
    return max(1, sum(map(len, texts)) // LETTERS_PER_TOKEN)


def _whole(frame: Event) -> bool:
    """What the end cut off may be half a frame."""
    try:
        msgspec.json.decode(frame.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
