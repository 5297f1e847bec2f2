"""A worker's chat answer as an Anthropic message: the structs on the wire, and the rules that fill them.

Both the plain answer and the stream are made of the same blocks, the same usage and the same reason to stop, so
what a client accumulates from the stream is what it would have got in one piece.
"""

from typing import Literal

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Ending, Plain, Tokens
from cortex.router.dialects.core.content_blocks import Block, blocks_of
from cortex.router.dialects.core.errors import BadAnswer

# Clients send thoughts back only with a signature. Ours proves nothing; any is accepted.
SIGNATURE = "cortex"


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class OutputDetails(msgspec.Struct):
    thinking_tokens: int


class Usage(msgspec.Struct, omit_defaults=True):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails | None = None


class Message(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None = None
    usage: Usage


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What of the request the answer depends on. `id` is unique; everything else in it is made from that."""

    id: str
    model: str
    max_tokens: int | None = None
    stop_sequences: tuple[str, ...] = ()
    context_window: int | None = None
    input_tokens: int | None = None
    prewarm: bool = False

    def message(self, content: list[ContentBlock], stop: tuple[str | None, str | None], used: Tokens) -> Message:
        return Message(
            id=f"msg_{self.id}",
            model=self.model,
            content=content,
            stop_reason=stop[0],
            stop_sequence=stop[1],
            usage=usage(used),
        )


def plain(answer: Answer, body: bytes) -> Plain:
    """The worker's whole answer, translated; raises `BadAnswer`."""
    completion = chunks.decode(body)
    choice = completion.choices[0] if completion.choices else None
    if choice is None or choice.message is None:
        raise BadAnswer("the worker's answer holds no message")
    ending = chunks.ending(completion, choice)
    if ending is None:
        raise chunks.truncated()
    used = chunks.tokens(completion.usage, answer.input_tokens)
    if answer.prewarm:
        used = msgspec.structs.replace(used, output=0, reasoning=None)
        message = answer.message([], ("max_tokens", None), used)
    else:
        blocks = blocks_of(choice.message, answer.id)
        content = [content_block(block) for block in blocks]
        stopped = stop(answer, blocks, ending, used)
        note = note_of_broken_calls(blocks, stopped[0])
        if note or not content:
            content.append(TextBlock(note))
        message = answer.message(content, stopped, used)
    return Plain(msgspec.json.encode(message), used)


def content_block(block: Block) -> ContentBlock:
    if block.kind == "thinking":
        return ThinkingBlock(block.text, SIGNATURE)
    if block.kind == "call":
        return ToolUseBlock(block.id, block.name, msgspec.Raw(block.arguments.json()))
    return TextBlock(block.text)


def usage(used: Tokens) -> Usage:
    """Anthropic counts what came from the cache apart from the rest of the prompt."""
    return Usage(
        input_tokens=max(0, used.input - used.cached - used.written),
        cache_creation_input_tokens=used.written,
        cache_read_input_tokens=used.cached,
        output_tokens=used.output,
        output_tokens_details=None if used.reasoning is None else OutputDetails(used.reasoning),
    )


def stop(answer: Answer, blocks: list[Block], ending: Ending, used: Tokens) -> tuple[str | None, str | None]:
    """Why the answer stopped, and at which stop sequence.

    (1) length: the window was full, or the limit that the client gave
    (2) a filter, or the model itself, refused
    (3) the worker named the stop sequence
    (4) it stopped inside a call, which only a stop sequence does: that call must not run
    (5) there are calls, whatever the worker says (a named choice ends in "stop")
    (6) the model had said everything
    """
    finish, word = ending.finish, ending.stop_string
    if finish == "length":  # (1)
        return ("model_context_window_exceeded" if _window_is_full(answer, used) else "max_tokens"), None
    if finish == "content_filter" or any(block.kind == "refusal" for block in blocks):  # (2)
        return "refusal", None
    if word is not None:  # (3)
        return "stop_sequence", word
    calls = [block for block in blocks if block.kind == "call"]
    if finish == "stop" and answer.stop_sequences and any(call.arguments.cut for call in calls):  # (4)
        known = answer.stop_sequences[0] if len(answer.stop_sequences) == 1 else None
        return "stop_sequence", known
    if calls:  # (5)
        return "tool_use", None
    return "end_turn", None  # (6)


def _window_is_full(answer: Answer, used: Tokens) -> bool:
    if not answer.context_window or not used.output:
        return False
    if answer.max_tokens is not None and used.output >= answer.max_tokens:
        return False
    return used.input + used.output >= answer.context_window


def note_of_broken_calls(blocks: list[Block], stop_reason: str | None) -> str:
    """A word to whoever runs the calls, when arguments that should be whole are not JSON."""
    if stop_reason != "tool_use":
        return ""
    names = [block.name for block in blocks if block.kind == "call" and not block.arguments.intact]
    return "".join(f"[The arguments of {name} were not valid JSON; they were cut.]" for name in names)
