"""An Anthropic Messages request as a conversation for a worker.

Settings that only Anthropic's own machines know (caching, containers, tiers, betas) are accepted and dropped. A
setting that would change the answer and cannot be honoured is refused, with the name of its field.
"""

from typing import Annotated, Any

import msgspec

from cortex.functions.passing import FIELDS
from cortex.router.dialects import gate
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.conversation import Assistant, Request, Upstream
from cortex.router.dialects.core.conversation_builder import ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.stream import TranslatedStream
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import answer as messages_answer
from cortex.router.dialects.messages.answer import Answer
from cortex.router.dialects.messages.content import Blocks, Reader
from cortex.router.dialects.messages.stream import MessagesMachine
from cortex.router.dialects.messages.tools import Choice, choose

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


class _Wire(msgspec.Struct):
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


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was understood. `notes` are for the log: what was dropped on the way."""

    model: str
    stream: bool
    max_tokens: int | None
    upstream: Upstream
    stop_sequences: tuple[str, ...] = ()
    context_window: int | None = None
    prewarm: bool = False
    affinity: str | None = None
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    limit_is_ours: bool = False
    choices: int = 1

    def body(self, model: str, max_tokens: int | None = None) -> bytes:
        """What to send; `max_tokens` replaces what the client asked for."""
        return self.upstream.body(model, max_tokens)

    def count(self, model: str) -> bytes:
        """What to send to a worker that only counts or templates the prompt."""
        return self.upstream.count(model)

    def answer(self, id: str, created: int, input_tokens: int | None = None) -> "Reply":
        """How to answer it. `id` is the unique part of every id in the answer."""
        return Reply(
            answer=Answer(
                id=id,
                model=self.model,
                max_tokens=self.max_tokens,
                stop_sequences=self.stop_sequences,
                context_window=self.context_window,
                input_tokens=input_tokens,
                prewarm=self.prewarm,
            )
        )


class Reply(msgspec.Struct, frozen=True):
    answer: Answer

    def plain(self, body: bytes) -> Plain:
        return messages_answer.plain(self.answer, body)

    def stream(self, request_id: str | None = None) -> TranslatedStream:
        return TranslatedStream(MessagesMachine(self.answer, request_id))


@wire.parser
def read(body: bytes, traits: Traits) -> MessagesRequest:
    """A request to `/v1/messages`; raises `BadRequest`."""
    said = wire.read(body, _Wire)
    if said.max_tokens is None:
        raise BadRequest("field required", "max_tokens")
    return _asked(said, traits, msgspec.json.decode(body, type=gate.Fields))


@wire.parser
def read_count(body: bytes, traits: Traits) -> MessagesRequest:
    """A request to `/v1/messages/count_tokens`: the same prompt, and nothing to answer."""
    return _asked(wire.read(body, _Wire), traits, msgspec.json.decode(body, type=gate.Fields))


_TAKEN = FIELDS["openai"]["messages"] | set(_Wire.__struct_fields__)


def _asked(said: _Wire, traits: Traits, fields: gate.Fields) -> MessagesRequest:
    if not said.model:
        raise BadRequest("expected a name", "model")
    prewarm = said.max_tokens == 0
    max_tokens = 1 if prewarm else traits.output_tokens(said.max_tokens)
    thread = ConversationBuilder(traits)
    reader = Reader(traits, thread)
    reader.system(said.system, "system")
    _read_turns(said.messages, reader)
    if said.tools:
        said.tools = grammar.fit(said.tools, fields["tools"]) or said.tools
    tools = choose(said.tools, said.tool_choice, reader.referenced, traits, reader.notes)
    stops = tuple(stop for stop in said.stop_sequences or () if stop)
    gate.check_length("stop_sequences", len(stops))
    request = Request(
        messages=thread.messages(),
        tools=tools.tools,
        tool_choice=tools.choice,
        parallel_tool_calls=tools.parallel,
        stop=list(stops) or None,
        temperature=said.temperature,
        top_p=said.top_p,
        top_k=said.top_k,
        stream=bool(said.stream),
        stream_options={"include_usage": True} if said.stream else None,
    )
    _read_format(said, request, traits)
    _read_effort(said.output_config, request, traits)
    _read_thinking(said.thinking, said.max_tokens, max_tokens, request, traits)
    _prefill(request, traits)
    conversation.fill_in(request, traits.sampling)
    return MessagesRequest(
        model=said.model,
        stream=bool(said.stream),
        max_tokens=max_tokens,
        upstream=conversation.upstream(request, max_tokens),
        stop_sequences=stops,
        context_window=traits.context_window,
        prewarm=prewarm,
        affinity=session_of(said.metadata),
        notes=tuple(reader.notes),
        dropped=(*gate.unused(fields, _TAKEN), *gate.places(reader.notes)),
    )


def _read_turns(messages: list[dict[str, Any]], reader: Reader) -> None:
    if not messages:
        raise BadRequest("at least one message is required", "messages")
    for index, one in enumerate(messages):
        at = f"messages[{index}]"
        message = wire.shaped(one, _Message, at)
        match message.role:
            case "user":
                reader.user(message.content, f"{at}.content")
            case "assistant":
                reader.assistant(message.content, f"{at}.content")
            case "system":
                reader.system(message.content, f"{at}.content")
            case _:
                raise BadRequest("expected user, assistant or system", f"{at}.role")


def _read_format(said: _Wire, request: Request, traits: Traits) -> None:
    config = said.output_config
    wanted, at = said.output_format, "output_format"
    if config is not None and config.format is not None:
        wanted, at = config.format, "output_config.format"
    if wanted is None:
        return
    if wanted.type != "json_schema":
        raise BadRequest("expected json_schema", f"{at}.type")
    if wanted.schema is None:
        raise BadRequest("field required", f"{at}.schema")
    grammar.check_schema(wanted.schema, f"{at}.schema")
    request.response_format = conversation.json_format(wanted.schema, traits)


def _read_effort(config: _OutputConfig | None, request: Request, traits: Traits) -> None:
    if config is not None and config.effort is not None:
        request.reasoning_effort = traits.effort.get(config.effort)


def _read_thinking(
    thinking: _Thinking | None, asked: int | None, max_tokens: int | None, request: Request, traits: Traits
) -> None:
    """Thinking that is adaptive, or of a kind we do not know yet, is what models do anyway."""
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
    if asked and budget >= asked:
        raise BadRequest("expected less than max_tokens", at)
    if max_tokens is not None:
        budget = min(budget, max(1, max_tokens - 1))
    conversation.budget_thinking(request, budget, traits)


def _prefill(request: Request, traits: Traits) -> None:
    """An answer that the client has begun is continued, not answered."""
    last = request.messages[-1] if request.messages else None
    if not isinstance(last, Assistant) or last.tool_calls or not last.content:
        return
    if not traits.prefill:
        raise BadRequest("the last message is the assistant's; this model cannot continue it", "messages")
    request.continue_final_message, request.add_generation_prompt = True, False


def session_of(metadata: object) -> str | None:
    """Who is talking: Claude Code's user id is JSON in a string, with the session inside."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str) or not user:
        return None
    try:
        session: object = msgspec.json.decode(user)
    except (msgspec.DecodeError, RecursionError):
        return user
    found = session.get("session_id") if isinstance(session, dict) else None
    return found if isinstance(found, str) and found else user
