"""Build a conversation in the one order that every chat template accepts.

Between two assistant messages a client may send tool results, text, images and system messages in any order. Templates
require all tool messages first, in order and contiguous. Adjacent messages of one role are merged; images from tools
follow the tool messages as part of the user's message. Only leading system messages become the system prompt; later
ones keep their place.
"""

from cortex.router.dialects.core import ids, prompt_cache
from cortex.router.dialects.core.conversation import (
    Assistant,
    Call,
    CallFunction,
    ImagePart,
    Message,
    Part,
    System,
    TextPart,
    Tool,
    User,
    text_of,
)
from cortex.router.dialects.core.traits import Traits

NO_IMAGES = "[image omitted: this model does not take images]"
_IMAGE_FOLLOWS = "The result is an image; it follows."


class _Inline(str):
    """A system message inside a turn."""

    __slots__ = ()


class ConversationBuilder:
    """Takes content in the client's order; `messages()` returns it in the template's."""

    def __init__(self, traits: Traits) -> None:
        self._traits = traits
        self._front: list[str] = []
        self._done: list[Message] = []
        self._results: list[Tool] = []
        self._tool_images: list[Part] = []
        self._content: list[Part | _Inline] = []
        self._has_user_turn = False
        self._assistant: Assistant | None = None

    def system(self, text: str) -> None:
        text = prompt_cache.without_billing(text)
        if not text:
            return
        if not (self._done or self._assistant or self._results or self._content or self._has_user_turn):
            self._front.append(text)
            return
        self._end_assistant()
        self._content.append(_Inline(text))

    def user(self, parts: list[Part]) -> None:
        self._end_assistant()
        self._has_user_turn = True
        self._content += parts

    def result(self, call_id: str, text: str, images: list[ImagePart]) -> None:
        """Add a tool result. Chat tool messages cannot hold images, so these follow in a user message."""
        self._end_assistant()
        if images and not self._traits.vision:
            text = "\n".join([text] * bool(text) + [NO_IMAGES] * len(images))
        elif images:
            self._tool_images += [TextPart(f"Image from tool call {call_id}"), *images]
            text = text or _IMAGE_FOLLOWS
        self._results.append(Tool(self._id(call_id), text))

    def assistant(self, text: str = "") -> None:
        self._current_assistant().content += text

    def thinking(self, text: str) -> None:
        """Add thinking, if the template takes the thinking of earlier turns."""
        field = self._traits.reasoning_field
        if field is None or not text:
            return
        message = self._current_assistant()
        setattr(message, field, (getattr(message, field) or "") + text)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        message = self._current_assistant()
        message.tool_calls = message.tool_calls or []
        message.tool_calls.append(Call(self._id(call_id), CallFunction(name, arguments)))

    def messages(self) -> list[Message]:
        self._end_turn()
        self._end_assistant()
        if self._front:
            return [System("\n\n".join(self._front)), *self._done]
        return self._done

    def _id(self, call_id: str) -> str:
        return ids.alnum9(call_id) if self._traits.tool_ids == "alnum9" else call_id

    def _current_assistant(self) -> Assistant:
        self._end_turn()
        if self._assistant is None:
            self._assistant = Assistant("")
        return self._assistant

    def _end_assistant(self) -> None:
        message, self._assistant = self._assistant, None
        if message is not None and message != Assistant(""):
            self._done.append(message)

    def _end_turn(self) -> None:
        self._done += self._results
        content: list[Part | _Inline] = [*self._tool_images, *self._content]
        if self._has_user_turn and not content and not self._results:
            self._done.append(User(""))
        parts: list[Part] = []
        for item in content:
            if not isinstance(item, _Inline):
                parts.append(item)
            elif self._traits.inline_system:
                self._end_user(parts)
                parts = []
                self._done.append(System(str(item)))
            else:
                parts.append(TextPart(prompt_cache.reminder(item)))
        self._end_user(parts)
        self._results, self._tool_images, self._content, self._has_user_turn = [], [], [], False

    def _end_user(self, parts: list[Part]) -> None:
        if parts:
            self._done.append(User(text_of(parts)))
