"""A worker's chat completion, whole or streamed, as vLLM, llama-server and others write it.

One set of structs serves both: they differ in one field (`message`, `delta`), and a whole answer is read as a stream of
one piece, so plain and streamed answers to a client agree. Only fields that cortex reads are declared; the decoder
skips the rest.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import msgspec

from cortex.router.dialects.core import lenient
from cortex.router.dialects.core.errors import BadAnswer
from cortex.router.dialects.core.worker_errors import fault_from_error


class FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct):
    """llama-server and most others call the thinking `reasoning_content`, vLLM `reasoning`."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None
    function_call: Any = None

    @property
    def thinking(self) -> str | None:
        return self.reasoning_content or self.reasoning

    @property
    def lacks_words(self) -> bool:
        """Whether a whole message has null for its text, which only calls and refusals may have."""
        return self.content is None and not (self.tool_calls or self.function_call or self.refusal)


class Choice(msgspec.Struct):
    """`stop_reason` is vLLM's: the stop string or stop token id."""

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
    """What an answer used: tokens, and in media seconds of audio, characters to speak, and images. `input` counts the
    whole prompt, cached or not."""

    input: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    reasoning: int | None = None
    audio_s: float = 0.0
    characters: int = 0
    images: int = 0


MOST_TOKENS = 1 << 30
"""Largest token count to accept from a worker; a larger one is an error and would exhaust a key's limits."""


class Plain(msgspec.Struct, frozen=True):
    """A whole answer in the client's dialect, and its tokens."""

    body: bytes
    tokens: Tokens


class Ending(msgspec.Struct, frozen=True):
    """Why an answer ended: the worker's finish reason, and the stop string if it gave one."""

    finish: str
    stop_string: str | None = None


# Finish reasons of an answer that is not complete.
_ABORTED = frozenset({"abort", "error"})

_decoder = msgspec.json.Decoder(Chunk)
_encode = msgspec.json.Encoder().encode

_JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class UnreadableAnswer(BadAnswer):
    """The worker's bytes are not JSON of an answer."""


@contextmanager
def map_json_errors() -> Iterator[None]:
    """Raise UnreadableAnswer for errors while decoding or encoding a worker's JSON."""
    try:
        yield
    except _JSON_ERRORS as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> UnreadableAnswer:
    return UnreadableAnswer(f"the worker sent something that is not an answer: {error}")


def decode(data: bytes) -> Chunk:
    """Decode one piece or whole answer. Raises `BadAnswer` for an error in it or unreadable JSON."""
    return decode_strict(data)[0]


def decode_strict(data: bytes) -> tuple[Chunk, bytes]:
    """Decode one piece or whole answer, and return it as strict JSON too. Raises `BadAnswer` as `decode` does."""
    try:  # not `map_json_errors()`: this runs for every token
        chunk, data = lenient.decode(data, _decoder)
    except _JSON_ERRORS as error:
        raise _unreadable(error) from None
    if chunk.error:
        fault = fault_from_error(chunk.error)
        raise BadAnswer(fault.message, fault)
    return chunk, data


def choice_of(chunk: Chunk) -> Choice | None:
    """Return choice 0, for dialects with one answer per request."""
    for choice in chunk.choices or ():
        if choice.index == 0:
            return choice
    return None


def tokens(usage: Usage | None, prompt_tokens: int | None = None) -> Tokens:
    """Return the worker's usage within bounds; without it, the prompt's tokens alone."""
    if usage is None:
        return Tokens(input=prompt_tokens or 0)
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    reasoning = None if completion is None else completion.reasoning_tokens
    return Tokens(
        input=count(usage.prompt_tokens),
        cached=0 if prompt is None else count(prompt.cached_tokens),
        written=0 if prompt is None else count(prompt.cache_write_tokens),
        output=count(usage.completion_tokens),
        reasoning=None if reasoning is None else count(reasoning),
    )


def total(usages: Iterable[Usage]) -> Tokens:
    """Return the tokens of several answers together, within bounds."""
    each = [tokens(usage) for usage in usages]
    return Tokens(
        input=count(sum(one.input for one in each)),
        cached=count(sum(one.cached for one in each)),
        output=count(sum(one.output for one in each)),
    )


def count(tokens: int | None) -> int:
    """Return a worker's count of tokens, within bounds."""
    if not tokens or tokens < 0:
        return 0
    return tokens if tokens < MOST_TOKENS else MOST_TOKENS


CHARACTERS_PER_TOKEN = 4


def rough_tokens(chunk: Chunk) -> int:
    """Estimate the tokens in a piece of a stream: per choice with text one, or one per four characters.

    With speculative decoding or batched output a piece holds many tokens.
    """
    tokens = 0
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is None:
            characters = len(choice.text) if isinstance(choice.text, str) else 0
        else:
            characters = len(delta.content or "") + len(delta.reasoning_content or delta.reasoning or "")
            for call in delta.tool_calls or ():
                if call.function is not None and isinstance(call.function.arguments, str):
                    characters += len(call.function.arguments)
        if characters:
            tokens += max(1, characters // CHARACTERS_PER_TOKEN)
    return tokens


def ending(chunk: Chunk, choice: Choice) -> Ending | None:
    """Return how this choice ended, or None. Raises `BadAnswer` when the worker aborted it."""
    finish = choice.finish_reason
    if not finish:
        return None
    if finish in _ABORTED:
        raise BadAnswer("the worker stopped in the middle of the answer")
    stop_string = choice.stopping_word or chunk.stopping_word or (chunk.verbose and chunk.verbose.stopping_word) or None
    if isinstance(choice.stop_reason, str) and choice.stop_reason:
        stop_string = choice.stop_reason
    return Ending(finish, stop_string)


def decode_whole(body: bytes) -> tuple[Chunk, Delta, Ending]:
    """Decode a whole answer; return it with the message and the ending of its first choice. Raises `BadAnswer`."""
    completion = decode(body)
    choice = completion.choices[0] if completion.choices else None
    if choice is None or choice.message is None:
        raise BadAnswer("the worker's answer holds no message")
    how = ending(completion, choice)
    if how is None:
        raise truncation()
    return completion, choice.message, how


def truncation() -> BadAnswer:
    return BadAnswer("the worker's answer ended before it was complete")


@lru_cache(256)
def _model_fields(worker_name: str, model: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return what to replace by what. Quotes inside a string are escaped, so these bytes are the field."""
    old, new = _encode(worker_name), _encode(model)
    return tuple((field + old, field + new) for field in (b'"model":', b'"model": '))


def replace_model(data: bytes, worker_name: str | None, model: str) -> bytes:
    """Replace the model's name in JSON by the client's. Raises `BadAnswer`."""
    if worker_name is None or worker_name == model:
        return data
    for old, new in _model_fields(worker_name, model):
        if old in data:
            return data.replace(old, new, 1)
    with map_json_errors():
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        return _encode(fields | {"model": msgspec.Raw(_encode(model))})
