"""Requests of clients: only the fields that affect an answer. Unknown fields are ignored, as engines do.

A token is a word; in a prompt of token ids, each id is one.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Prompt = str | list[str | int | list[int]]
TokenLimit = Annotated[int, Meta(ge=0)]


class Part(msgspec.Struct, frozen=True):
    """A part of a message; only text counts as tokens."""

    text: str | None = None
    type: str = "text"


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The text of the message."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return " ".join(part.text for part in self.content if part.text)


class Function(msgspec.Struct, frozen=True):
    """The callable part of a tool."""

    name: str
    parameters: dict[str, object] = {}


class Tool(msgspec.Struct, frozen=True):
    """A tool on offer."""

    function: Function


class StreamOptions(msgspec.Struct, frozen=True):
    """How to stream."""

    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    model: str = ""
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, object] | None = None

    @property
    def prompt(self) -> str:
        """The whole conversation as one text."""
        return "\n".join(message.text for message in self.messages)

    @property
    def last_user_text(self) -> str:
        """The text of the last message by the user."""
        return next((turn.text for turn in reversed(self.messages) if turn.role == "user"), "")

    @property
    def results(self) -> int:
        """The number of tool results."""
        return sum(message.role == "tool" for message in self.messages)

    @property
    def images(self) -> int:
        """The number of images."""
        parts = (part for turn in self.messages if isinstance(turn.content, list) for part in turn.content)
        return sum(part.type == "image_url" for part in parts)

    @property
    def prompt_tokens(self) -> int:
        """One token per word and per tool."""
        return len(self.prompt.split()) + len(self.tools or ())

    @property
    def limit(self) -> int | None:
        """The maximum number of tokens in the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/completions`. Several prompts are answered as one."""

    model: str = ""
    prompt: Prompt = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/embeddings`."""

    model: str = ""
    input: Prompt
    dimensions: Annotated[int, Meta(ge=1, le=65536)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    stream: None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /tokenize`: vLLM's `prompt` or `messages`, llama-server's `content`."""

    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    content: str | None = None

    @property
    def words(self) -> list[str]:
        """One word per token, as many as `usage.prompt_tokens` reports for the same body."""
        if self.messages is None:
            return (self.prompt or self.content or "").split()
        chat = ChatRequest(messages=self.messages, tools=self.tools)
        return [*chat.prompt.split(), *(tool.function.name for tool in self.tools or ())]


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /score`: one text with one or several, or as many with as many."""

    text_1: str | list[str]
    text_2: str | list[str]

    @property
    def pairs(self) -> list[tuple[set[str], set[str]]]:
        """The words of each pair."""
        first, second = ([text] if isinstance(text, str) else text for text in (self.text_1, self.text_2))
        if len(first) == 1:
            first = first * len(second)
        return [({*one.split()}, {*other.split()}) for one, other in zip(first, second, strict=False)]


class PoolingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /pooling`."""

    input: Prompt


def inputs(prompt: Prompt) -> list[list[str]]:
    """Return the words of each input: a text, several texts, one list of token ids, or several."""
    if isinstance(prompt, str):
        return [prompt.split()]
    ids = [str(item) for item in prompt if isinstance(item, int)]
    if ids:
        return [ids]
    return [
        item.split() if isinstance(item, str) else [str(token) for token in item]
        for item in prompt
        if not isinstance(item, int)
    ]
