"""How an engine words an answer on the wire: what both shapes can do, and nothing of how."""

from collections.abc import Iterator
from typing import Protocol

from cortex.platform.fake_engine.answer import Answer
from cortex.platform.fake_engine.llama import LlamaShape
from cortex.platform.fake_engine.step import Step
from cortex.platform.fake_engine.vllm import VllmShape


class Shape(Protocol):
    """An engine's wording."""

    @property
    def content_type(self) -> str:
        """What its streams say they are."""

    @property
    def headers_first(self) -> bool:
        """Whether its streams open before the prefill; else the 200 comes with the first token."""

    def chat_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """A conversation's next turn as server-sent events."""

    def chat_whole(self, answer: Answer) -> dict[str, object]:
        """The same turn in one piece."""

    def text_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """A text's continuation as server-sent events."""

    def text_whole(self, answer: Answer) -> dict[str, object]:
        """The same continuation in one piece."""

    def model_list(self, model: str) -> dict[str, object]:
        """The body of `GET /v1/models`."""


SHAPES: dict[str, Shape] = {"vllm": VllmShape(), "llama": LlamaShape()}
