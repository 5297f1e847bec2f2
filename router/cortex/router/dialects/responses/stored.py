"""Stored responses: the state that a request needs, the items it continues, and what is stored of an answer. Pure.

The items of a stored response are all that its model has read: those it continues, then those of the request. So a
conversation remains complete when its first responses expire. Instructions are not carried over, as with OpenAI.
"""

import re
from typing import Any

import msgspec
from msgspec import Struct

from cortex.router.dialects.core import wire
from cortex.router.dialects.core.errors import BadRequest, Kind
from cortex.router.dialects.core.sse import SSEDecoder

Items = list[dict[str, Any]]

ENDS = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The statuses of a response that is over."""
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
_IDS = {"message": "msg", "function_call": "fc", "custom_tool_call": "ctc", "reasoning": "rs"}
_REFERENCE = "item_reference"
_ITEM = re.compile(r"[a-z]{1,8}_([A-Za-z0-9]{1,64})_i?[0-9]{1,6}")
"""An item's id: its kind, the unique part of its response's id, and its number."""


class _Conversation(Struct):
    id: str


class _Wants(Struct):
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None


class State(Struct, frozen=True, kw_only=True):
    """The state that a request needs."""

    store: bool
    background: bool = False
    stream: bool = False
    previous_response_id: str | None = None
    conversation: str | None = None

    @property
    def needs_store(self) -> str:
        """The name of a field that needs stored answers; empty if there is none."""
        if self.background:
            return "background"
        if self.previous_response_id:
            return "previous_response_id"
        return "conversation" if self.conversation else ""


class Stored(Struct, frozen=True, kw_only=True):
    """A stored response, and all items that its model has read."""

    response: msgspec.Raw
    items: msgspec.Raw

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.response) + len(self.items)


def items_read(result: Stored) -> Items:
    """Return the items that the model of a response has read."""
    return msgspec.json.decode(result.items, type=Items)


def context_of(result: Stored) -> Items:
    """Return the items that precede those of a request that continues a response."""
    return [*items_read(result), *output_of(result.response)]


class _Output(Struct):
    output: Items = []


class _Status(Struct):
    status: str = ""


@wire.parser
def read_state(body: bytes) -> State:
    """Return the state that a request needs. Raises BadRequest."""
    wants = wire.peek(body, _Wants)
    conversation = wants.conversation.id if isinstance(wants.conversation, _Conversation) else wants.conversation
    if wants.previous_response_id and conversation:
        raise BadRequest("send either previous_response_id or conversation", "previous_response_id")
    if wants.background and wants.store is False:
        raise BadRequest("a response in the background is stored: leave store out", "background")
    return State(
        store=wants.store is not False,
        background=bool(wants.background),
        stream=bool(wants.stream),
        previous_response_id=wants.previous_response_id or None,
        conversation=conversation or None,
    )


class _Input(Struct):
    input: str | Items | None = None


@wire.parser
def items_of(body: bytes, unique: str) -> Items:
    """Return a request's own items, each with an id. `unique` is that of the request. Raises BadRequest."""
    input = wire.peek(body, _Input).input
    if isinstance(input, str):
        input = [message(input)] if input else []
    return [_with_id(item, unique, number) for number, item in enumerate(input or [])]


def message(text: str) -> dict[str, Any]:
    """Return a user's text as an item."""
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def _with_id(item: dict[str, Any], unique: str, number: int) -> dict[str, Any]:
    if isinstance(item.get("id"), str) and item["id"]:
        return item
    kind = item.get("type") or "message"
    return {**item, "type": kind, "id": f"{_IDS.get(kind, 'item')}_{unique}_i{number}"}


def references(context: Items, own: Items) -> list[str]:
    """Return the ids of the responses to whose items a request refers, but for items of the context: an item's id has
    that of its response in it."""
    known = {item.get("id") for item in context}
    ids = [str(item.get("id")) for item in own if item.get("type") == _REFERENCE and item.get("id") not in known]
    return [*dict.fromkeys(f"resp_{match[1]}" for id in ids if (match := _ITEM.fullmatch(id)))]


