"""The blocks of an answer, one open at a time, from deltas that come in any order.

Chat deltas name no blocks: thoughts, text and calls just arrive, calls may interleave, repeat their ids or lack
an index. Messages and Responses want blocks that open, grow and close one after the other. The sequencer decides
that order and nothing else: it returns steps, and each dialect says them in its own words.

A block of text or thoughts closes as soon as something else arrives. A call closes only when its arguments can
not change any more, so what arrives before that waits its turn; everything that waits is let go at the end.
"""

from collections import deque
from typing import Literal

import msgspec

from cortex.router.dialects.core.arguments import Arguments
from cortex.router.dialects.core.chunks import CallDelta, Delta, sense
from cortex.router.dialects.core.ids import CallIds
from cortex.router.dialects.core.wire import text_of

Kind = Literal["text", "thinking", "refusal", "call"]

NAMELESS = "unknown_tool"


class Block:
    """`text` is everything it held; of a call, the arguments exactly as the worker sent them."""

    __slots__ = ("_pieces", "arguments", "given_id", "id", "index", "kind", "name", "pending")

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.index = -1
        self.id = ""
        self.given_id: str | None = None
        self.name = ""
        self.pending: list[Step] = []
        self.arguments = Arguments()
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def settled(self) -> bool:
        return self.kind != "call" or self.arguments.settled

    def grow(self, text: str) -> "Grow":
        self._pieces.append(text)
        return Grow(self, text, self.arguments.feed(text) if self.kind == "call" else text)


class Open(msgspec.Struct):
    block: Block


class Grow(msgspec.Struct):
    """`text` as it came; `safe` is what a client that parses every piece may be given of it."""

    block: Block
    text: str
    safe: str


class Shut(msgspec.Struct):
    block: Block


Step = Open | Grow | Shut


class Calls:
    """Which call a delta belongs to: by index, else by id, else the one before."""

    def __init__(self) -> None:
        self._by_key: dict[int | str, Block] = {}
        self._last: int | str = 0

    def find(self, delta: CallDelta) -> tuple[Block, bool]:
        """The call, told its id and name once, and whether it is new."""
        key: int | str = self._last
        if delta.index is not None:
            key = delta.index
        elif delta.id:
            key = delta.id
        self._last = key
        name = delta.function.name if delta.function is not None else None
        block = self._by_key.get(key)
        # Some workers number every call 0: a new id and name after whole arguments is a new call.
        other = block is not None and delta.id and delta.id != block.given_id and name and block.settled
        is_new = block is None or bool(other)
        if block is None or is_new:
            block = self._by_key[key] = Block("call")
        block.given_id = block.given_id or delta.id
        block.name = block.name or name or ""
        return block, is_new


def arguments_of(delta: CallDelta) -> str:
    """The arguments in a delta; some workers send them as an object."""
    given = delta.function.arguments if delta.function is not None else None
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    with sense():
        return text_of(given)


class Sequencer:
    def __init__(self, answer_id: str) -> None:
        self.blocks: list[Block] = []
        self._ids = CallIds(answer_id)
        self._open: Block | None = None
        self._waiting: deque[Block] = deque()
        self._calls = Calls()

    def feed(self, delta: Delta) -> list[Step]:
        steps: list[Step] = []
        if thoughts := delta.thoughts:
            self._say("thinking", thoughts, steps)
        if delta.content:
            self._say("text", delta.content, steps)
        if delta.refusal:
            self._say("refusal", delta.refusal, steps)
        if delta.tool_calls:
            for call in delta.tool_calls:
                self._call(call, steps)
        return steps

    def close(self) -> list[Step]:
        """Everything that waited, then the end of the last block."""
        steps: list[Step] = []
        while self._waiting:
            self._next(steps)
        self._shut(steps)
        return steps

    def _say(self, kind: Kind, text: str, steps: list[Step]) -> None:
        block = self._open
        if block is not None and block.kind == kind and not self._waiting:
            steps.append(block.grow(text))
            return
        if not self._waiting or self._waiting[-1].kind != kind:
            self._waiting.append(Block(kind))
        last = self._waiting[-1]
        last.pending.append(last.grow(text))
        self._advance(steps)

    def _call(self, delta: CallDelta, steps: list[Step]) -> None:
        block, is_new = self._calls.find(delta)
        if is_new:
            self._waiting.append(block)
        if text := arguments_of(delta):
            if block is self._open:
                steps.append(block.grow(text))
            elif block.index < 0:
                block.pending.append(block.grow(text))
        self._advance(steps)

    def _advance(self, steps: list[Step]) -> None:
        while self._waiting and (self._open is None or self._open.settled):
            head = self._waiting[0]
            if head.kind == "call" and not head.name:
                return
            self._next(steps)

    def _next(self, steps: list[Step]) -> None:
        self._shut(steps)
        block = self._waiting.popleft()
        block.index = len(self.blocks)
        if block.kind == "call":
            block.id = self._ids.settle(block.given_id)
            block.name = block.name or NAMELESS
        self.blocks.append(block)
        self._open = block
        steps.append(Open(block))
        steps += block.pending
        block.pending = []

    def _shut(self, steps: list[Step]) -> None:
        if self._open is not None:
            steps.append(Shut(self._open))
            self._open = None


def blocks_of(message: Delta, answer_id: str) -> list[Block]:
    """The blocks of a whole message: a stream of one piece."""
    sequencer = Sequencer(answer_id)
    for position, call in enumerate(message.tool_calls or ()):
        call.index = position
    sequencer.feed(message)
    sequencer.close()
    return sequencer.blocks
