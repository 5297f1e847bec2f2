"""Whether another function may answer a request while its own is not ready: `on_cold` of an alias.

A conversation changes its model at most once, from the substitute to the requested function. So a request is
answered by the substitute only if nothing in it can come from that function: it has no answer of a model in it, or
this router worker knows that the substitute gave those. It is never answered by it inside a tool loop.
"""

import enum
from collections import OrderedDict
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from cortex.functions.lifecycle import COMING, PARKED
from cortex.platform.record import Instance
from cortex.platform.scheduling.ledger import Entry
from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.core.wire import read
from cortex.router.live_catalogue import Target
from cortex.router.overview.starts import by_revision, ready_at

MOST_SESSIONS = 20_000
"""Conversations whose last function is known."""


class Ledger(Protocol):
    """What earlier starts took."""

    async def ledger(self) -> Mapping[str, Entry]: ...


class Stage(enum.Enum):
    """How far a conversation is."""

    FIRST = enum.auto()
    """No model has answered in it."""
    LATER = enum.auto()
    TOOLS = enum.auto()
    """A model waits for the result of a tool, or has just got it."""


class Conversation(Struct, frozen=True):
    """What decides about a substitute: the stage, and what identifies the conversation."""

    stage: Stage
    key: str


class Substitutes:
    """Remembers which function answered each conversation last, for aliases with a substitute. Bounded."""

    def __init__(self, history: Ledger, most: int = MOST_SESSIONS) -> None:
        self._history, self._most = history, most
        self._last: OrderedDict[str, str] = OrderedDict()

    def may_answer(self, conversation: Conversation, substitute: str) -> bool:
        """Whether a substitute may answer:

        (1) never inside a tool loop;
        (2) never where the other function answered before;
        (3) where it answered before itself, or no model has.
        """
        last = self._last.get(conversation.key)
        if conversation.stage is Stage.TOOLS:  # (1)
            return False
        if last is not None and last != substitute:  # (2)
            return False
        return last == substitute or conversation.stage is Stage.FIRST  # (3)

    async def ready_in_s(self, target: Target, instances: Collection[Instance], now: float) -> float | None:
        """Return in how many seconds a function should be ready, by its earlier returns from the tier of a parked
        instance, or else by its earlier starts; None: unknown."""
        entry = by_revision(await self._history.ledger()).get(target.revision)
        coming = [i for i in instances if i.state in COMING and i.revision == target.revision]
        parked = [i for i in instances if i.state in PARKED and i.revision == target.revision and i.parked]
        if not coming and parked:
            return min((i.return_s[i.parked] for i in parked if i.parked in i.return_s), default=None)
        if not coming:
            return (entry.start_s or None) if entry else None
        times = [at for i in coming if (at := ready_at(i, entry, None)) is not None]
        return max(0.0, min(times) - now) if times else None

    def remember(self, conversation: Conversation, function: str) -> None:
        """Remember the function that answers a conversation."""
        self._last[conversation.key] = function
        self._last.move_to_end(conversation.key)
        if len(self._last) > self._most:
            self._last.popitem(last=False)


class _Body(Struct):
    messages: list[Any] = []
    system: Any = None
    instructions: Any = None
    input: Any = None
    prompt: Any = None
    previous_response_id: str | None = None


def conversation_of(dialect: Dialect, body: bytes, session: str | None, caller: str) -> Conversation:
    """Return the conversation of a request. Without a session of the client's own it is known by its beginning, up to
    the first message of its user."""
    try:
        content = read(body, _Body)
    except BadRequest:  # the dialect has the error
        return Conversation(Stage.TOOLS, "")
    items = content.input if dialect == "responses" else content.messages
    turns = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    beginning = next((n + 1 for n, t in enumerate(turns) if t.get("role") == "user"), len(turns))
    known = (content.system, content.instructions, content.prompt, turns[:beginning] or items)
    identity = ["session", session] if session else ["beginning", *known]
    key = blake2b(msgspec.json.encode([caller, identity]), digest_size=16).hexdigest()
    if content.previous_response_id:
        return Conversation(Stage.TOOLS, key)
    return Conversation(_stage(turns), key)


def _stage(turns: list[dict[str, Any]]) -> Stage:
    ends = [n for n, turn in enumerate(turns) if _is_of_model(turn)]
    if not ends:
        return Stage.TOOLS if any(map(_is_tool_result, turns)) else Stage.FIRST
    last, following = turns[ends[-1]], turns[ends[-1] + 1 :]
    return Stage.TOOLS if _calls(last) or any(map(_is_tool_result, following)) else Stage.LATER


def _is_of_model(turn: dict[str, Any]) -> bool:
    kind = str(turn.get("type", "message"))
    if kind == "message" or "role" in turn:
        return turn.get("role") == "assistant"
    return kind == "reasoning" or kind.endswith("_call")


def _calls(turn: dict[str, Any]) -> bool:
    """Whether a model's turn calls a tool: of chat, of responses, of messages."""
    if turn.get("tool_calls") or turn.get("function_call") or str(turn.get("type", "")).endswith("_call"):
        return True
    return any(part.get("type") == "tool_use" for part in _parts(turn))


def _is_tool_result(turn: dict[str, Any]) -> bool:
    if turn.get("role") in ("tool", "function") or str(turn.get("type", "")).endswith("_output"):
        return True
    return any(part.get("type") == "tool_result" for part in _parts(turn))


def _parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
