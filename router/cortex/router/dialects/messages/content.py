"""Anthropic content blocks as parts of a chat message.

A block of an unknown type is dropped with a note: new types appear every month, and an error would end a conversation
with one in its history. A known block that the model does not accept is an error in a user's message and a placeholder
in a tool result, so that the agent can continue.
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
    """Adds the turns of one request to a builder; collects the paths of dropped blocks, and referenced tools."""

    def __init__(self, traits: Traits, builder: ConversationBuilder) -> None:
        self.dropped: list[str] = []
        self.referenced: list[str] = []
        self._traits = traits
        self._builder = builder

    def system(self, content: str | Blocks | None, at: str) -> None:
        """Add the system prompt or a later system message."""
        for text in self._texts(content, at):
            self._builder.system(text)

    def user(self, content: str | Blocks, at: str) -> None:
        if isinstance(content, str):
            self._builder.user([TextPart(content)] if content else [])
            return
        self._builder.user([])
        for index, block in enumerate(content):
            here = f"{at}[{index}]"
            if wire.kind_of(block, here) == "tool_result":
                self._result(wire.convert(block, _ToolResult, here), here)
            else:
                self._builder.user(self._parts(block, here))

    def assistant(self, content: str | Blocks, at: str) -> None:
        if isinstance(content, str):
            self._builder.assistant(content)
            return
        for index, block in enumerate(content):
            here = f"{at}[{index}]"
            match wire.kind_of(block, here):
                case "text":
                    self._builder.assistant(wire.convert(block, _Text, here).text)
                case "thinking":
                    self._builder.thinking(wire.convert(block, _Thinking, here).thinking)
                case "tool_use":
                    use = wire.convert(block, _ToolUse, here)
                    self._builder.call(use.id, use.name, wire.text_of(use.input or {}))
                case "tool_search_tool_result":
                    self._references(block.get("content"))
                case _:
                    self.dropped.append(here)

    def _texts(self, content: str | Blocks | None, at: str) -> list[str]:
        if content is None or isinstance(content, str):
            return [content] if content else []
        texts = []
        for index, block in enumerate(content):
            here = f"{at}[{index}]"
            if wire.kind_of(block, here, "text") == "text":
                texts.append(wire.convert(block, _Text, here).text)
            else:
                self.dropped.append(here)
        return texts

    def _parts(self, block: dict[str, Any], at: str) -> list[Part]:
        """Return a user's block as parts. Raises BadRequest for content that the model does not accept."""
        match wire.kind_of(block, at):
            case "text":
                text = wire.convert(block, _Text, at).text
                return [TextPart(text)] if text else []
            case "image":
                if not self._traits.vision:
                    raise BadRequest("this model does not accept images", at)
                return [self._image(wire.convert(block, _Image, at).source, f"{at}.source")]
            case "document":
                return self._document(wire.convert(block, _Document, at), at)
            case "search_result":
                return [TextPart(self._search_result(wire.convert(block, _SearchResult, at), at))]
            case _:
                self.dropped.append(at)
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
        description = source.media_type or f"type {source.type!r}"
        raise BadRequest(f"documents of {description} are not supported; send their text", f"{here}.type")

    def _search_result(self, result: _SearchResult, at: str) -> str:
        lines = [result.title, result.source, *self._texts(result.content, f"{at}.content")]
        return "\n".join(line for line in lines if line)

    def _result(self, result: _ToolResult, at: str) -> None:
        texts: list[str] = []
        images: list[ImagePart] = []
        if isinstance(result.content, str):
            texts.append(result.content)
        else:
            for index, block in enumerate(result.content or ()):
                for part in self._tool_parts(block, f"{at}.content[{index}]"):
                    if isinstance(part, TextPart):
                        texts.append(part.text)
                    else:
                        images.append(part)
        text = "\n".join(texts)
        # Chat has no error flag, and a model that does not see the failure repeats the call.
        self._builder.result(result.tool_use_id, f"Error: {text}" if result.is_error else text, images)

    def _tool_parts(self, block: dict[str, Any], at: str) -> list[Part]:
        """Return a tool's block as parts, with placeholders for content that the model does not accept."""
        kind = wire.kind_of(block, at)
        if kind == "tool_reference":
            name = wire.convert(block, _ToolReference, at).tool_name
            self.referenced.append(name)
            return [TextPart(f"Tool {name} is now available")]
        if kind == "image" and not self._traits.vision:
            return [TextPart(NO_IMAGES)]
        try:
            return self._parts(block, at)
        except BadRequest as error:
            if kind != "document":
                raise
            self.dropped.append(error.param or at)
            return [TextPart("[document omitted: only text can be shown to this model]")]

    def _references(self, content: object) -> None:
        """Collect the tools that a server-side tool search returned."""
        references = content.get("tool_references") if isinstance(content, dict) else None
        for reference in references if isinstance(references, list) else ():
            name = reference.get("tool_name") if isinstance(reference, dict) else None
            if isinstance(name, str):
                self.referenced.append(name)
