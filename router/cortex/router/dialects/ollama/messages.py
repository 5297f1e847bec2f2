"""Read the messages of an Ollama chat into a conversation.

Ollama's messages have images beside their text, and calls with an object as arguments. A tool's result may name its
call by id, by the tool, or not at all; then it answers the first open call that fits.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import images, wire
from cortex.router.dialects.core.conversation import ImagePart, Part, TextPart
from cortex.router.dialects.core.conversation_builder import ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits


class _Function(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    name: str | None = None


class Reader:
    """Adds messages to a builder, in the client's order."""

    def __init__(self, traits: Traits, builder: ConversationBuilder) -> None:
        self._traits, self._builder = traits, builder
        self._calls = 0
        self._open: list[tuple[str, str]] = []
        """Ids and names of the calls that have no result yet."""

    def read(self, messages: list[dict[str, Any]]) -> None:
        """Add all messages. Raises BadRequest."""
        for index, item in enumerate(messages):
            at = f"messages[{index}]"
            message = wire.convert(item, _Message, at)
            match message.role.lower():
                case "system":
                    self._builder.system(message.content or "")
                case "user":
                    self.user(message.content or "", message.images, f"{at}.images")
                case "assistant":
                    self._assistant(message)
                case "tool":
                    shown = self._images(message.images, f"{at}.images") if self._traits.vision else []
                    self._builder.result(self._call_of(message), message.content or "", shown)
                case _:
                    raise BadRequest("expected system, user, assistant or tool", f"{at}.role")

    def user(self, text: str, encoded: list[str] | None, at: str) -> None:
        """Add a user's message; its images come before its text. Raises BadRequest."""
        parts: list[Part] = [*self._images(encoded, at)]
        self._builder.user([*parts, TextPart(text)] if text else parts)

    def _images(self, encoded: list[str] | None, at: str) -> list[ImagePart]:
        if encoded and not self._traits.vision:
            raise BadRequest("this model does not accept images", at)
        return [images.recognize(data, f"{at}[{index}]") for index, data in enumerate(encoded or ())]

    def _assistant(self, message: _Message) -> None:
        self._builder.thinking(message.thinking or "")
        self._builder.assistant(message.content or "")
        for call in message.tool_calls or ():
            id = call.id or self._next_id()
            self._open.append((id, call.function.name))
            self._builder.call(id, call.function.name, wire.text_of(call.function.arguments or {}))

    def _call_of(self, message: _Message) -> str:
        """Return the id of the call that a tool's message answers."""
        name = message.tool_name or message.name
        for fits in (lambda call: call[0] == message.tool_call_id, lambda call: call[1] == name, lambda _: True):
            if fitting := next(filter(fits, self._open), None):
                self._open.remove(fitting)
                return message.tool_call_id or fitting[0]
        return message.tool_call_id or self._next_id()

    def _next_id(self) -> str:
        self._calls += 1
        return f"call_{self._calls - 1}"
