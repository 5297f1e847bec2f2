"""The interface of a dialect: `read_request`, and what a parsed request and its reply offer."""

from typing import Protocol

from cortex.router.dialects.chat import request as chat
from cortex.router.dialects.core.chunks import Plain
from cortex.router.dialects.core.errors import Dialect
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.stream import Stream
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.dialects.ollama import request as ollama
from cortex.router.dialects.responses import request as responses


class Reply(Protocol):
    """Builds the answer to one request. `plain` raises `BadAnswer`; a stream reports it as an error event."""

    def plain(self, body: bytes) -> Plain: ...
    def with_limit(self, max_tokens: int | None, input_tokens: int | None) -> "Reply": ...
    def stream(self, request_id: str | None = None) -> Stream: ...


class ParsedRequest(Protocol):
    """A parsed request. `max_tokens` is the worker's default limit, `choices` the number of answers, `dropped` the
    fields that are not forwarded. `limit_is_ours`: the client set no limit; `limit_field` is its name
    for it. `cuts`: stop strings that the worker does not get. `completes`: it is for the worker's completions
    endpoint, not for chat."""

    @property
    def model(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def affinity(self) -> str | None: ...
    @property
    def dropped(self) -> tuple[str, ...]: ...
    @property
    def limit_is_ours(self) -> bool: ...
    @property
    def limit_field(self) -> str: ...
    @property
    def choices(self) -> int: ...
    @property
    def cuts(self) -> tuple[str, ...]: ...
    @property
    def completes(self) -> bool: ...
    def body(self, model: str, max_tokens: int | None = None) -> Body: ...
    def count(self, model: str) -> Body: ...
    def answer(self, id: str, created: int) -> Reply: ...


def read_request(dialect: Dialect, body: bytes, traits: Traits) -> ParsedRequest:
    """Parse a request for a worker's chat or completions endpoint. Raises `BadRequest`."""
    match dialect:
        case "messages":
            return messages.read(body, traits)
        case "responses":
            return responses.read(body, traits)
        case "completions":
            return chat.read_completion(body, traits)
        case "ollama_chat":
            return ollama.read_chat(body, traits)
        case "ollama_generate":
            return ollama.read_generate(body, traits)
        case _:
            return chat.read(body, traits)
