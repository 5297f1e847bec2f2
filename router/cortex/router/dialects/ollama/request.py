"""Translate Ollama's chat and generate requests into a conversation for a worker.

A `generate` is a chat of one message, or a completion where the client has templated its prompt itself (`raw`). Fields
that would replace the function's own prompt format (`template`, `context`, `suffix`) are rejected by name.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from cortex.functions.capabilities import Sampling
from cortex.router.dialects import gate
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.conversation import Function, FunctionTool, Request, TranslatedRequest
from cortex.router.dialects.core.conversation_builder import ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.ollama import answer as ollama_answer
from cortex.router.dialects.ollama import options
from cortex.router.dialects.ollama.answer import Answer, Form
from cortex.router.dialects.ollama.messages import Reader
from cortex.router.dialects.ollama.stream import LineStream, OllamaMachine

_LEVELS = frozenset({"low", "medium", "high", "max"})


class _Shared(msgspec.Struct):
    model: str
    stream: bool = True
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None


class _Chat(_Shared, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


class _Generate(_Shared, kw_only=True):
    prompt: str = ""
    system: str | None = None
    images: list[str] | None = None
    raw: bool = False
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None


class _Empty(msgspec.Struct):
    """The fields that show whether a request asks for an answer."""

    messages: list[msgspec.Raw] | None = None
    prompt: str | None = None
    images: list[msgspec.Raw] | None = None
    suffix: str | None = None


class _Tool(msgspec.Struct):
    function: Function
    type: str = "function"


class OllamaRequest(TranslatedRequest, frozen=True, kw_only=True):
    """A parsed request."""

    form: Form
    limit_field: str = options.LIMIT

    def answer(self, id: str, created: int) -> "Reply":
        """Return the reply; `id` is the unique part of every id in the answer."""
        return Reply(Answer(id=id, model=self.model, form=self.form, created=created))


class RawRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed `generate` for a worker's completions endpoint."""

    model: str
    stream: bool
    max_tokens: int | None
    fields: dict[str, Any]
    limit_is_ours: bool
    dropped: tuple[str, ...] = ()
    limit_field: str = options.LIMIT
    affinity: str | None = None
    choices: int = 1
    cuts: tuple[str, ...] = ()
    completes: bool = True

    def body(self, model: str, max_tokens: int | None = None) -> bytes:
        """Return the body to send; `max_tokens` replaces the client's limit."""
        limit = self.max_tokens if max_tokens is None else max_tokens
        return msgspec.json.encode({"model": model, **self.fields, **({"max_tokens": limit} if limit else {})})

    def count(self, model: str) -> bytes:
        """Return the body for a worker's tokenizer endpoint."""
        return msgspec.json.encode({"model": model, "prompt": self.fields["prompt"]})

    def answer(self, id: str, created: int) -> "Reply":
        return Reply(Answer(id=id, model=self.model, form="generate", created=created))


class Reply(msgspec.Struct, frozen=True):
    answer: Answer

    def with_clock(self, clock: Callable[[], float]) -> "Reply":
        """Return the reply with a clock for its times, which starts now."""
        return Reply(msgspec.structs.replace(self.answer, clock=clock, began=clock()))

    def with_limit(self, max_tokens: int | None, input_tokens: int | None) -> "Reply":
        """Return the reply to the request with the tokens of its prompt."""
        return Reply(msgspec.structs.replace(self.answer, input_tokens=input_tokens))

    def plain(self, body: bytes) -> Plain:
        return ollama_answer.plain(self.answer, body)

    def stream(self, request_id: str | None = None) -> LineStream:
        return LineStream(OllamaMachine(self.answer))


def is_empty(body: bytes) -> bool:
    """Whether a request asks for no answer: Ollama's clients send one to load or unload a model."""
    content = wire.read(body, _Empty)
    return not (content.messages or content.prompt or content.images or content.suffix)


@wire.parser
def read_chat(body: bytes, traits: Traits) -> OllamaRequest:
    """Parse a request to `/api/chat`. Raises BadRequest."""
    params, fields = wire.read_fields(body, _Chat)
    builder = ConversationBuilder(traits)
    Reader(traits, builder).read(params.messages)
    request = Request(messages=builder.messages(), tools=_tools(params.tools, fields))
    return _build("chat", params, request, traits, gate.unused_fields(fields, _CHAT))


