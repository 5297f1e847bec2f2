"""Translate an Anthropic Messages request into a conversation for a worker.

Settings of Anthropic's own service (caching, containers, tiers, betas) are accepted and dropped. An unsupported setting
that would change the answer is refused with the name of its field.
"""

from typing import Annotated, Any

import msgspec

from cortex.functions.passing import FIELDS
from cortex.router.dialects import gate
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.conversation import Request, TranslatedRequest
from cortex.router.dialects.core.conversation_builder import ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.stop_strings import MOST_CHARACTERS
from cortex.router.dialects.core.stream import TranslatedStream
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import answer as messages_answer
from cortex.router.dialects.messages.answer import Answer
from cortex.router.dialects.messages.content import Blocks, Reader
from cortex.router.dialects.messages.stream import MessagesMachine
from cortex.router.dialects.messages.tools import Choice, select_tools

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

_SMALLEST_BUDGET = 1024


class _Message(msgspec.Struct):
    role: str
    content: str | Blocks


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: _Count | None = None


class _Format(msgspec.Struct):
    type: str
    schema: dict[str, Any] | None = None


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Params(msgspec.Struct):
    model: str
    messages: list[dict[str, Any]]
    max_tokens: _Count | None = None
    system: str | Blocks | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    metadata: Any = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Choice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None


class MessagesRequest(TranslatedRequest, frozen=True, kw_only=True):
    """A parsed request."""

    stop_sequences: tuple[str, ...] = ()
    context_window: int | None = None
    prewarm: bool = False
    limit_field: str = "max_tokens"

    def answer(self, id: str, created: int) -> "Reply":
        """Return the reply; `id` is the unique part of every id in the answer."""
        return Reply(
            answer=Answer(
                id=id,
                model=self.model,
                max_tokens=self.max_tokens,
                stop_sequences=self.stop_sequences,
                context_window=self.context_window,
                prewarm=self.prewarm,
            )
        )


class Reply(msgspec.Struct, frozen=True):
    answer: Answer

    def with_limit(self, max_tokens: int | None, input_tokens: int | None) -> "Reply":
        """Return the reply to the request with the output limit that the worker gets."""
        return Reply(msgspec.structs.replace(self.answer, max_tokens=max_tokens, input_tokens=input_tokens))

    def plain(self, body: bytes) -> Plain:
        return messages_answer.plain(self.answer, body)

    def stream(self, request_id: str | None = None) -> TranslatedStream:
        return TranslatedStream(MessagesMachine(self.answer, request_id))


@wire.parser
def read(body: bytes, traits: Traits) -> MessagesRequest:
    """Parse a request to `/v1/messages`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Params)
    if params.max_tokens is None:
        raise BadRequest("field required", "max_tokens")
    return _build(params, traits, fields)


@wire.parser
def read_count(body: bytes, traits: Traits) -> MessagesRequest:
    """Parse a request to `/v1/messages/count_tokens`: the same prompt without an answer. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Params)
    return _build(params, traits, fields)


_USED = FIELDS["openai"]["messages"] | set(_Params.__struct_fields__)


def _build(params: _Params, traits: Traits, fields: gate.Fields) -> MessagesRequest:
    if not params.model:
        raise BadRequest("expected a name", "model")
    prewarm = params.max_tokens == 0
    max_tokens = 1 if prewarm else traits.output_tokens(params.max_tokens)
    builder = ConversationBuilder(traits)
    reader = Reader(traits, builder)
    reader.system(params.system, "system")
    _read_turns(params.messages, reader)
    if params.tools:
        params.tools = grammar.fit(params.tools, fields["tools"]) or params.tools
    tools = select_tools(params.tools, params.tool_choice, reader.referenced, traits)
    stops = tuple(stop for stop in params.stop_sequences or () if stop)
    gate.check_length("stop_sequences", len(stops))
    cuts = stops if not traits.names_stop and sum(map(len, stops)) <= MOST_CHARACTERS else ()
    request = Request(
        messages=builder.messages(),
        tools=tools.tools,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
        stop=None if cuts else list(stops) or None,
        timings_per_token=(bool(cuts) and "timings_per_token" in traits.passing.fields) or None,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        stream=bool(params.stream),
        stream_options={"include_usage": True} if params.stream else None,
    )
    _read_format(params, request, traits)
    _read_effort(params.output_config, request, traits)
    _read_thinking(params.thinking, params.max_tokens, max_tokens, request, traits)
    conversation.prefill(request, traits)
    conversation.fill_in(request, traits)
    return MessagesRequest(
        model=params.model,
        stream=bool(params.stream),
        max_tokens=max_tokens,
        upstream=conversation.upstream(request, max_tokens),
        stop_sequences=stops,
        cuts=cuts,
        context_window=traits.context_window,
        prewarm=prewarm,
        affinity=session_of(params.metadata),
        dropped=(*gate.unused_fields(fields, _USED), *reader.dropped),
    )


def _read_turns(messages: list[dict[str, Any]], reader: Reader) -> None:
    if not messages:
        raise BadRequest("at least one message is required", "messages")
    for index, item in enumerate(messages):
        at = f"messages[{index}]"
        message = wire.convert(item, _Message, at)
        match message.role:
            case "user":
                reader.user(message.content, f"{at}.content")
            case "assistant":
                reader.assistant(message.content, f"{at}.content")
            case "system":
                reader.system(message.content, f"{at}.content")
            case _:
                raise BadRequest("expected user, assistant or system", f"{at}.role")


def _read_format(params: _Params, request: Request, traits: Traits) -> None:
    config = params.output_config
    form, at = params.output_format, "output_format"
    if config is not None and config.format is not None:
        form, at = config.format, "output_config.format"
    if form is None:
        return
    if form.type != "json_schema":
        raise BadRequest("expected json_schema", f"{at}.type")
    if form.schema is None:
        raise BadRequest("field required", f"{at}.schema")
    grammar.check_schema(form.schema, f"{at}.schema")
    request.response_format = conversation.json_format(form.schema, traits)


def _read_effort(config: _OutputConfig | None, request: Request, traits: Traits) -> None:
    if config is not None and config.effort is not None:
        request.reasoning_effort = traits.effort.get(config.effort)


def _read_thinking(
    thinking: _Thinking | None, client_limit: int | None, max_tokens: int | None, request: Request, traits: Traits
) -> None:
    """Apply the thinking settings; adaptive and unknown types are the model's default."""
    if thinking is None:
        return
    if thinking.type == "disabled":
        conversation.stop_thinking(request, traits)
    if thinking.type != "enabled":
        return
    budget, at = thinking.budget_tokens, "thinking.budget_tokens"
    if budget is None:
        raise BadRequest("field required", at)
    if budget < _SMALLEST_BUDGET:
        raise BadRequest(f"expected at least {_SMALLEST_BUDGET}", at)
    if client_limit and budget >= client_limit:
        raise BadRequest("expected less than max_tokens", at)
    if max_tokens is not None:
        budget = min(budget, max(1, max_tokens - 1))
    conversation.budget_thinking(request, budget, traits)


def session_of(metadata: object) -> str | None:
    """Return the client's session; Claude Code's user id is a JSON string that contains it."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str) or not user:
        return None
    try:
        session: object = msgspec.json.decode(user)
    except (msgspec.DecodeError, RecursionError):
        return user
    session_id = session.get("session_id") if isinstance(session, dict) else None
    return session_id if isinstance(session_id, str) and session_id else user
