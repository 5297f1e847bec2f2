"""Anthropic content blocks as the parts of a chat message.

A block of an unknown kind is dropped with a note, never an error: new kinds appear every month, and one in the
history would make a conversation impossible to continue. A known block that this function cannot show the model
is an error when the user says it, and a placeholder when a tool returned it: the agent must be able to go on.
"""

from typing import Any

import msgspec

from cortex.router.dialects.core import images, wire
from cortex.router.dialects.core.conversation import ImagePart, Part, TextPart
from cortex.router.dialects.core.conversation_builder import NO_IMAGES, ConversationBuilder
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits

Blocks = list[dict[str, Any]]


class _Text(msgspec.Struct):
    text: str


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: str | Blocks | None = None


class _Image(msgspec.Struct):
    source: _Source


class _Document(msgspec.Struct):
    source: _Source
    title: str | None = None
    context: str | None = None


class _SearchResult(msgspec.Struct):
    content: Blocks
    title: str = ""
    source: str = ""


class _ToolResult(msgspec.Struct):
    tool_use_id: str
    content: str | Blocks | None = None
    is_error: bool | None = None


class _ToolUse(msgspec.Struct):
    id: str
    name: str
    input: dict[str, Any] | None = None


class _Thinking(msgspec.Struct):
    thinking: str = ""


class _ToolReference(msgspec.Struct):
    tool_name: str


class Reader:
    """Reads the turns of one request into a thread, and remembers what it saw on the way."""

    def __init__(self, traits: Traits, thread: ConversationBuilder) -> None:
        self.notes: list[str] = []
        self.referenced: list[str] = []
        self._traits = traits
        self._thread = thread

    def system(self, content: str | Blocks | None, at: str) -> None:
        """The system prompt, or a system message inside the conversation."""
        for text in self._texts(content, at):
            self._thread.system(text)

    def user(self, content: str | Blocks, at: str) -> None:
        if isinstance(content, str):
            self._thread.user([TextPart(content)] if content else [])
            return
        self._thread.user([])
        for index, block in enumerate(content):
            here = f"{at}[{index}]"
            if wire.kind_of(block, here) == "tool_result":
                self._result(wire.shaped(block, _ToolResult, here), here)
            else:
                self._thread.user(self._parts(block, here))

    def assistant(self, content: str | Blocks, at: str) -> None:
        if isinstance(content, str):
            self._thread.assistant(content)
            return
        for index, block in enumerate(content):
            here = f"{at}[{index}]"
            match wire.kind_of(block, here):
                case "text":
                    self._thread.assistant(wire.shaped(block, _Text, here).text)
                case "thinking":
                    self._thread.thinking(wire.shaped(block, _Thinking, here).thinking)
                case "tool_use":
                    use = wire.shaped(block, _ToolUse, here)
                    self._thread.call(use.id, use.name, wire.text_of(use.input or {}))
                case "tool_search_tool_result":
                    self._references(block.get("content"))
                case kind:
                    self._note(kind, here)

    def _texts(self, content: str | Blocks | None, at: str) -> list[str]:
        if content is None or isinstance(content, str):
            return [content] if content else []
        texts = []
        for index, block in enumerate(content):
            here = f"{at}[{index}]"
            if wire.kind_of(block, here, "text") == "text":
                texts.append(wire.shaped(block, _Text, here).text)
            else:
                self._note(str(block["type"]), here)
        return texts

    def _parts(self, block: dict[str, Any], at: str) -> list[Part]:
        """What a user said; what cannot be shown to the model is refused."""
        match wire.kind_of(block, at):
            case "text":
                text = wire.shaped(block, _Text, at).text
                return [TextPart(text)] if text else []
            case "image":
                if not self._traits.vision:
                    raise BadRequest("this model does not take images", at)
                return [self._image(wire.shaped(block, _Image, at).source, f"{at}.source")]
            case "document":
                return self._document(wire.shaped(block, _Document, at), at)
            case "search_result":
                return [TextPart(self._found(wire.shaped(block, _SearchResult, at), at))]
            case kind:
                self._note(kind, at)
                return []

    def _image(self, source: _Source, at: str) -> ImagePart:
        match source.type:
            case "base64":
                return images.from_base64(source.media_type, source.data, at)
            case "url":
                return images.from_url(source.url, f"{at}.url")
            case kind:
                raise BadRequest(f"images of type {kind!r} are not supported; use base64", f"{at}.type")

    def _document(self, document: _Document, at: str) -> list[Part]:
        source, here = document.source, f"{at}.source"
        head = "\n".join(line for line in (document.title, document.context) if line)
        parts: list[Part] = [TextPart(head)] if head else []
        if source.type == "text":
            return [*parts, TextPart(source.data or "")]
        if source.type == "content":
            if source.content is None or isinstance(source.content, str):
                return [*parts, TextPart(source.content or "")]
            for index, block in enumerate(source.content):
                parts += self._parts(block, f"{here}.content[{index}]")
            return parts
        if source.type == "base64" and (source.media_type or "").lower().startswith("text/"):
            return [*parts, TextPart(images.as_text(source.data, f"{here}.data"))]
        what = source.media_type or f"type {source.type!r}"
        raise BadRequest(f"documents of {what} are not supported; send their text", f"{here}.type")

    def _found(self, result: _SearchResult, at: str) -> str:
        lines = [result.title, result.source, *self._texts(result.content, f"{at}.content")]
        return "\n".join(line for line in lines if line)

    def _result(self, result: _ToolResult, at: str) -> None:
        texts: list[str] = []
        shown: list[ImagePart] = []
        if isinstance(result.content, str):
            texts.append(result.content)
        else:
            for index, block in enumerate(result.content or ()):
                for part in self._returned(block, f"{at}.content[{index}]"):
                    if isinstance(part, TextPart):
                        texts.append(part.text)
                    else:
                        shown.append(part)
        text = "\n".join(texts)
        # Chat has no flag for it, and a model that does not know of the failure repeats it.
        self._thread.result(result.tool_use_id, f"Error: {text}" if result.is_error else text, shown)

    def _returned(self, block: dict[str, Any], at: str) -> list[Part]:
        """What a tool returned; what cannot be shown to the model is named in its place."""
        kind = wire.kind_of(block, at)
        if kind == "tool_reference":
            name = wire.shaped(block, _ToolReference, at).tool_name
            self.referenced.append(name)
            return [TextPart(f"Tool {name} is now available")]
        if kind == "image" and not self._traits.vision:
            return [TextPart(NO_IMAGES)]
        try:
            return self._parts(block, at)
        except BadRequest as error:
            if kind != "document":
                raise
            self.notes.append(str(error))
            return [TextPart("[document omitted: only text can be shown to this model]")]

    def _references(self, found: object) -> None:
        """A search for tools that ran elsewhere: only what it found matters."""
        references = found.get("tool_references") if isinstance(found, dict) else None
        for one in references if isinstance(references, list) else ():
            name = one.get("tool_name") if isinstance(one, dict) else None
            if isinstance(name, str):
                self.referenced.append(name)

    def _note(self, kind: str, at: str) -> None:
        self.notes.append(f"{at}: dropped a block of type {kind[:80]!r}")
