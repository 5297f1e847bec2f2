"""A worker's chat stream as Anthropic events. Chunks in, lists of events out, one block open at a time.

    message_start  ping  (content_block_start  content_block_delta*  content_block_stop)*
    message_delta  message_stop

`message_start` goes out when the first chunk arrives, or earlier when someone has to be told that we live. After
a fault there is one `error` event and nothing else: no block is closed, no `message_stop` makes it look whole.
"""

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Chunk, Ending, Tokens
from cortex.router.dialects.core.content_blocks import Block, Grow, Open, Sequencer, Step
from cortex.router.dialects.core.errors import AnthropicError, Fault, anthropic_error
from cortex.router.dialects.messages.answer import (
    SIGNATURE,
    Answer,
    ContentBlock,
    Message,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    Usage,
    note_of_broken_calls,
    stop,
    usage,
)


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: Message


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    pass


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: ContentBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class Stopped(msgspec.Struct):
    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: Stopped
    usage: Usage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass


Event = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | AnthropicError


class MessagesMachine:
    def __init__(self, answer: Answer, request_id: str | None = None) -> None:
        self._answer = answer
        self._request_id = request_id
        self._sequencer = Sequencer(answer.id)
        self._started = False
        self._ending: Ending | None = None
        self._usage: chunks.Usage | None = None

    @property
    def tokens(self) -> Tokens:
        used = chunks.tokens(self._usage, self._answer.input_tokens)
        return msgspec.structs.replace(used, output=0, reasoning=None) if self._answer.prewarm else used

    def open(self) -> list[Event]:
        """The beginning, once."""
        if self._started:
            return []
        self._started = True
        known = Tokens(input=self._answer.input_tokens or 0)
        return [MessageStart(self._answer.message([], (None, None), known)), Ping()]

    def feed(self, chunk: Chunk) -> list[Event]:
        self._usage = chunk.usage or self._usage
        choice = chunks.choice_of(chunk)
        if choice is None:
            return []
        self._ending = chunks.ending(chunk, choice) or self._ending
        if choice.delta is None or self._answer.prewarm:
            return []
        return self._say(self._sequencer.feed(choice.delta))

    def close(self) -> list[Event]:
        """The end; raises `BadAnswer` where the worker never said that it was one."""
        if self._ending is None:
            raise chunks.truncated()
        used = self.tokens
        if self._answer.prewarm:
            return [MessageDelta(Stopped("max_tokens", None), usage(used)), MessageStop()]
        events = self._say(self._sequencer.close())
        blocks = self._sequencer.blocks
        stopped = Stopped(*stop(self._answer, blocks, self._ending, used))
        note = note_of_broken_calls(blocks, stopped.stop_reason)
        if note or not blocks:
            events += _text_block(len(blocks), note)
        return [*events, MessageDelta(stopped, usage(used)), MessageStop()]

    def ping(self) -> list[Event]:
        return self.open() or [Ping()]

    def fail(self, fault: Fault) -> list[Event]:
        return [anthropic_error(fault, self._request_id)]

    def _say(self, steps: list[Step]) -> list[Event]:
        events: list[Event] = []
        for step in steps:
            block = step.block
            if isinstance(step, Grow):
                if step.safe:
                    events.append(_grown(block, step.safe))
            elif isinstance(step, Open):
                events.append(BlockStart(block.index, _begun(block)))
            else:
                events += _ended(block)
        return events


def _begun(block: Block) -> ContentBlock:
    if block.kind == "thinking":
        return ThinkingBlock("", "")
    if block.kind == "call":
        return ToolUseBlock(block.id, block.name, msgspec.Raw(b"{}"))
    return TextBlock("")


def _grown(block: Block, text: str) -> BlockDelta:
    if block.kind == "thinking":
        return BlockDelta(block.index, ThinkingDelta(text))
    if block.kind == "call":
        return BlockDelta(block.index, InputDelta(text))
    return BlockDelta(block.index, TextDelta(text))


def _ended(block: Block) -> list[Event]:
    if block.kind == "thinking":
        return [BlockDelta(block.index, SignatureDelta(SIGNATURE)), BlockStop(block.index)]
    if block.kind == "call" and block.arguments.silent:
        return [BlockDelta(block.index, InputDelta("")), BlockStop(block.index)]
    return [BlockStop(block.index)]


def _text_block(index: int, text: str) -> list[Event]:
    events: list[Event] = [BlockStart(index, TextBlock("")), BlockStop(index)]
    if text:
        events.insert(1, BlockDelta(index, TextDelta(text)))
    return events
