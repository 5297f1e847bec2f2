"""Order a worker's chat deltas into content blocks, one open at a time.

Chat deltas have no blocks: thinking, text and calls interleave, and calls may repeat ids or lack an index. Messages and
Responses require blocks that open, grow and close one after another. The sequencer only decides that order: it returns
steps, which each dialect encodes as events.

A block of text or thinking closes when another kind arrives. A call closes when its arguments are final; blocks that
arrive earlier are queued, and `close()` flushes the queue.
"""

from collections import deque
from typing import Literal

import msgspec

from cortex.router.dialects.core.arguments import Arguments
from cortex.router.dialects.core.chunks import CallDelta, Delta, map_json_errors
from cortex.router.dialects.core.ids import CallIds
from cortex.router.dialects.core.wire import text_of

Kind = Literal["text", "thinking", "refusal", "call"]

UNNAMED_TOOL = "unknown_tool"


class Block:
    """`text` is the whole content; for a call, the arguments exactly as the worker sent them."""

    __slots__ = ("_pieces", "arguments", "id", "index", "kind", "name", "pending", "worker_id")

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.index = -1
        self.id = ""
        self.worker_id: str | None = None
        self.name = ""
        self.pending: list[Step] = []
        self.arguments = Arguments()
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def final(self) -> bool:
        return self.kind != "call" or self.arguments.final

    def grow(self, text: str) -> "Grow":
        self._pieces.append(text)
        return Grow(self, text, self.arguments.feed(text) if self.kind == "call" else text)


class Open(msgspec.Struct):
    block: Block


class Grow(msgspec.Struct):
    """`text` from the worker; `safe` is the text to forward to clients that parse every piece."""

    block: Block
    text: str
    safe: str


class Close(msgspec.Struct):
    block: Block


Step = Open | Grow | Close


class Calls:
    """Assigns deltas to calls: by index, else by id, else to the last call."""

    def __init__(self) -> None:
        self._by_key: dict[int | str, Block] = {}
        self._last: int | str = 0

    def find(self, delta: CallDelta) -> tuple[Block, bool]:
        """Return the delta's call, with its first id and name set, and whether it is new."""
        key: int | str = self._last
        if delta.index is not None:
            key = delta.index
        elif delta.id:
            key = delta.id
        self._last = key
        name = delta.function.name if delta.function is not None else None
        block = self._by_key.get(key)
        # Some workers number every call 0: a new id and name after whole arguments, or none, is a new call. Others send
        # a new id with every piece, without a name.
        is_ended = block is not None and (block.final or (block.name and block.arguments.intact))
        is_other_call = block is not None and is_ended and delta.id and delta.id != block.worker_id and name
        is_new = block is None or bool(is_other_call)
        if block is None or is_new:
            block = self._by_key[key] = Block("call")
        block.worker_id = block.worker_id or delta.id
        block.name = block.name or name or ""
        return block, is_new


def arguments_of(delta: CallDelta) -> str:
    """Return a delta's arguments as text; some workers send an object."""
    arguments = delta.function.arguments if delta.function is not None else None
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    with map_json_errors():
        return text_of(arguments)


class Sequencer:
    def __init__(self, answer_id: str) -> None:
        self.blocks: list[Block] = []
        self._ids = CallIds(answer_id)
        self._open: Block | None = None
        self._queue: deque[Block] = deque()
        self._calls = Calls()

    def feed(self, delta: Delta) -> list[Step]:
        steps: list[Step] = []
        if thinking := delta.thinking:
            self._append("thinking", thinking, steps)
        if delta.content:
            self._append("text", delta.content, steps)
        if delta.refusal:
            self._append("refusal", delta.refusal, steps)
        if delta.tool_calls:
            for call in delta.tool_calls:
                self._call(call, steps)
        return steps

    def close(self) -> list[Step]:
        """Flush the queued blocks and close the last one."""
        steps: list[Step] = []
        while self._queue:
            self._next(steps)
        self._close_block(steps)
        return steps

    def _append(self, kind: Kind, text: str, steps: list[Step]) -> None:
        block = self._open
        if block is not None and block.kind == kind and not self._queue:
            steps.append(block.grow(text))
            return
        if not self._queue or self._queue[-1].kind != kind:
            self._queue.append(Block(kind))
        last = self._queue[-1]
        last.pending.append(last.grow(text))
        self._advance(steps)

    def _call(self, delta: CallDelta, steps: list[Step]) -> None:
        block, is_new = self._calls.find(delta)
        if is_new:
            self._queue.append(block)
        if text := arguments_of(delta):
            if block is self._open:
                steps.append(block.grow(text))
            elif block.index < 0:
                block.pending.append(block.grow(text))
        self._advance(steps)

    def _advance(self, steps: list[Step]) -> None:
        while self._queue and (self._open is None or self._open.final):
            head = self._queue[0]
            if head.kind == "call" and not head.name:
                return
            self._next(steps)

    def _next(self, steps: list[Step]) -> None:
        self._close_block(steps)
        block = self._queue.popleft()
        block.index = len(self.blocks)
        if block.kind == "call":
            block.id = self._ids.assign(block.worker_id)
            block.name = block.name or UNNAMED_TOOL
        self.blocks.append(block)
        self._open = block
        steps.append(Open(block))
        steps += block.pending
        block.pending = []

    def _close_block(self, steps: list[Step]) -> None:
        if self._open is not None:
            steps.append(Close(self._open))
            self._open = None


def blocks_of(message: Delta, answer_id: str) -> list[Block]:
    """Return the blocks of a whole message, read as a stream of one piece."""
    sequencer = Sequencer(answer_id)
    for position, call in enumerate(message.tool_calls or ()):
        call.index = position
    sequencer.feed(message)
    sequencer.close()
    return sequencer.blocks