def join_items(context: Items, own: Items, stored: Items) -> Items:
    """Return the items that the model reads: those that a request continues, then its own. A reference to a stored item
    becomes that item. Raises BadRequest for another one."""
    known = {item.get("id"): item for item in stored}
    result = [*context]
    for index, item in enumerate(own):
        if item.get("type") != _REFERENCE:
            result.append(item)
            continue
        if item.get("id") not in known:
            raise BadRequest("no stored response of this key has such an item", f"input[{index}].id")
        result.append(known[item["id"]])
    return result


_STATE = ("store", "background", "previous_response_id", "conversation")


@wire.parser
def stateless(body: bytes, items: Items | None) -> bytes:
    """Return a request without its state, with `items` as its input; None: its own."""
    fields: dict[str, Any] = {
        k: v for k, v in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items() if k not in _STATE
    }
    if items is not None:
        fields["input"] = items
    return msgspec.json.encode(fields)


def output_of(response: bytes | msgspec.Raw) -> Items:
    """Return the items of an answer."""
    return msgspec.json.decode(response, type=_Output).output


def status_of(response: bytes | msgspec.Raw) -> str:
    """Return the status of a response."""
    return msgspec.json.decode(response, type=_Status).status


def with_status(response: bytes | msgspec.Raw, status: str, error: str = "") -> bytes:
    """Return a response with a status that its worker did not send."""
    fields = msgspec.json.decode(response, type=dict[str, Any])
    fields["status"] = status
    if error:
        fields["error"] = {"code": "server_error", "message": error}
    return msgspec.json.encode(fields)


class Recording:
    """Collects the response from a stream of events: feed it what the client gets."""

    def __init__(self) -> None:
        self._frames = SSEDecoder()
        self._response: dict[str, Any] | None = None
        self._open: dict[str, Any] | None = None
        self._deltas: list[str] = []
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream."""
        for frame in self._frames.feed(data):
            if frame.data.startswith(b"{"):
                self._take(msgspec.json.decode(frame.data))

    def response(self, status: str) -> bytes | None:
        """Return the response as the worker ended it, or what was streamed, with a status; None if nothing was."""
        if self._response is None:
            return None
        if self.is_over:
            return msgspec.json.encode(self._response)
        output = [*self._response["output"], *([self._unfinished()] if self._open else [])]
        return msgspec.json.encode({**self._response, "status": status, "output": output})

    def _take(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "response.created" | "response.in_progress":
                self._response = {**event["response"], "output": []}
            case kind if kind in _LAST:
                self._response, self.is_over = event["response"], True
            case "response.output_item.added":
                self._open, self._deltas = event["item"], []
            case "response.output_item.done" if self._response is not None:
                self._response["output"].append(event["item"])
                self._open = None
            case str() as kind if kind.endswith(".delta"):
                self._deltas.append(event["delta"])

    def _unfinished(self) -> dict[str, Any]:
        """Return the item that was open when the stream broke off, with its text so far."""
        assert self._open is not None
        item, text = {**self._open, "status": "incomplete"}, "".join(self._deltas)
        match item["type"]:
            case "message":
                item["content"] = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
            case "reasoning":
                item["content"] = [{"type": "reasoning_text", "text": text}]
            case "function_call":
                item["arguments"] = text
            case "custom_tool_call":
                item["input"] = text
        return item


# Lists of items.


class Page(Struct, frozen=True, kw_only=True):
    """A page of a list, in the form of OpenAI's lists."""

    object: str = "list"
    data: Items
    first_id: str | None
    last_id: str | None
    has_more: bool


MOST_ITEMS = 100


def page(items: Items, limit: int, order: str, after: str) -> Page:
    """Return a page of items: the newest first unless `order` is asc, those that follow the item `after`. Raises
    BadRequest."""
    if not 1 <= limit <= MOST_ITEMS:
        raise BadRequest(f"expected a number from 1 to {MOST_ITEMS}", "limit")
    if order not in ("asc", "desc"):
        raise BadRequest("expected asc or desc", "order")
    ordered = items if order == "asc" else items[::-1]
    if after:
        ids = [item.get("id") for item in ordered]
        if after not in ids:
            raise BadRequest("no item has this id", "after", Kind.BAD_REQUEST)
        ordered = ordered[ids.index(after) + 1 :]
    data = ordered[:limit]
    ids = [item.get("id") for item in data]
    return Page(
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(ordered) > limit,
    )