@wire.parser
def read_generate(body: bytes, traits: Traits) -> OllamaRequest | RawRequest:
    """Parse a request to `/api/generate`. Raises BadRequest."""
    params, fields = wire.read_fields(body, _Generate)
    unused = gate.unused_fields(fields, _GENERATE)
    _refuse(params)
    if params.raw:
        return _build_raw(params, traits, unused)
    builder = ConversationBuilder(traits)
    builder.system(params.system or "")
    Reader(traits, builder).user(params.prompt, params.images, "images")
    return _build("generate", params, Request(messages=builder.messages()), traits, unused)


_CHAT = frozenset(_Chat.__struct_fields__)
_GENERATE = frozenset(_Generate.__struct_fields__)


def _refuse(params: _Generate) -> None:
    """Raise BadRequest for what would change the prompt, or cannot be had with `raw`."""
    reasons = {
        "template": "the template of a model is the operator's",
        "context": "answers come without a context; send the messages to /api/chat",
        "suffix": "text is not filled in here",
    }
    if params.raw:
        reasons |= dict.fromkeys(("system", "images", "format"), "not accepted with `raw`")
    for name, reason in reasons.items():
        if getattr(params, name):
            raise BadRequest(reason, name, Kind.UNSUPPORTED)


def _build(form: Form, params: _Shared, request: Request, traits: Traits, unused: tuple[str, ...]) -> OllamaRequest:
    _check_model(params)
    read = options.read(params.options, request, traits)
    max_tokens = traits.output_tokens(read.num_predict)
    _set_stream(request, stream=params.stream)
    _set_format(params.format, request, traits)
    _set_thinking(params.think, request, traits)
    conversation.prefill(request, traits)
    conversation.fill_in(request, traits)
    return OllamaRequest(
        model=params.model,
        stream=params.stream,
        max_tokens=max_tokens,
        upstream=conversation.upstream(request, max_tokens),
        limit_is_ours=read.num_predict is None,
        dropped=(*unused, *read.dropped),
        form=form,
    )


def _build_raw(params: _Generate, traits: Traits, unused: tuple[str, ...]) -> RawRequest:
    _check_model(params)
    request = Request(messages=[])
    read = options.read(params.options, request, traits)
    _set_stream(request, stream=params.stream)
    limit = traits.output_tokens(read.num_predict)
    if limit is None:
        limit = traits.completion_tokens
    for name in Sampling.__struct_fields__:
        if getattr(request, name) is None:
            setattr(request, name, getattr(traits.sampling, name))
    fields = msgspec.to_builtins(request)
    del fields["messages"]
    return RawRequest(
        model=params.model,
        stream=params.stream,
        max_tokens=limit,
        fields={"prompt": params.prompt, **fields},
        limit_is_ours=read.num_predict is None,
        dropped=(*unused, *read.dropped),
    )


def _check_model(params: _Shared) -> None:
    if not params.model:
        raise BadRequest("expected a name", "model")


def _set_stream(request: Request, *, stream: bool) -> None:
    request.stream = stream
    request.stream_options = {"include_usage": True} if stream else None


def _tools(tools: list[dict[str, Any]] | None, fields: gate.Fields) -> list[FunctionTool] | None:
    if not tools:
        return None
    tools = grammar.fit(tools, fields["tools"]) or tools
    functions = []
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        declared = wire.convert(tool, _Tool, at)
        if declared.type != "function":
            raise BadRequest(f"tools of type {declared.type[:80]!r} are not supported", f"{at}.type", Kind.UNSUPPORTED)
        if not declared.function.name:
            raise BadRequest("expected a name", f"{at}.function.name")
        functions.append(FunctionTool(declared.function))
    return functions


def _set_format(form: str | dict[str, Any] | None, request: Request, traits: Traits) -> None:
    if isinstance(form, dict):
        grammar.check_schema(form, "format")
        request.response_format = conversation.json_format(form, traits)
    elif form == "json":
        request.response_format = {"type": "json_object"}
    elif form:
        raise BadRequest("expected json, or a JSON schema", "format")


def _set_thinking(think: bool | str | None, request: Request, traits: Traits) -> None:
    """Apply `think`; without it the model decides."""
    if think is None:
        return
    if think is False:
        conversation.stop_thinking(request, traits)
        return
    conversation.start_thinking(request, traits)
    if isinstance(think, str):
        if think not in _LEVELS:
            raise BadRequest("expected true, false, low, medium, high or max", "think")
        request.reasoning_effort = traits.effort.get(think)
