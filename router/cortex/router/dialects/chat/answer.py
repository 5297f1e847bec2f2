"""A worker's chat answer for a client of the same dialect: passed on as it came, unless it lacks something.

What may be missing or wrong: the name that the client asked for, `reasoning_content` where the worker says
`reasoning`, the index, id or type of a call. An id, name or role that is said again would be said twice by an SDK
that adds deltas up. Only a piece with such a defect is taken apart and written again.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import CallDelta, CalledFunction, Chunk, Delta, Plain
from cortex.router.dialects.core.content_blocks import Calls, arguments_of
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.ids import CallIds

_encode = msgspec.json.Encoder().encode


def plain(body: bytes, answer_id: str, model: str) -> Plain:
    """The worker's whole answer; raises `BadAnswer`."""
    completion = chunks.decode(body)
    if not completion.choices:
        raise BadAnswer("the worker's answer holds no message")
    for choice in completion.choices:
        if chunks.ending(completion, choice) is None:
            raise chunks.truncated()
    mended = renamed(ChunkRepair(answer_id).whole(completion, body), completion.model, model)
    return Plain(mended, chunks.tokens(completion.usage))


def renamed(data: bytes, was: str | None, model: str) -> bytes:
    """The piece under the name that the client asked for."""
    if was is None or was == model:
        return data
    # Inside a string the quotes would be escaped, so these bytes can only be the field.
    for field in (b'"model":', b'"model": '):
        if field + (name := _encode(was)) in data:
            return data.replace(field + name, field + _encode(model), 1)
    with chunks.sense():
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        return _encode(fields | {"model": msgspec.Raw(_encode(model))})


class _Choice:
    """What has been said so far in one choice."""

    def __init__(self, answer_id: str) -> None:
        self.has_role = False
        self._calls = Calls()
        self._ids = CallIds(answer_id)
        self._count = 0

    def mended(self, delta: CallDelta) -> dict[str, Any] | None:
        """One delta of a call as it should have been; None where it is."""
        block, is_new = self._calls.find(delta)
        arguments = arguments_of(delta)
        block.arguments.feed(arguments)
        function = delta.function or CalledFunction()
        is_text = isinstance(function.arguments, str)
        if not is_new:
            if delta.index == block.index and is_text and not (delta.id or function.name):
                return None
            return {"index": block.index, "function": {"arguments": arguments}}
        block.index = self._count
        self._count += 1
        block.id = self._ids.settle(delta.id)
        if delta.index == block.index and delta.id == block.id and delta.type and is_text:
            return None
        # The name may come later; then this delta must not say that it is nothing.
        named = {"name": function.name} if function.name else {}
        called = {**named, "arguments": arguments}
        return {"index": block.index, "id": block.id, "type": delta.type or "function", "function": called}


class ChunkRepair:
    """Fills in what pieces lack; remembers one answer from piece to piece."""

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self._choices: dict[int, _Choice] = {}

    def piece(self, chunk: Chunk, data: bytes) -> bytes:
        """One piece of a stream."""
        mended: _Mended = {}
        for place, choice in enumerate(chunk.choices or ()):
            delta = choice.delta
            if delta is None or not (delta.role or delta.tool_calls or delta.reasoning):
                continue
            known = self._choices.get(choice.index)
            if known is None:
                known = self._choices[choice.index] = _Choice(self._answer_id)
            again = bool(delta.role) and known.has_role
            known.has_role = known.has_role or bool(delta.role)
            calls = [known.mended(call) for call in delta.tool_calls or ()]
            if again or any(calls) or _lacks_thoughts(delta):
                mended[place] = (again, calls)
        return _rewritten(data, mended, "delta") if mended else data

    def whole(self, completion: Chunk, data: bytes) -> bytes:
        """A whole answer, whose calls have no index."""
        mended: _Mended = {}
        for place, choice in enumerate(completion.choices or ()):
            message = choice.message
            if message is None:
                continue
            known = _Choice(self._answer_id)
            calls = []
            for index, call in enumerate(message.tool_calls or ()):
                call.index = index
                if written := known.mended(call):
                    del written["index"]
                calls.append(written)
            if any(calls) or _lacks_thoughts(message):
                mended[place] = (False, calls)
        return _rewritten(data, mended, "message") if mended else data


# By place of the choice: whether its role was said before, and its calls where they had to be mended.
_Mended = dict[int, tuple[bool, list[dict[str, Any] | None]]]


def _lacks_thoughts(delta: Delta) -> bool:
    return bool(delta.reasoning) and not delta.reasoning_content


def _rewritten(data: bytes, mended: _Mended, name: str) -> bytes:
    with chunks.sense():
        return _encode(_written(msgspec.json.decode(data), mended, name))


def _written(piece: dict[str, Any], mended: _Mended, name: str) -> dict[str, Any]:
    for place, (again, calls) in mended.items():
        delta: dict[str, Any] = piece["choices"][place][name]
        if again:
            del delta["role"]
        if delta.get("reasoning") and not delta.get("reasoning_content"):
            delta["reasoning_content"] = delta["reasoning"]
        for index, call in enumerate(calls):
            if call is not None:
                delta["tool_calls"][index] = call
    return piece
