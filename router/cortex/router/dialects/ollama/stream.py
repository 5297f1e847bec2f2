"""Translate a worker's chat stream into Ollama's: chunks in, lines of JSON out.

    (a line with text or thinking | a line with a whole call)*  a line with `done` and the counts

A call is sent when it is complete. While the client waits it gets lines without text: Ollama's clients parse every
line, so an empty one or a comment would be an error. A fault is one line with `error`; no line with `done` follows.
"""

from collections.abc import Sequence

import msgspec

from cortex.router.dialects.core.chunks import Chunk, Tokens
from cortex.router.dialects.core.content_blocks import Close, Grow, Sequencer, Step
from cortex.router.dialects.core.errors import Fault, OllamaError, ollama_error
from cortex.router.dialects.core.single_answer import SingleAnswer
from cortex.router.dialects.core.stream import TranslatedStream
from cortex.router.dialects.ollama.answer import Answer, Line, Message, call_of, delta_of, note

MEDIA_TYPE = b"application/x-ndjson"
_encode = msgspec.json.Encoder().encode


class OllamaMachine:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._sequencer = Sequencer(answer.id)
        self._calls = 0
        self._first: float | None = None
        self._worker = SingleAnswer()

    @property
    def tokens(self) -> Tokens:
        return self._worker.tokens(self._answer.input_tokens)

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        self._answer = msgspec.structs.replace(self._answer, input_tokens=input_tokens)

    def open(self) -> list[Line]:
        """Return nothing: a stream has no beginning of its own."""
        return []

    def ping(self) -> list[Line]:
        return [self._answer.line(Message())]

    def feed(self, chunk: Chunk) -> list[Line]:
        choice = self._worker.read(chunk)
        delta = None if choice is None else delta_of(choice)
        return [] if delta is None else self._lines(self._sequencer.feed(delta))

    def close(self) -> list[Line]:
        """Return the last lines. Raises BadAnswer when the worker sent no finish reason."""
        ending, lines = self._worker.ending(), self._lines(self._sequencer.close())
        return [*lines, self._answer.line(Message(), self._answer.end(ending, self.tokens, self._first))]

    def fail(self, fault: Fault) -> list[OllamaError]:
        return [ollama_error(fault)]

    def _lines(self, steps: list[Step]) -> list[Line]:
        if steps and self._first is None and self._answer.clock:
            self._first = self._answer.clock()
        messages = [message for step in steps if (message := self._message(step)) is not None]
        return [self._answer.line(message) for message in messages]

    def _message(self, step: Step) -> Message | None:
        """Return what a step shows: each piece of a text, and a call at its end."""
        block = step.block
        if isinstance(step, Grow) and block.kind != "call":
            return Message(thinking=step.safe) if block.kind == "thinking" else Message(step.safe)
        if not isinstance(step, Close) or block.kind != "call":
            return None
        if not block.arguments.intact:
            return Message(note(block))
        self._calls += 1
        return Message(tool_calls=[call_of(block, self._calls - 1)])


class LineStream(TranslatedStream):
    """The `Stream` of a dialect whose events are lines of JSON."""

    media_type = MEDIA_TYPE

    def ping(self, reason: str = "") -> bytes:
        """Return a sign of life. The lines have no place for a reason."""
        return super().ping()

    def _encode_events(self, events: Sequence[msgspec.Struct]) -> bytes:
        return b"".join([_encode(event) + b"\n" for event in events])
