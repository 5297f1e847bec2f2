"""Translate a worker's chat stream into Anthropic events: chunks in, lists of events out, one block open at a time.

    message_start  ping  (content_block_start  content_block_delta*  content_block_stop)*
    message_delta  message_stop

`message_start` is sent with the first chunk, or with an earlier keep-alive. A fault sends one `error` event only: no
block is closed and no `message_stop` follows, so the message does not look complete.
"""

import msgspec

from cortex.router.dialects.core.chunks import Chunk, Tokens
from cortex.router.dialects.core.content_blocks import Block, Grow, Open, Sequencer, Step
from cortex.router.dialects.core.errors import AnthropicError, Fault, anthropic_error
from cortex.router.dialects.core.single_answer import SingleAnswer
from cortex.router.dialects.messages.answer import (
    SIGNATURE,
    Answer,
    ContentBlock,
    Message,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    Usage,
    invalid_calls_note,
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


class StopInfo(msgspec.Struct):
    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: StopInfo
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
        self._worker = SingleAnswer()

    @property
    def tokens(self) -> Tokens:
        tokens = self._worker.tokens(self._answer.input_tokens)
        return msgspec.structs.replace(tokens, output=0, reasoning=None) if self._answer.prewarm else tokens

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        self._answer = msgspec.structs.replace(self._answer, max_tokens=max_tokens, input_tokens=input_tokens)

    def open(self) -> list[Event]:
        """Return the first events; none on later calls."""
        if self._started:
            return []
        self._started = True
        tokens = Tokens(input=self._answer.input_tokens or 0)
        return [MessageStart(self._answer.message([], (None, None), tokens)), Ping()]

    def feed(self, chunk: Chunk) -> list[Event]:
        choice = self._worker.read(chunk)
        if choice is None or choice.delta is None or self._answer.prewarm:
            return []
        return self._events(self._sequencer.feed(choice.delta))

    def close(self) -> list[Event]:
        """Return the last events. Raises `BadAnswer` when the worker sent no finish reason."""
        ending, tokens = self._worker.ending(), self.tokens
        if self._answer.prewarm:
            return [MessageDelta(StopInfo("max_tokens", None), usage(tokens)), MessageStop()]
        events = self._events(self._sequencer.close())
        blocks = self._sequencer.blocks
        stop_info = StopInfo(*stop(self._answer, blocks, ending, tokens))
        note = invalid_calls_note(blocks, stop_info.stop_reason)
        if note or not blocks:
            events += _text_block(len(blocks), note)
        return [*events, MessageDelta(stop_info, usage(tokens)), MessageStop()]

    def ping(self) -> list[Event]:
        return self.open() or [Ping()]

    def fail(self, fault: Fault) -> list[Event]:
        return [anthropic_error(fault, self._request_id)]

    def _events(self, steps: list[Step]) -> list[Event]:
        events: list[Event] = []
        for step in steps:
            block = step.block
            if isinstance(step, Grow):
                if step.safe:
                    events.append(_delta(block, step.safe))
            elif isinstance(step, Open):
                events.append(BlockStart(block.index, _empty_block(block)))
            else:
                events += _close(block)
        return events


def _empty_block(block: Block) -> ContentBlock:
    if block.kind == "thinking":
        return ThinkingBlock("", "")
    if block.kind == "call":
        return ToolUseBlock(block.id, block.name, msgspec.Raw(b"{}"))
    return TextBlock("")


def _delta(block: Block, text: str) -> BlockDelta:
    if block.kind == "thinking":
        return BlockDelta(block.index, ThinkingDelta(text))
    if block.kind == "call":
        return BlockDelta(block.index, InputDelta(text))
    return BlockDelta(block.index, TextDelta(text))


def _close(block: Block) -> list[Event]:
    if block.kind == "thinking":
        return [BlockDelta(block.index, SignatureDelta(SIGNATURE)), BlockStop(block.index)]
    if block.kind == "call" and block.arguments.is_empty:
        return [BlockDelta(block.index, InputDelta("")), BlockStop(block.index)]
    return [BlockStop(block.index)]


def _text_block(index: int, text: str) -> list[Event]:
    events: list[Event] = [BlockStart(index, TextBlock("")), BlockStop(index)]
    if text:
        events.insert(1, BlockDelta(index, TextDelta(text)))
    return events
