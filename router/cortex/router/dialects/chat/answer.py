"""A worker's chat answer for a client of the same dialect: forwarded unchanged unless it needs a repair.

Repairs: the model's name, "" for null as the text of an answer without words, `reasoning_content` from `reasoning`, the
index, id or type of a call. A repeated id, name or role is removed, because SDKs concatenate deltas. Only pieces with a
defect are decoded and encoded again.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import CallDelta, Chunk, Delta, FunctionDelta, Plain
from cortex.router.dialects.core.content_blocks import Calls, arguments_of
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.ids import CallIds

_encode = msgspec.json.Encoder().encode


def plain(body: bytes, answer_id: str, model: str) -> Plain:
    """Return the worker's whole answer, repaired. Raises `BadAnswer`."""
    completion, body = chunks.decode_strict(body)
    if not completion.choices:
        raise BadAnswer("the worker's answer holds no message")
    for choice in completion.choices:
        if chunks.ending(completion, choice) is None:
            raise chunks.truncation()
    repairs = chunks.replace_model(ChunkRepair(answer_id).whole(completion, body), completion.model, model)
    return Plain(repairs, chunks.tokens(completion.usage))


class _Choice:
    """The state of one choice across its deltas."""

    def __init__(self, answer_id: str) -> None:
        self.has_role = False
        self._calls = Calls()
        self._ids = CallIds(answer_id)
        self._count = 0

    def repairs(self, delta: CallDelta) -> dict[str, Any] | None:
        """Return the corrected delta of a call, or None if it needs no repair."""
        block, is_new = self._calls.find(delta)
        arguments = arguments_of(delta)
        block.arguments.feed(arguments)
        function = delta.function or FunctionDelta()
        is_text = isinstance(function.arguments, str)
        if not is_new:
            if delta.index == block.index and is_text and not (delta.id or function.name):
                return None
            return {"index": block.index, "function": {"arguments": arguments}}
        block.index = self._count
        self._count += 1
        block.id = self._ids.assign(delta.id)
        if delta.index == block.index and delta.id == block.id and delta.type and is_text:
            return None
        # The name may come later; an empty one must not precede it.
        name = {"name": function.name} if function.name else {}
        corrected = {**name, "arguments": arguments}
        return {"index": block.index, "id": block.id, "type": delta.type or "function", "function": corrected}


class ChunkRepair:
    """Repairs the pieces of one answer."""

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self._choices: dict[int, _Choice] = {}

    def piece(self, chunk: Chunk, data: bytes) -> bytes:
        """Return one piece of a stream, repaired."""
        repairs: _Repairs = {}
        for position, choice in enumerate(chunk.choices or ()):
            delta = choice.delta
            if delta is None or not (delta.role or delta.tool_calls or delta.reasoning):
                continue
            state = self._choices.get(choice.index)
            if state is None:
                state = self._choices[choice.index] = _Choice(self._answer_id)
            repeated_role = bool(delta.role) and state.has_role
            state.has_role = state.has_role or bool(delta.role)
            calls = [state.repairs(call) for call in delta.tool_calls or ()]
            if repeated_role or any(calls) or _lacks_reasoning_content(delta):
                repairs[position] = (repeated_role, calls)
        return _rewrite(data, repairs, "delta") if repairs else data

    def whole(self, completion: Chunk, data: bytes) -> bytes:
        """Return a whole answer, repaired; its calls have no index."""
        repairs: _Repairs = {}
        for position, choice in enumerate(completion.choices or ()):
            message = choice.message
            if message is None:
                continue
            calls = []
            if message.tool_calls:
                state = _Choice(self._answer_id)
                for index, call in enumerate(message.tool_calls):
                    call.index = index
                    if corrected := state.repairs(call):
                        del corrected["index"]
                    calls.append(corrected)
            if any(calls) or _lacks_reasoning_content(message) or message.lacks_words:
                repairs[position] = (False, calls)
        return _rewrite(data, repairs, "message") if repairs else data


# By position of the choice: whether to drop a repeated role, and the corrected calls (None: unchanged).
_Repairs = dict[int, tuple[bool, list[dict[str, Any] | None]]]


def _lacks_reasoning_content(delta: Delta) -> bool:
    return bool(delta.reasoning) and not delta.reasoning_content


def _rewrite(data: bytes, repairs: _Repairs, name: str) -> bytes:
    with chunks.map_json_errors():
        return _encode(_apply(msgspec.json.decode(data), repairs, name))


def _apply(piece: dict[str, Any], repairs: _Repairs, name: str) -> dict[str, Any]:
    for position, (repeated_role, calls) in repairs.items():
        delta: dict[str, Any] = piece["choices"][position][name]
        if repeated_role:
            del delta["role"]
        if name == "message" and not (delta.get("tool_calls") or delta.get("function_call") or delta.get("refusal")):
            delta["content"] = delta.get("content") or ""
        if delta.get("reasoning") and not delta.get("reasoning_content"):
            delta["reasoning_content"] = delta["reasoning"]
        for index, call in enumerate(calls):
            if call is not None:
                delta["tool_calls"][index] = call
    return piece
