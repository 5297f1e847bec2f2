"""Translate a worker's chat stream into Responses events: chunks in, lists of events out, one item open at a time.

    created  in_progress  (output_item.added  [content_part.added]  delta*  done  [content_part.done]
    output_item.done)*  completed | incomplete | failed

Events are numbered from 0 without gaps, and an item's events carry its id and position: SDKs need both to accumulate
them. Keep-alives are events, because some clients ignore comments.
"""

import msgspec

from cortex.router.dialects.core.chunks import Chunk, Tokens
from cortex.router.dialects.core.content_blocks import Block, Grow, Open, Sequencer, Step
from cortex.router.dialects.core.errors import Fault
from cortex.router.dialects.core.single_answer import SingleAnswer
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
    empty_block,
    empty_part,
    item,
    item_id,
    item_status,
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
        self._last_number = -1
        self._done: list[Item] = []
        self._item_id = ""
        self._sent_arguments = False  # of the open call
        self._unsent: list[str] = []
        self._worker = SingleAnswer()

    @property
    def tokens(self) -> Tokens:
        return self._worker.tokens(self._answer.input_tokens)

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        self._answer = msgspec.structs.replace(self._answer, input_tokens=input_tokens)

    def open(self) -> list[Event]:
        """Return the first events; none on later calls."""
        if self._last_number >= 0:
            return []
        in_progress = self._answer.response("in_progress", [])
        return self._number_events([Created(response=in_progress), InProgress(response=in_progress)])

    def feed(self, chunk: Chunk) -> list[Event]:
        choice = self._worker.read(chunk)
        if choice is None or choice.delta is None:
            return []
        return self._number_events(self._events(self._sequencer.feed(choice.delta), "completed"))

    def close(self) -> list[Event]:
        """Return the last events. Raises `BadAnswer` when the worker sent no finish reason."""
        ending, steps = self._worker.ending(), self._sequencer.close()
        events = self._events(steps[:-1], "completed") + self._events(steps[-1:], item_status(ending))
        if not self._sequencer.blocks:
            empty = empty_block()
            events = [*self._open_item(empty), *self._close_item(empty, item_status(ending))]
        status, reason = outcome(ending)
        response = self._answer.response(status, self._done, tokens=self.tokens, reason=reason)
        return self._number_events([*events, TERMINAL[status](response=response)])

    def ping(self) -> list[Event]:
        return self.open() or self._number_events([Ping()])

    def fail(self, fault: Fault) -> list[Event]:
        """Return the failure event; its response holds complete items only."""
        error = Failure(fault.failed_code, fault.message)
        failed = Failed(response=self._answer.response("failed", self._done, error=error))
        return self.open() + self._number_events([failed])

    def _number_events(self, events: list[Event]) -> list[Event]:
        for event in events:
            self._last_number += 1
            event.sequence_number = self._last_number
        return events

    def _events(self, steps: list[Step], status: ItemStatus) -> list[Event]:
        events: list[Event] = []
        for step in steps:
            if isinstance(step, Grow):
                events += self._delta(step.block, step.text)
            elif isinstance(step, Open):
                events += self._open_item(step.block)
            else:
                events += self._close_item(step.block, status)
        return events

    def _open_item(self, block: Block) -> list[Event]:
        self._item_id = item_id(self._answer, block)
        added = ItemAdded(output_index=block.index, item=item(self._answer, block, "in_progress"))
        part = empty_part(block)
        if part is None:
            return [added]
        return [added, PartAdded(output_index=block.index, item_id=self._item_id, part=part)]

    def _delta(self, block: Block, text: str) -> list[Event]:
        position, id_ = block.index, self._item_id
        match block.kind:
            case "text":
                return [TextDelta(output_index=position, item_id=id_, delta=text)]
            case "thinking":
                return [ReasoningDelta(output_index=position, item_id=id_, delta=text)]
            case "refusal":
                return [RefusalDelta(output_index=position, item_id=id_, delta=text)]
        self._unsent.append(text)
        declaration = self._answer.names.get(block.name)
        if declaration is not None and declaration.custom:
            return []  # the text is inside the JSON, so it waits for complete JSON
        if block.arguments.is_empty and not block.arguments.broken:
            return []  # the arguments may still be empty
        text = "".join(self._unsent)
        self._unsent.clear()
        self._sent_arguments = True
        return [ArgumentsDelta(output_index=position, item_id=id_, delta=text)]

    def _close_item(self, block: Block, status: ItemStatus) -> list[Event]:
        whole = item(self._answer, block, status)
        self._done.append(whole)
        position, id_ = block.index, self._item_id
        events: list[Event] = []
        if isinstance(whole, FunctionCall):
            if not self._sent_arguments:
                events.append(ArgumentsDelta(output_index=position, item_id=id_, delta=whole.arguments))
            events.append(ArgumentsDone(output_index=position, item_id=id_, name=whole.name, arguments=whole.arguments))
        elif isinstance(whole, CustomCall):
            events.append(InputDelta(output_index=position, item_id=id_, delta=whole.input))
            events.append(InputDone(output_index=position, item_id=id_, input=whole.input))
        else:
            part = whole.content[0]
            match part:
                case OutputText(text=text):
                    events.append(TextDone(output_index=position, item_id=id_, text=text))
                case ReasoningText(text=text):
                    events.append(ReasoningDone(output_index=position, item_id=id_, text=text))
                case Refusal(refusal=refusal):
                    events.append(RefusalDone(output_index=position, item_id=id_, refusal=refusal))
            events.append(PartDone(output_index=position, item_id=id_, part=part))
        self._sent_arguments = False
        self._unsent.clear()
        return [*events, ItemDone(output_index=position, item=whole)]
