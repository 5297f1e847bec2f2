"""Building a conversation in the one order that every chat template takes.

Between two assistant messages a client may say things in any order: results of tools, text, images, a system
message. Templates want: all tool messages first and in order, with nothing between them; then the rest. Adjacent
messages of one role become one, and what a tool showed as an image follows its messages as part of the user's.
Only the front of a conversation becomes its system message; later ones stay where they were said.
"""

from cortex.router.dialects.core import ids, prompt_cache
from cortex.router.dialects.core.conversation import (
    Assistant,
    Call,
    CalledFunction,
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
    """A system message among the things said in a turn."""

    __slots__ = ()


class ConversationBuilder:
    """Say things in the client's order; `messages()` has them in the template's."""

    def __init__(self, traits: Traits) -> None:
        self._traits = traits
        self._front: list[str] = []
        self._done: list[Message] = []
        self._results: list[Tool] = []
        self._shown: list[Part] = []
        self._said: list[Part | _Inline] = []
        self._user_spoke = False
        self._assistant: Assistant | None = None

    def system(self, text: str) -> None:
        text = prompt_cache.without_billing(text)
        if not text:
            return
        if not (self._done or self._assistant or self._results or self._said or self._user_spoke):
            self._front.append(text)
            return
        self._end_assistant()
        self._said.append(_Inline(text))

    def user(self, parts: list[Part]) -> None:
        self._end_assistant()
        self._user_spoke = True
        self._said += parts

    def result(self, call_id: str, text: str, images: list[ImagePart]) -> None:
        """The result of a tool. Chat has no room for images in it, so they are shown right after."""
        self._end_assistant()
        if images and not self._traits.vision:
            text = "\n".join([text] * bool(text) + [NO_IMAGES] * len(images))
        elif images:
            self._shown += [TextPart(f"Image from tool call {call_id}"), *images]
            text = text or _IMAGE_FOLLOWS
        self._results.append(Tool(self._id(call_id), text))

    def assistant(self, text: str = "") -> None:
        self._speaking().content += text

    def thinking(self, text: str) -> None:
        """Kept only when the template wants the thoughts of earlier turns back."""
        field = self._traits.reasoning_field
        if field is None or not text:
            return
        message = self._speaking()
        setattr(message, field, (getattr(message, field) or "") + text)

    def call(self, call_id: str, name: str, arguments: str) -> None:
        message = self._speaking()
        message.tool_calls = message.tool_calls or []
        message.tool_calls.append(Call(self._id(call_id), CalledFunction(name, arguments)))

    def messages(self) -> list[Message]:
        self._end_turn()
        self._end_assistant()
        if self._front:
            return [System("\n\n".join(self._front)), *self._done]
        return self._done

    def _id(self, call_id: str) -> str:
        return ids.nine(call_id) if self._traits.tool_ids == "alnum9" else call_id

    def _speaking(self) -> Assistant:
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
        said: list[Part | _Inline] = [*self._shown, *self._said]
        if self._user_spoke and not said and not self._results:
            self._done.append(User(""))
        parts: list[Part] = []
        for one in said:
            if not isinstance(one, _Inline):
                parts.append(one)
            elif self._traits.inline_system:
                self._end_user(parts)
                parts = []
                self._done.append(System(str(one)))
            else:
                parts.append(TextPart(prompt_cache.reminder(one)))
        self._end_user(parts)
        self._results, self._shown, self._said, self._user_spoke = [], [], [], False

    def _end_user(self, parts: list[Part]) -> None:
        if parts:
            self._done.append(User(text_of(parts)))
