"""What workers send: a chat completion, whole or in pieces, as vLLM, llama-server and others write it.

One set of structs for both, because they differ in one word (`message`, `delta`) and because a whole answer is
read as a stream of one piece: that is why the streamed and the plain answer to a client cannot differ. Only
fields that decide something are declared; the decoder skips the rest without building it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.worker_errors import fault_from_error


class CalledFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: CalledFunction | None = None


class Delta(msgspec.Struct):
    """Thoughts are `reasoning_content` to llama-server and most others, `reasoning` to vLLM."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None

    @property
    def thoughts(self) -> str | None:
        return self.reasoning_content or self.reasoning


class Choice(msgspec.Struct):
    """`stop_reason` is vLLM's: the stop string that was hit, or the number of a token."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: Any = None
    """In place of `delta` and `message`, the text of a completion."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    stopping_word: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Verbose(msgspec.Struct):
    stopping_word: str | None = None


class Chunk(msgspec.Struct):
    """One piece of a stream, or a whole answer."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    stopping_word: str | None = None
    verbose: Verbose | None = msgspec.field(name="__verbose", default=None)


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer cost. `input` counts the whole prompt, cached or not."""

    input: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    reasoning: int | None = None


MOST_TOKENS = 1 << 30
"""In one count of a worker's. More is a mistake, and would use up a key's limits."""


class Plain(msgspec.Struct, frozen=True):
    """A whole answer in the client's dialect, and what it cost."""

    body: bytes
    tokens: Tokens


class Ending(msgspec.Struct, frozen=True):
    """Why an answer ended: the worker's word, and the stop string if it named one."""

    finish: str
    stop_string: str | None = None


# Words for "this answer was cut off": it may not be shown as complete.
_CUT = frozenset({"abort", "error"})

_decode = msgspec.json.Decoder(Chunk).decode

_NONSENSE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Garbled(BadAnswer):
    """What came is not a piece of an answer at all."""


@contextmanager
def sense() -> Iterator[None]:
    """What cannot be read, or written again, is no sense of a worker's."""
    try:
        yield
    except _NONSENSE as error:
        raise _garbled(error) from None


def _garbled(error: Exception) -> Garbled:
    return Garbled(f"the worker sent something that is not an answer: {error}")


def decode(data: bytes) -> Chunk:
    """One piece or answer; an error in it, or nonsense, is raised."""
    try:  # not `sense()`: this is done for every token
        chunk = _decode(data)
    except _NONSENSE as error:
        raise _garbled(error) from None
    if chunk.error:
        fault = fault_from_error(chunk.error)
        raise BadAnswer(fault.message, fault)
    return chunk


def choice_of(chunk: Chunk) -> Choice | None:
    """The one choice of those dialects that know only one."""
    for choice in chunk.choices or ():
        if choice.index == 0:
            return choice
    return None


def tokens(usage: Usage | None, known_input: int | None = None) -> Tokens:
    """The cost as the worker counted it; without its count, what is known of the prompt."""
    if usage is None:
        return Tokens(input=known_input or 0)
    prompt = usage.prompt_tokens_details or PromptDetails()
    completion = usage.completion_tokens_details or CompletionDetails()
    return Tokens(
        input=count(usage.prompt_tokens),
        cached=count(prompt.cached_tokens),
        written=count(prompt.cache_write_tokens),
        output=count(usage.completion_tokens),
        reasoning=None if completion.reasoning_tokens is None else count(completion.reasoning_tokens),
    )


def count(tokens: int | None) -> int:
    """Return a worker's count of tokens, within bounds."""
    return min(max(0, tokens or 0), MOST_TOKENS)


LETTERS_PER_TOKEN = 4


def rough_tokens(chunk: Chunk) -> int:
    """Return about how many tokens a piece of a stream holds: one per choice with a text, or one for four letters.

    With speculative decoding, or where the server waits for several tokens, a piece has many.
    """
    tokens = 0
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is None:
            letters = len(choice.text) if isinstance(choice.text, str) else 0
        else:
            letters = len(delta.content or "") + len(delta.reasoning_content or delta.reasoning or "")
            for call in delta.tool_calls or ():
                if call.function is not None and isinstance(call.function.arguments, str):
                    letters += len(call.function.arguments)
        if letters:
            tokens += max(1, letters // LETTERS_PER_TOKEN)
    return tokens


def ending(chunk: Chunk, choice: Choice) -> Ending | None:
    """How this choice ended, if it did."""
    finish = choice.finish_reason
    if not finish:
        return None
    if finish in _CUT:
        raise BadAnswer("the worker stopped in the middle of the answer")
    word = choice.stopping_word or chunk.stopping_word or (chunk.verbose and chunk.verbose.stopping_word) or None
    if isinstance(choice.stop_reason, str) and choice.stop_reason:
        word = choice.stop_reason
    return Ending(finish, word)


def truncated() -> BadAnswer:
    return BadAnswer("the worker's answer ended before it was complete")
