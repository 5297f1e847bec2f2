"""A worker's chat answer as an Anthropic message: the structs, and the rules that fill them.

The plain answer and the stream use the same blocks, usage and stop reason, so a client accumulates the same message
from either.
"""

from typing import Literal

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Ending, Plain, Tokens
from cortex.router.dialects.core.content_blocks import Block, blocks_of

# Clients return thinking only with a signature. This one is a constant; any signature is accepted.
SIGNATURE = "cortex"


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class DirectCaller(msgspec.Struct, frozen=True, tag_field="type", tag="direct"):
    """The model called the tool itself, not from code that it ran."""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw
    caller: DirectCaller = DirectCaller()


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class OutputDetails(msgspec.Struct):
    thinking_tokens: int


class Usage(msgspec.Struct):
    """With every key that Anthropic's schema requires; null for what a worker does not tell."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails | None = None
    cache_creation: None = None
    inference_geo: None = None
    server_tool_use: None = None
    service_tier: None = None


class Message(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None = None
    container: None = None
    usage: Usage


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The request's data that the answer depends on. All ids in the answer derive from `id`."""

    id: str
    model: str
    max_tokens: int | None = None
    stop_sequences: tuple[str, ...] = ()
    context_window: int | None = None
    input_tokens: int | None = None
    prewarm: bool = False

    def message(self, content: list[ContentBlock], stop: tuple[str | None, str | None], tokens: Tokens) -> Message:
        return Message(
            id=f"msg_{self.id}",
            model=self.model,
            content=content,
            stop_reason=stop[0],
            stop_sequence=stop[1],
            usage=usage(tokens),
        )


def plain(answer: Answer, body: bytes) -> Plain:
    """Translate the worker's whole answer. Raises `BadAnswer`."""
    completion, reply, ending = chunks.decode_whole(body)
    tokens = chunks.tokens(completion.usage, answer.input_tokens)
    if answer.prewarm:
        tokens = msgspec.structs.replace(tokens, output=0, reasoning=None)
        message = answer.message([], ("max_tokens", None), tokens)
    else:
        blocks = blocks_of(reply, answer.id)
        content = [content_block(block) for block in blocks]
        stop_info = stop(answer, blocks, ending, tokens)
        note = invalid_calls_note(blocks, stop_info[0])
        if note or not content:
            content.append(TextBlock(note))
        message = answer.message(content, stop_info, tokens)
    return Plain(msgspec.json.encode(message), tokens)


def content_block(block: Block) -> ContentBlock:
    if block.kind == "thinking":
        return ThinkingBlock(block.text, SIGNATURE)
    if block.kind == "call":
        return ToolUseBlock(block.id, block.name, msgspec.Raw(block.arguments.json()))
    return TextBlock(block.text)


def usage(tokens: Tokens) -> Usage:
    """Return the usage; Anthropic counts cached tokens separately from the rest of the prompt."""
    return Usage(
        input_tokens=max(0, tokens.input - tokens.cached - tokens.written),
        cache_creation_input_tokens=tokens.written,
        cache_read_input_tokens=tokens.cached,
        output_tokens=tokens.output,
        output_tokens_details=None if tokens.reasoning is None else OutputDetails(tokens.reasoning),
    )


def stop(answer: Answer, blocks: list[Block], ending: Ending, tokens: Tokens) -> tuple[str | None, str | None]:
    """Return the stop reason and the stop sequence.

    (1) length: the window or the client's limit was reached
    (2) a filter or the model refused
    (3) the worker reported a stop sequence
    (4) it stopped inside a call, which only a stop sequence causes: that call must not run
    (5) there are calls, whatever the finish reason (a named choice ends in "stop")
    (6) the model ended its turn
    """
    finish, stop_string = ending.finish, ending.stop_string
    if finish == "length":  # (1)
        return ("model_context_window_exceeded" if _window_is_full(answer, tokens) else "max_tokens"), None
    if finish == "content_filter" or any(block.kind == "refusal" for block in blocks):  # (2)
        return "refusal", None
    if stop_string is not None:  # (3)
        return "stop_sequence", stop_string
    calls = [block for block in blocks if block.kind == "call"]
    if finish == "stop" and answer.stop_sequences and any(call.arguments.truncated for call in calls):  # (4)
        sequence = answer.stop_sequences[0] if len(answer.stop_sequences) == 1 else None
        return "stop_sequence", sequence
    if calls:  # (5)
        return "tool_use", None
    return "end_turn", None  # (6)


def _window_is_full(answer: Answer, tokens: Tokens) -> bool:
    if not answer.context_window or not tokens.output:
        return False
    if answer.max_tokens is not None and tokens.output >= answer.max_tokens:
        return False
    return tokens.input + tokens.output >= answer.context_window


def invalid_calls_note(blocks: list[Block], stop_reason: str | None) -> str:
    """Return a note for the client when the arguments of complete calls are not valid JSON, else ""."""
    if stop_reason != "tool_use":
        return ""
    names = [block.name for block in blocks if block.kind == "call" and not block.arguments.intact]
    return "".join(f"[The arguments of {name} were not valid JSON; they were cut.]" for name in names)
