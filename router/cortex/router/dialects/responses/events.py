"""The events of a Responses stream: structs whose tag is the event's name. Item events carry the item's position.

`ResponsesMachine` sets `sequence_number` in the order of output.
"""

import msgspec

from cortex.router.dialects.responses.answer import Content, Item, Response


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    sequence_number: int = -1


class Ping(Event, tag="ping"):
    pass


class _OfResponse(Event):
    response: Response


class Created(_OfResponse, tag="response.created"):
    pass


class InProgress(_OfResponse, tag="response.in_progress"):
    pass


class Completed(_OfResponse, tag="response.completed"):
    pass


class IncompleteResponse(_OfResponse, tag="response.incomplete"):
    pass


class Failed(_OfResponse, tag="response.failed"):
    pass


class _OfItem(Event, kw_only=True):
    output_index: int


class ItemAdded(_OfItem, tag="response.output_item.added"):
    item: Item


class ItemDone(_OfItem, tag="response.output_item.done"):
    item: Item


class _InItem(_OfItem, kw_only=True):
    item_id: str


class _OfPart(_InItem, kw_only=True):
    content_index: int = 0


class PartAdded(_OfPart, tag="response.content_part.added", kw_only=True):
    part: Content


class PartDone(_OfPart, tag="response.content_part.done", kw_only=True):
    part: Content


class TextDelta(_OfPart, tag="response.output_text.delta", kw_only=True):
    delta: str
    logprobs: tuple[()] = ()


class TextDone(_OfPart, tag="response.output_text.done", kw_only=True):
    text: str
    logprobs: tuple[()] = ()


class RefusalDelta(_OfPart, tag="response.refusal.delta", kw_only=True):
    delta: str


class RefusalDone(_OfPart, tag="response.refusal.done", kw_only=True):
    refusal: str


class ReasoningDelta(_OfPart, tag="response.reasoning_text.delta", kw_only=True):
    delta: str


class ReasoningDone(_OfPart, tag="response.reasoning_text.done", kw_only=True):
    text: str


class ArgumentsDelta(_InItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(_InItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str


class InputDelta(_InItem, tag="response.custom_tool_call_input.delta", kw_only=True):
    delta: str


class InputDone(_InItem, tag="response.custom_tool_call_input.done", kw_only=True):
    input: str


TERMINAL: dict[str, type[Completed | IncompleteResponse]] = {
    "completed": Completed,
    "incomplete": IncompleteResponse,
}
