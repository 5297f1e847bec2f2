"""A worker's chat answer as Ollama's: the structs, and the rules that fill them.

The plain answer and the stream use the same blocks and the same ending. Times are in nanoseconds, and left out where
there is no clock. Ollama's clients run every call of an answer, so a call with incomplete arguments becomes a note.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from cortex.router.dialects.core import chunks
from cortex.router.dialects.core.chunks import Choice, Delta, Ending, Plain, Tokens
from cortex.router.dialects.core.content_blocks import Block, blocks_of
from cortex.router.dialects.core.errors import BadAnswer

Form = Literal["chat", "generate"]
_NS = 1_000_000_000


class CallFunction(msgspec.Struct):
    index: int
    name: str
    arguments: msgspec.Raw


class Call(msgspec.Struct):
    id: str
    function: CallFunction


class Message(msgspec.Struct):
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class End(msgspec.Struct, kw_only=True):
    """The additional fields of the last line: durations in nanoseconds, counts in tokens."""

    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ChatLine(End):
    model: str
    created_at: str
    message: Message
    done: bool


class GenerateLine(End):
    model: str
    created_at: str
    response: str
    done: bool
    thinking: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


Line = ChatLine | GenerateLine


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The request's data that the answer depends on. `created` and `began` are Unix times."""

    id: str
    model: str
    form: Form
    created: float
    clock: Callable[[], float] | None = None
    began: float = 0.0
    input_tokens: int | None = None

    def line(self, message: Message, end: End | None = None) -> Line:
        """Return a line of a stream, or the whole answer if it has an end."""
        at = instant(self.clock() if self.clock else self.created)
        more = msgspec.structs.asdict(end) if end else {}
        done = end is not None
        if self.form == "chat":
            return ChatLine(model=self.model, created_at=at, message=message, done=done, **more)
        return GenerateLine(
            model=self.model,
            created_at=at,
            response=message.content,
            thinking=message.thinking,
            tool_calls=message.tool_calls,
            done=done,
            **more,
        )

    def end(self, ending: Ending, tokens: Tokens, first: float | None = None) -> End:
        """Return the end of an answer whose first piece came at the time `first`."""
        end = End(
            done_reason="length" if ending.finish == "length" else "stop",
            prompt_eval_count=tokens.input,
            eval_count=tokens.output,
        )
        if self.clock is not None:
            now = self.clock()
            end.total_duration = _nanoseconds(now - self.began)
            if first is not None:
                end.prompt_eval_duration = _nanoseconds(first - self.began)
                end.eval_duration = _nanoseconds(now - first)
        return end


def instant(at: float) -> str:
    """Return a Unix time as Ollama writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return max(0, int(seconds * _NS))


def delta_of(choice: Choice) -> Delta | None:
    """Return what a choice adds: of a chat, or of a completion."""
    if isinstance(choice.text, str):
        return Delta(content=choice.text)
    return choice.delta or choice.message


def call_of(block: Block, index: int) -> Call:
    return Call(block.id, CallFunction(index, block.name, msgspec.Raw(block.arguments.json())))


def note(block: Block) -> str:
    """Return the text in place of a call that cannot be run."""
    return f"[The call of {block.name} is left out: its arguments were not whole.]"


def plain(answer: Answer, body: bytes) -> Plain:
    """Translate the worker's whole answer. Raises BadAnswer."""
    completion = chunks.decode(body)
    choice = completion.choices[0] if completion.choices else None
    delta = None if choice is None else delta_of(choice)
    if choice is None or delta is None:
        raise BadAnswer("the worker's answer holds no message")
    ending = chunks.ending(completion, choice)
    if ending is None:
        raise chunks.truncation()
    message = Message()
    calls: list[Call] = []
    for block in blocks_of(delta, answer.id):
        if block.kind == "thinking":
            message.thinking = (message.thinking or "") + block.text
        elif block.kind != "call":
            message.content += block.text
        elif block.arguments.intact:
            calls.append(call_of(block, len(calls)))
        else:
            message.content += note(block)
    if calls:
        message.tool_calls = calls
    tokens = chunks.tokens(completion.usage, answer.input_tokens)
    return Plain(msgspec.json.encode(answer.line(message, answer.end(ending, tokens))), tokens)


class Ready(msgspec.Struct, frozen=True):
    """The answer to a request that has nothing to answer. `reason` is `load` or `unload`."""

    form: Form
    model: str
    reason: str
    clock: Callable[[], float]

    def plain(self, body: bytes) -> Plain:
        """Return the answer, whatever the worker's body is."""
        answer = Answer(id="", model=self.model, form=self.form, created=self.clock())
        line = answer.line(Message(), End(done_reason=self.reason))
        return Plain(msgspec.json.encode(line), Tokens())
