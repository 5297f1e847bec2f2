"""Translate an OpenAI Responses request into a conversation for a worker.

Stateless: fields that need stored answers are refused by name. Settings of OpenAI's own service are accepted, and
repeated in the answer where its type requires them.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from cortex.functions.passing import FIELDS
from cortex.router.dialects import gate
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.conversation import Request, TextPart, TranslatedRequest
from cortex.router.dialects.core.conversation_builder import ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.stream import TranslatedStream
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.responses import answer as responses_answer
from cortex.router.dialects.responses.answer import Answer, Echo
from cortex.router.dialects.responses.input import Reader
from cortex.router.dialects.responses.stored import State
from cortex.router.dialects.responses.stream import ResponsesMachine
from cortex.router.dialects.responses.tools import ToolDeclaration, Tools

_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: Any = None


class _Format(msgspec.Struct, omit_defaults=True):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None


class _Params(msgspec.Struct):
    model: str
    input: str | list[dict[str, Any]]
    instructions: str | list[dict[str, Any]] | None = None
    max_output_tokens: _Count | None = None
    max_tool_calls: Any = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    reasoning: _Reasoning | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    text: _Text | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: Any = None
    top_p: float | None = None
    truncation: Any = None
    user: str | None = None
    # need stored answers or prompts
    background: bool | None = None
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None


class ResponsesRequest(TranslatedRequest, frozen=True, kw_only=True):
    """A parsed request. `names` maps a function's name to the client's tool."""

    names: dict[str, ToolDeclaration]
    echo: Echo
    limit_field: str = "max_output_tokens"

    def answer(self, id: str, created: int) -> "Reply":
        """Return the reply; `id` is the unique part of every id in the answer."""
        return Reply(
            Answer(
                id=id,
                created=created,
                model=self.model,
                names=self.names,
                echo=self.echo,
            )
        )


class Reply(msgspec.Struct, frozen=True):
    answer: Answer

    def with_clock(self, clock: Callable[[], float]) -> "Reply":
        """Return the reply with a clock for `completed_at`."""
        return Reply(msgspec.structs.replace(self.answer, clock=clock))

    def with_state(self, state: State) -> "Reply":
        """Return the reply to a request whose answer is stored."""
        echo = msgspec.structs.replace(
            self.answer.echo,
            store=True,
            background=state.background,
            previous_response_id=state.previous_response_id,
            conversation={"id": state.conversation} if state.conversation else msgspec.UNSET,
        )
        return Reply(msgspec.structs.replace(self.answer, echo=echo))

    def with_limit(self, max_tokens: int | None, input_tokens: int | None) -> "Reply":
        """Return the reply to the request with the tokens of its prompt."""
        return Reply(msgspec.structs.replace(self.answer, input_tokens=input_tokens))

    def plain(self, body: bytes) -> Plain:
        return responses_answer.plain(self.answer, body)

    def stream(self, request_id: str | None = None) -> TranslatedStream:
        return TranslatedStream(ResponsesMachine(self.answer))


_USED = FIELDS["openai"]["responses"] | set(_Params.__struct_fields__) | {"client_metadata"}


@wire.parser
def read(body: bytes, traits: Traits) -> ResponsesRequest:
    """Parse a request to `/v1/responses`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Params)
    _refuse_stateful(params)
    if not params.model:
        raise BadRequest("expected a name", "model")
    tools = Tools(traits)
    if params.tools:
        params.tools = grammar.fit(params.tools, fields["tools"]) or params.tools
    tools.declare(params.tools or [])
    tools.choose(params.tool_choice)
    builder = ConversationBuilder(traits)
    reader = Reader(traits, builder, tools)
    _read_input(params, builder, reader)
    request = Request(
        messages=builder.messages(),
        tools=tools.functions or None,
        tool_choice=tools.choice,
        parallel_tool_calls=params.parallel_tool_calls if tools.functions else None,
        temperature=params.temperature,
        top_p=params.top_p,
        response_format=_format(params.text, traits),
        stream=bool(params.stream),
        stream_options={"include_usage": True} if params.stream else None,
    )
    _read_effort(params.reasoning, request, traits)
    conversation.fill_in(request, traits)
    max_tokens = traits.output_tokens(params.max_output_tokens)
    return ResponsesRequest(
        model=params.model,
        stream=bool(params.stream),
        max_tokens=max_tokens,
        upstream=conversation.upstream(request, max_tokens),
        names=tools.names,
        echo=_echo(params, request),
        affinity=params.prompt_cache_key or params.user,
        dropped=(*gate.unused_fields(fields, _USED), *tools.dropped, *reader.dropped),
        limit_is_ours=params.max_output_tokens is None,
    )


