"""A worker's chat stream as Responses events. Chunks in, lists of events out, one item open at a time.

    created  in_progress  (output_item.added  [content_part.added]  delta*  done  [content_part.done]
    output_item.done)*  completed | incomplete | failed

Every event is numbered from 0 without a gap, and every event of an item names the item and its place: the SDK's
accumulator needs all of them. That we live is said by an event too, because some clients do not count comments.
"""

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Chunk, Ending, Tokens
from cortex.router.dialects.core.content_blocks import Block, Grow, Open, Sequencer, Step
from cortex.router.dialects.core.errors import Fault
from cortex.router.dialects.responses.answer import (
    Answer,
    CustomCall,
    Failure,
    FunctionCall,
    Item,
    ItemStatus,
    OutputText,
    ReasoningText,
    Refusal,
    begun,
    item,
    item_id,
    item_status,
    nothing,
    outcome,
)
from cortex.router.dialects.responses.events import (
    TERMINAL,
    ArgumentsDelta,
    ArgumentsDone,
    Created,
    Event,
    Failed,
    InProgress,
    InputDelta,
    InputDone,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    Ping,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    RefusalDone,
    TextDelta,
    TextDone,
)


class ResponsesMachine:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._sequencer = Sequencer(answer.id)
        self._number = -1
        self._done: list[Item] = []
        self._item_id = ""
        self._told = False  # of the open call's arguments something has gone out
        self._untold: list[str] = []
        self._ending: Ending | None = None
        self._usage: chunks.Usage | None = None

    @property
    def tokens(self) -> Tokens:
        return chunks.tokens(self._usage, self._answer.input_tokens)

    def open(self) -> list[Event]:
        """The beginning, once."""
        if self._number >= 0:
            return []
        waiting = self._answer.response("in_progress", [])
        return self._numbered([Created(response=waiting), InProgress(response=waiting)])

    def feed(self, chunk: Chunk) -> list[Event]:
        self._usage = chunk.usage or self._usage
        choice = chunks.choice_of(chunk)
        if choice is None:
            return []
        self._ending = chunks.ending(chunk, choice) or self._ending
        if choice.delta is None:
            return []
        return self._numbered(self._say(self._sequencer.feed(choice.delta), "completed"))

    def close(self) -> list[Event]:
        """The end; raises `BadAnswer` where the worker never said that it was one."""
        if self._ending is None:
            raise chunks.truncated()
        steps = self._sequencer.close()
        said = self._say(steps[:-1], "completed") + self._say(steps[-1:], item_status(self._ending))
        if not self._sequencer.blocks:
            empty = nothing()
            said = [*self._opened(empty), *self._shut(empty, item_status(self._ending))]
        status, reason = outcome(self._ending)
        response = self._answer.response(status, self._done, used=self.tokens, reason=reason)
        return self._numbered([*said, TERMINAL[status](response=response)])

    def ping(self) -> list[Event]:
        return self.open() or self._numbered([Ping()])

    def fail(self, fault: Fault) -> list[Event]:
        """Only items that were whole are part of a response that failed."""
        error = Failure(fault.failed_code, fault.message)
        failed = Failed(response=self._answer.response("failed", self._done, error=error))
        return self.open() + self._numbered([failed])

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            self._number += 1
            event.sequence_number = self._number
        return events

    def _say(self, steps: list[Step], status: ItemStatus) -> list[Event]:
        events: list[Event] = []
        for step in steps:
            if isinstance(step, Grow):
                events += self._grown(step.block, step.text)
            elif isinstance(step, Open):
                events += self._opened(step.block)
            else:
                events += self._shut(step.block, status)
        return events

    def _opened(self, block: Block) -> list[Event]:
        self._item_id = item_id(self._answer, block)
        added = ItemAdded(output_index=block.index, item=item(self._answer, block, "in_progress"))
        part = begun(block)
        if part is None:
            return [added]
        return [added, PartAdded(output_index=block.index, item_id=self._item_id, part=part)]

    def _grown(self, block: Block, text: str) -> list[Event]:
        place, name = block.index, self._item_id
        match block.kind:
            case "text":
                return [TextDelta(output_index=place, item_id=name, delta=text)]
            case "thinking":
                return [ReasoningDelta(output_index=place, item_id=name, delta=text)]
            case "refusal":
                return [RefusalDelta(output_index=place, item_id=name, delta=text)]
        self._untold.append(text)
        declared = self._answer.names.get(block.name)
        if declared is not None and declared.custom:
            return []  # its text is inside the JSON, and is known when the JSON is
        if block.arguments.silent and not block.arguments.broken:
            return []  # so far they may turn out to be none at all
        text = "".join(self._untold)
        self._untold.clear()
        self._told = True
        return [ArgumentsDelta(output_index=place, item_id=name, delta=text)]

    def _shut(self, block: Block, status: ItemStatus) -> list[Event]:
        whole = item(self._answer, block, status)
        self._done.append(whole)
        place, name = block.index, self._item_id
        events: list[Event] = []
        if isinstance(whole, FunctionCall):
            if not self._told:
                events.append(ArgumentsDelta(output_index=place, item_id=name, delta=whole.arguments))
            events.append(ArgumentsDone(output_index=place, item_id=name, name=whole.name, arguments=whole.arguments))
        elif isinstance(whole, CustomCall):
            events.append(InputDelta(output_index=place, item_id=name, delta=whole.input))
            events.append(InputDone(output_index=place, item_id=name, input=whole.input))
        else:
            part = whole.content[0]
            match part:
                case OutputText(text=text):
                    events.append(TextDone(output_index=place, item_id=name, text=text))
                case ReasoningText(text=text):
                    events.append(ReasoningDone(output_index=place, item_id=name, text=text))
                case Refusal(refusal=refusal):
                    events.append(RefusalDone(output_index=place, item_id=name, refusal=refusal))
            events.append(PartDone(output_index=place, item_id=name, part=part))
        self._told = False
        self._untold.clear()
        return [*events, ItemDone(output_index=place, item=whole)]
