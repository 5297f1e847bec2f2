"""The wire forms of the engines: their common interface, and the table of them."""

from collections.abc import Iterator
from typing import Protocol

from cortex.platform.fake_engine.answer import Answer
from cortex.platform.fake_engine.llama import LlamaShape
from cortex.platform.fake_engine.step import Step
from cortex.platform.fake_engine.vllm import VllmShape


class Shape(Protocol):
    """An engine's wire form."""

    @property
    def content_type(self) -> str:
        """The content type of its streams."""

    @property
    def headers_first(self) -> bool:
        """Whether it sends the headers of a stream before the prefill instead of with the first token."""

    def chat_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Yield an answer to a conversation as server-sent events."""

    def chat_whole(self, answer: Answer) -> dict[str, object]:
        """Return the same answer unstreamed."""

    def text_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Yield a continuation of a text as server-sent events."""

    def text_whole(self, answer: Answer) -> dict[str, object]:
        """Return the same continuation unstreamed."""

    def model_list(self, model: str) -> dict[str, object]:
        """Return the body of `GET /v1/models`."""


SHAPES: dict[str, Shape] = {"vllm": VllmShape(), "llama": LlamaShape()}