def _refuse_stateful(params: _Params) -> None:
    if params.prompt:
        raise BadRequest("not supported: no prompts are stored here", "prompt", Kind.UNSUPPORTED)
    for name in ("previous_response_id", "conversation", "background"):
        if getattr(params, name):
            raise BadRequest("not supported: answers are not stored", name, Kind.UNSUPPORTED)


def _read_input(params: _Params, builder: ConversationBuilder, reader: Reader) -> None:
    if isinstance(params.instructions, str):
        builder.system(params.instructions)
    for index, item in enumerate(params.instructions if isinstance(params.instructions, list) else ()):
        reader.item(item, f"instructions[{index}]")
    if isinstance(params.input, str):
        builder.user([TextPart(params.input)] if params.input else [])
        return
    if not params.input:
        raise BadRequest("at least one item is required", "input")
    for index, item in enumerate(params.input):
        reader.item(item, f"input[{index}]")


def _format(text: _Text | None, traits: Traits) -> dict[str, Any] | None:
    form = text.format if text is not None else None
    match form.type if form is not None else "text":
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema" if form is not None:
            if form.schema is None:
                raise BadRequest("field required", "text.format.schema")
            grammar.check_schema(form.schema, "text.format.schema")
            return conversation.json_format(form.schema, traits, form.name or "answer", form.strict)
        case _:
            raise BadRequest("expected text, json_object or json_schema", "text.format.type")


def _read_effort(reasoning: _Reasoning | None, request: Request, traits: Traits) -> None:
    if reasoning is None or reasoning.effort is None:
        return
    if reasoning.effort == "none":
        conversation.stop_thinking(request, traits)
        return
    request.reasoning_effort = traits.effort.get(reasoning.effort)


def _echo(params: _Params, request: Request) -> Echo:
    """Return the fields that the answer repeats; nested ones stay encoded. A number that the schema requires is the one
    that the worker gets, or OpenAI's default."""
    return Echo(
        instructions=_json(params.instructions),
        max_output_tokens=params.max_output_tokens,
        max_tool_calls=params.max_tool_calls if isinstance(params.max_tool_calls, int) else None,
        metadata=params.metadata or {},
        parallel_tool_calls=params.parallel_tool_calls is not False,
        prompt_cache_key=params.prompt_cache_key,
        reasoning=_json(params.reasoning),
        safety_identifier=params.safety_identifier,
        temperature=1.0 if request.temperature is None else request.temperature,
        text=_json(params.text or {"format": {"type": "text"}}),
        tool_choice=_json(params.tool_choice or "auto"),
        tools=_json([_complete(tool) for tool in params.tools or []]),
        top_logprobs=params.top_logprobs if isinstance(params.top_logprobs, int) else 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        truncation=params.truncation if params.truncation in ("auto", "disabled") else "disabled",
        user=params.user,
    )


def _complete(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with the keys that the answer's schema requires of a function."""
    if tool.get("type", "function") != "function":
        return tool
    return {"type": "function", "description": None, "parameters": None, "strict": None, **tool}


def _json(value: object) -> msgspec.Raw:
    return msgspec.Raw(wire.text_of(value).encode())
