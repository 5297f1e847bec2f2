"""An OpenAI Responses request as a conversation for a worker.

Stateless: what would need an earlier answer to be stored here is refused by name. What only decides how OpenAI
runs its own machines is accepted, and repeated in the answer where its type demands it.
"""

from typing import Annotated, Any

import msgspec

from cortex.functions.passing import FIELDS
from cortex.router.dialects import gate
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.conversation import Request, TextPart, Upstream
from cortex.router.dialects.core.conversation_builder import ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.stream import TranslatedStream
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.responses import answer as responses_answer
from cortex.router.dialects.responses.answer import Answer, Echo
from cortex.router.dialects.responses.input import Reader
from cortex.router.dialects.responses.stream import ResponsesMachine
from cortex.router.dialects.responses.tools import Declared, Tools

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


class _Wire(msgspec.Struct):
    model: str
    input: str | list[dict[str, Any]]
    instructions: str | list[dict[str, Any]] | None = None
    max_output_tokens: _Count | None = None
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
    top_p: float | None = None
    truncation: Any = None
    user: str | None = None
    # needs a memory of earlier answers, or of prompts
    background: bool | None = None
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was understood. `names` leads from a function back to the client's tool."""

    model: str
    stream: bool
    max_tokens: int | None
    upstream: Upstream
    names: dict[str, Declared]
    echo: Echo
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
            Answer(
                id=id,
                created=created,
                model=self.model,
                names=self.names,
                echo=self.echo,
                input_tokens=input_tokens,
            )
        )


class Reply(msgspec.Struct, frozen=True):
    answer: Answer

    def plain(self, body: bytes) -> Plain:
        return responses_answer.plain(self.answer, body)

    def stream(self, request_id: str | None = None) -> TranslatedStream:
        return TranslatedStream(ResponsesMachine(self.answer))


_TAKEN = FIELDS["openai"]["responses"] | set(_Wire.__struct_fields__) | {"client_metadata"}


@wire.parser
def read(body: bytes, traits: Traits) -> ResponsesRequest:
    """A request to `/v1/responses`; raises `BadRequest`."""
    said = wire.read(body, _Wire)
    _refuse_memory(said)
    if not said.model:
        raise BadRequest("expected a name", "model")
    tools = Tools(traits)
    fields = msgspec.json.decode(body, type=gate.Fields)
    if said.tools:
        said.tools = grammar.fit(said.tools, fields["tools"]) or said.tools
    tools.declare(said.tools or [])
    tools.choose(said.tool_choice)
    thread = ConversationBuilder(traits)
    reader = Reader(traits, thread, tools)
    _read_input(said, thread, reader)
    request = Request(
        messages=thread.messages(),
        tools=tools.functions or None,
        tool_choice=tools.choice,
        parallel_tool_calls=said.parallel_tool_calls if tools.functions else None,
        temperature=said.temperature,
        top_p=said.top_p,
        response_format=_format(said.text, traits),
        stream=bool(said.stream),
        stream_options={"include_usage": True} if said.stream else None,
    )
    _read_effort(said.reasoning, request, traits)
    conversation.fill_in(request, traits.sampling)
    max_tokens = traits.output_tokens(said.max_output_tokens)
    return ResponsesRequest(
        model=said.model,
        stream=bool(said.stream),
        max_tokens=max_tokens,
        upstream=conversation.upstream(request, max_tokens),
        names=tools.names,
        echo=_echo(said),
        affinity=said.prompt_cache_key or said.user,
        notes=(*tools.notes, *reader.notes),
        dropped=(*gate.unused(fields, _TAKEN), *gate.places((*tools.notes, *reader.notes))),
        limit_is_ours=said.max_output_tokens is None,
    )


def _refuse_memory(said: _Wire) -> None:
    for name in ("previous_response_id", "conversation", "prompt", "background"):
        if getattr(said, name):
            raise BadRequest("not supported: answers are not stored here", name, Kind.UNSUPPORTED)


def _read_input(said: _Wire, thread: ConversationBuilder, reader: Reader) -> None:
    if isinstance(said.instructions, str):
        thread.system(said.instructions)
    for index, item in enumerate(said.instructions if isinstance(said.instructions, list) else ()):
        reader.item(item, f"instructions[{index}]")
    if isinstance(said.input, str):
        thread.user([TextPart(said.input)] if said.input else [])
        return
    if not said.input:
        raise BadRequest("at least one item is required", "input")
    for index, item in enumerate(said.input):
        reader.item(item, f"input[{index}]")


def _format(text: _Text | None, traits: Traits) -> dict[str, Any] | None:
    wanted = text.format if text is not None else None
    match wanted.type if wanted is not None else "text":
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema" if wanted is not None:
            if wanted.schema is None:
                raise BadRequest("field required", "text.format.schema")
            grammar.check_schema(wanted.schema, "text.format.schema")
            return conversation.json_format(wanted.schema, traits, wanted.name or "answer", wanted.strict)
        case _:
            raise BadRequest("expected text, json_object or json_schema", "text.format.type")


def _read_effort(reasoning: _Reasoning | None, request: Request, traits: Traits) -> None:
    if reasoning is None or reasoning.effort is None:
        return
    if reasoning.effort == "none":
        conversation.stop_thinking(request, traits)
        return
    request.reasoning_effort = traits.effort.get(reasoning.effort)


def _echo(said: _Wire) -> Echo:
    """What the answer repeats; the parts that nobody reads again are kept as JSON."""
    return Echo(
        instructions=_json(said.instructions),
        max_output_tokens=said.max_output_tokens,
        metadata=said.metadata or {},
        parallel_tool_calls=said.parallel_tool_calls is not False,
        prompt_cache_key=said.prompt_cache_key,
        reasoning=_json(said.reasoning),
        safety_identifier=said.safety_identifier,
        temperature=said.temperature,
        text=_json(said.text or {"format": {"type": "text"}}),
        tool_choice=_json(said.tool_choice or "auto"),
        tools=_json(said.tools or []),
        top_p=said.top_p,
        truncation=said.truncation if said.truncation in ("auto", "disabled") else "disabled",
        user=said.user,
    )


def _json(value: object) -> msgspec.Raw:
    return msgspec.Raw(wire.text_of(value).encode())
