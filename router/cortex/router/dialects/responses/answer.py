"""A worker's chat answer as a Responses object: the structs, and the rules that fill them.

One function makes an item from a block, for the stream and the plain answer alike, with an id from the answer's id and
the item's position, so an item is the same wherever it appears.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Ending, Plain, Tokens
from cortex.router.dialects.core.content_blocks import Block, blocks_of
from cortex.router.dialects.responses.tools import ToolDeclaration

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
"""The first and the last are those of stored responses alone."""
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()


class Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText | Refusal]


class Reasoning(msgspec.Struct, tag_field="type", tag="reasoning", kw_only=True):
    id: str
    status: ItemStatus
    summary: tuple[()] = ()
    content: list[ReasoningText]


class FunctionCall(msgspec.Struct, tag_field="type", tag="function_call", kw_only=True, omit_defaults=True):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomCall(msgspec.Struct, tag_field="type", tag="custom_tool_call", kw_only=True, omit_defaults=True):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    namespace: str | None = None
    input: str


Item = OutputMessage | Reasoning | FunctionCall | CustomCall
Content = OutputText | Refusal | ReasoningText


class InputDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Failure(msgspec.Struct):
    code: str
    message: str


class Incomplete(msgspec.Struct):
    reason: Literal["max_output_tokens", "content_filter"]


class Echo(msgspec.Struct, kw_only=True, frozen=True):
    """The request's fields that an answer repeats."""

    instructions: msgspec.Raw
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    prompt_cache_key: str | None
    reasoning: msgspec.Raw
    safety_identifier: str | None
    temperature: float
    text: msgspec.Raw
    tool_choice: msgspec.Raw
    tools: msgspec.Raw
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None
    background: bool = False
    frequency_penalty: float
    presence_penalty: float
    service_tier: str = "default"
    previous_response_id: str | None = None
    conversation: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    store: bool = False


class Response(Echo, tag_field="object", tag="response", kw_only=True, frozen=True):
    id: str
    created_at: int
    completed_at: int | None
    status: Status
    model: str
    output: list[Item]
    error: Failure | None
    incomplete_details: Incomplete | None
    usage: Usage | None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The request's data that the answer depends on."""

    id: str
    created: int
    model: str
    names: dict[str, ToolDeclaration]
    echo: Echo
    input_tokens: int | None = None
    clock: Callable[[], float] | None = None
    """Seconds since the epoch; without it, an answer has the time of its request."""

    def response(
        self,
        status: Status,
        output: list[Item],
        *,
        tokens: Tokens | None = None,
        reason: Incomplete | None = None,
        error: Failure | None = None,
    ) -> Response:
        return Response(
            id=f"resp_{self.id}",
            created_at=self.created,
            completed_at=(int(self.clock()) if self.clock else self.created) if status == "completed" else None,
            status=status,
            model=self.model,
            output=output,
            error=error,
            incomplete_details=reason,
            usage=None if tokens is None else usage(tokens),
            **msgspec.structs.asdict(self.echo),
        )


def plain(answer: Answer, body: bytes) -> Plain:
    """Translate the worker's whole answer. Raises `BadAnswer`."""
    completion, reply, ending = chunks.decode_whole(body)
    tokens = chunks.tokens(completion.usage, answer.input_tokens)
    blocks = blocks_of(reply, answer.id) or [empty_block()]
    status, reason = outcome(ending)
    output = [item(answer, block, "completed") for block in blocks[:-1]]
    output.append(item(answer, blocks[-1], item_status(ending)))
    return Plain(msgspec.json.encode(answer.response(status, output, tokens=tokens, reason=reason)), tokens)


def empty_block() -> Block:
    """Return the empty text block of an answer without content."""
    block = Block("text")
    block.index = 0
    return block


def outcome(ending: Ending) -> tuple[Literal["completed", "incomplete"], Incomplete | None]:
    if ending.finish == "length":
        return "incomplete", Incomplete("max_output_tokens")
    if ending.finish == "content_filter":
        return "incomplete", Incomplete("content_filter")
    return "completed", None


def item_status(ending: Ending) -> ItemStatus:
    """Return the status of the last item: incomplete when the answer is."""
    return outcome(ending)[0]


def item(answer: Answer, block: Block, status: ItemStatus) -> Item:
    """Return a block as an item; an item in progress is empty."""
    empty = status == "in_progress"
    text = "" if empty else block.text
    match block.kind:
        case "text" | "refusal":
            return OutputMessage(
                id=item_id(answer, block), status=status, content=[] if empty else [_text_part(block.kind, text)]
            )
        case "thinking":
            content = [] if empty else [ReasoningText(text)]
            return Reasoning(id=item_id(answer, block), status=status, content=content)
    declaration = answer.names.get(block.name) or ToolDeclaration(block.name)
    kind = CustomCall if declaration.custom else FunctionCall
    payload = {"input": "" if empty else free_text(block)} if declaration.custom else {}
    if not declaration.custom:
        payload = {"arguments": "" if empty else arguments(block)}
    return kind(
        id=item_id(answer, block),
        status=status,
        call_id=block.id,
        name=declaration.name,
        namespace=declaration.namespace,
        **payload,
    )


def item_id(answer: Answer, block: Block) -> str:
    match block.kind:
        case "text" | "refusal":
            kind = "msg"
        case "thinking":
            kind = "rs"
        case "call":
            declaration = answer.names.get(block.name)
            kind = "ctc" if declaration is not None and declaration.custom else "fc"
    return f"{kind}_{answer.id}_{block.index}"


def _text_part(kind: str, text: str) -> OutputText | Refusal:
    return Refusal(text) if kind == "refusal" else OutputText(text)


def empty_part(block: Block) -> Content | None:
    """Return the empty first part of a text or reasoning item; None for a call."""
    if block.kind == "call":
        return None
    return ReasoningText("") if block.kind == "thinking" else _text_part(block.kind, "")


def arguments(block: Block) -> str:
    """Return the arguments as the worker sent them, valid or not; "{}" for none."""
    return "{}" if block.arguments.is_empty and block.arguments.intact else block.text


def free_text(block: Block) -> str:
    """Return a custom tool's input, extracted from the worker's JSON arguments."""
    try:
        value = msgspec.json.decode(block.arguments.json())
    except (msgspec.DecodeError, RecursionError):
        return block.text
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else block.text


def usage(tokens: Tokens) -> Usage:
    return Usage(
        input_tokens=tokens.input,
        input_tokens_details=InputDetails(tokens.cached, tokens.written),
        output_tokens=tokens.output,
        output_tokens_details=OutputDetails(tokens.reasoning or 0),
        total_tokens=tokens.input + tokens.output,
    )
